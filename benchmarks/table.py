"""Times the enmeshment loss beside its peers and its floor, and prints one table. See README.md here."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peers import CASES, FLOOR, OURS, OURS_AUTOGRAD, PEERS, ROTATED_BYTES, Case, contestants, matrix
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import modfast
from modfast.files import atomic_write, write_json
from modfast.report import environment

BEGIN, END = "<!-- energy table: begin -->", "<!-- energy table: end -->"
CAPTION = (
    "Medians of the loss and its gradient, added to an existing .grad; with the quartiles of modfast's. "
    "The columns after {floor} / modfast say how many times as long as modfast's the others took."
)


def floor_of(report: dict[str, Any]) -> str:
    """What modfast is measured by: the traffic it cannot avoid, on a GPU a copy that moves as many bytes."""
    return "floor" if report["device"] == "cpu" else "copy"


def headings(report: dict[str, Any]) -> list[str]:
    floor = floor_of(report)
    moved = [] if floor == "floor" else ["MB moved"]
    columns = ["weights", f"{OURS}, ms", "quartiles, ms", *moved, f"{floor}, ms", f"{floor} / modfast"]
    return [*columns, "autograd", *PEERS]


def seconds_of(call: Callable[[], object], device: str) -> float:
    """How long a call takes; on a GPU by its own clock, from when it begins to when it is done."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def visit(call: Callable[[], object], device: str) -> list[float]:
    """Seconds of each of a few calls in a row: three and ten milliseconds' worth, or one that takes long."""
    call()  # finds the processor as the previous contestant left it
    seconds: list[float] = []
    while sum(seconds) < 0.1 and (len(seconds) < 3 or sum(seconds) < 0.01):
        seconds.append(seconds_of(call, device))
    return seconds


def measure(
    case: Case, repeats: int, rotated_bytes: int, device: str, advance: Callable[[], None]
) -> dict[str, Any]:
    """Visits every contestant once a round, so that a drift of the machine's speed hits all alike."""
    calls = contestants(case, rotated_bytes, device)
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    # In another order each round, so that none always follows the same neighbour.
    order, shuffler = list(calls), random.Random(0)
    for _ in range(repeats):
        shuffler.shuffle(order)
        for name in order:
            seconds[name] += visit(calls[name], device)
        advance()
    # The lower quartile, the median and the upper quartile.
    quartiles = {name: [1e3 * q for q in statistics.quantiles(seconds[name], n=4)] for name in calls}
    median = {name: values[1] for name, values in quartiles.items()}
    return {
        "case": str(case),
        "shapes": case.shapes,
        "clusters": case.clusters,
        "dtype": str(case.dtype),
        "bytes_moved": case.bytes_moved,
        "milliseconds": median,
        "quartiles": quartiles,
        "calls": {name: len(values) for name, values in seconds.items()},
        "share_of_floor": median[FLOOR] / median[OURS],
        "ratios": {name: median[name] / median[OURS] for name in (OURS_AUTOGRAD, *PEERS)},
    }


def cells(result: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """One row of the table, under its headings."""
    low, ours, high = result["quartiles"][OURS]
    return [
        result["case"],
        f"{ours:.3f}",
        f"{low:.3f} - {high:.3f}",
        *([] if floor_of(report) == "floor" else [f"{result['bytes_moved'] / 1e6:.1f}"]),
        f"{result['milliseconds'][FLOOR]:.3f}",
        f"{result['share_of_floor']:.2f}",
        *(f"{ratio:.1f} x" for ratio in result["ratios"].values()),
    ]


def setting(report: dict[str, Any]) -> str:
    """What the times depend on, in one line."""
    machine, rotated = report["environment"], report["rotated_mebibytes"]
    memory = f"weights rotate over {rotated} MiB" if rotated else "one weight throughout"
    where = f"{machine['processor']}, threads {machine['threads']}"
    if report["device"] != "cpu":
        where = report["gpu"]
    return (
        f"{report['date']}: {where}, {memory}; "
        f"modfast {machine['modfast']} ({report['kernels']}), PyTorch {machine['torch']}, "
        f"Python {machine['python']}"
    )


def markdown(report: dict[str, Any]) -> str:
    columns = headings(report)
    rows = [cells(result, report) for result in report["results"]]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{setting(report)}\n\n{table}\n\n{CAPTION.format(floor=floor_of(report))}\n"


def outside_markers(text: str) -> tuple[str, str]:
    """What stands before and after the place of the table, markers included."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not (begin and end):
        raise ValueError(f"needs a line {BEGIN} and, after it, a line {END}")
    return before + begin, end + after


def as_case(text: str) -> Case:
    try:
        rows, cols, clusters = map(int, text.split("x"))
    except ValueError:
        rows = cols = clusters = 0
    if min(rows, cols, clusters) < 1:
        raise argparse.ArgumentTypeError(f"must be ROWSxCOLUMNSxCLUSTERS, got {text!r}")
    return matrix(rows, cols, clusters)


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=as_case,
        default=CASES,
        metavar="ROWSxCOLUMNSxCLUSTERS",
        help="for example 3072x768x4; by default a set to which BENCH_LARGE=1 adds the largest",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--repeats", type=at_least(1), default=11, metavar="N", help="rounds; default 11")
    parser.add_argument(
        "--rotate",
        type=at_least(0),
        default=ROTATED_BYTES // 2**20,
        metavar="MIB",
        help="memory that the weights and gradients take together; 0: one weight, warm where it fits a cache",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results, quartiles included")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between its markers")
    options = parser.parse_args(arguments)
    if options.markdown:
        try:  # better now than after the measurement
            outside_markers(options.markdown.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {options.markdown}: {error}")

    if options.device == "cuda" and not (modfast.backend()["cuda"] and torch.cuda.is_available()):
        parser.error("--device cuda needs a GPU and a modfast built with its CUDA kernels")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backend = modfast.backend()
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "environment": environment(),
        "device": options.device,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "kernels": backend["cpu"] if backend["backend"] == "compiled" else backend["backend"],
        "rotated_mebibytes": options.rotate,
        "repeats": options.repeats,
        "results": [],
    }
    # The display is drawn between rounds: a thread that draws in the background would be timed as well.
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        for case in options.sizes:
            task = progress.add_task(str(case), total=options.repeats)

            def advance(task: Any = task) -> None:
                progress.update(task, advance=1, refresh=True)

            rotated = options.rotate * 2**20
            report["results"].append(measure(case, options.repeats, rotated, options.device, advance))

    table = Table(*headings(report), title=setting(report), caption=CAPTION.format(floor=floor_of(report)))
    for column in table.columns[1:]:
        column.justify = "right"
    for result in report["results"]:
        table.add_row(*cells(result, report))
    # Into a pipe or a log rich would fold the table to 80 columns.
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        before, after = outside_markers(options.markdown.read_text(encoding="utf-8"))
        with atomic_write(options.markdown) as temporary:
            temporary.write_text(f"{before}\n{markdown(report)}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
