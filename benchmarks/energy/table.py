"""Time the enmeshment loss beside its peers and its floor, and print one table. See docs/speed/energy.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.device import add_device_option, device_of, facts, table_name, where
from benchmarks.common.pages import (
    add_options,
    add_page_option,
    as_markdown,
    at_least,
    check_page,
    put_into_page,
    show,
    versions,
    what_times_depend_on,
)
from benchmarks.common.rounds import in_rounds, quartiles
from benchmarks.energy.peers import (
    CASES,
    FLOOR,
    OURS,
    OURS_AUTOGRAD,
    PEERS,
    ROTATED_BYTES,
    Case,
    contestants,
    matrix,
)
from modfast.files import write_json

CAPTION = (
    "Medians of the loss and its gradient, added to an existing .grad; with the quartiles of modfast's. "
    "The columns after {floor} / modfast say how many times as long as modfast's the others took."
)


def floor_of(report: dict[str, Any]) -> str:
    """Return the name of the floor: the traffic that is unavoidable; on a GPU a copy of as many bytes."""
    return "floor" if report["device"] == "cpu" else "copy"


def headings(report: dict[str, Any]) -> list[str]:
    floor = floor_of(report)
    moved = [] if floor == "floor" else ["MB moved"]
    columns = ["weights", f"{OURS}, ms", "quartiles, ms", *moved, f"{floor}, ms", f"{floor} / modfast"]
    return [*columns, "autograd", *PEERS]


def measure(
    case: Case, repeats: int, rotated_bytes: int, device: str, by_copy: bool, advance: Callable[[], None]
) -> dict[str, Any]:
    calls = contestants(case, rotated_bytes, device, by_copy)
    seconds = in_rounds(calls, repeats, advance, device)
    by_name = {name: quartiles(values) for name, values in seconds.items()}
    median = {name: values[1] for name, values in by_name.items()}
    return {
        "case": str(case),
        "shapes": case.shapes,
        "clusters": case.clusters,
        "dtype": str(case.dtype),
        "bytes_moved": case.bytes_moved,
        "milliseconds": median,
        "quartiles": by_name,
        "calls": {name: len(values) for name, values in seconds.items()},
        "share_of_floor": median[FLOOR] / median[OURS],
        "ratios": {name: median[name] / median[OURS] for name in (OURS_AUTOGRAD, *PEERS)},
    }


def cells(result: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """Return one row of the table, under its headings."""
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
    """Return what the times depend on, in one line."""
    rotated = report["rotated_mebibytes"]
    memory = f"weights rotate over {rotated} MiB" if rotated else "one weight throughout"
    return f"{report['date']}: {where(report)}, {memory}; {versions(report)}"


def markdown(report: dict[str, Any]) -> str:
    table = as_markdown(headings(report), [cells(result, report) for result in report["results"]])
    return f"{setting(report)}\n\n{table}\n\n{CAPTION.format(floor=floor_of(report))}\n"


def as_case(text: str) -> Case:
    try:
        rows, cols, clusters = map(int, text.split("x"))
    except ValueError:
        rows = cols = clusters = 0
    if min(rows, cols, clusters) < 1:
        raise argparse.ArgumentTypeError(f"must be ROWSxCOLUMNSxCLUSTERS, got {text!r}")
    return matrix(rows, cols, clusters)


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
    add_device_option(parser)
    add_options(parser, repeats=11)
    add_page_option(parser)
    parser.add_argument(
        "--rotate",
        type=at_least(0),
        default=ROTATED_BYTES // 2**20,
        metavar="MIB",
        help="memory of weights and gradients together; 0: one weight, which stays in a cache if it fits",
    )
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, table_name("energy", options.device))
    device = device_of(parser, options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report: dict[str, Any] = {
        **what_times_depend_on(),
        **facts(options.device, device),
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
            by_copy = options.device != "cpu"
            result = measure(case, options.repeats, rotated, device, by_copy, advance)
            report["results"].append(result)

    rows = [cells(result, report) for result in report["results"]]
    show(setting(report), CAPTION.format(floor=floor_of(report)), headings(report), rows)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, table_name("energy", options.device), markdown(report))


if __name__ == "__main__":
    main()
