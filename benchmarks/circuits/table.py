"""Time the walk for a circuit beside loops over forward passes; print a table. See docs/speed/circuits.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.circuits.batched import batched
from benchmarks.circuits.cases import CircuitCase, digits, noisy_patterns, of_run
from benchmarks.circuits.peers import ALL, FLOOR, OURS, PEERS
from benchmarks.common.device import add_device_option, copy_of, device_of, facts, table_name, where
from benchmarks.common.pages import (
    add_options,
    add_page_option,
    as_markdown,
    check_page,
    put_into_page,
    show,
    versions,
    what_times_depend_on,
)
from benchmarks.common.rounds import in_rounds, quartiles, seconds_of
from modfast import Circuit, find_circuit, find_circuits
from modfast.circuits.linear_tail import read_tail
from modfast.files import write_json

LABEL = 0
# One trial of the published loop over 1,000 images, read in batches, as measured for the design.
PUBLISHED_SECONDS = 0.24

CAPTION = (
    "Medians for one class's circuit, from the model and the images to the masks; with quartiles. The loops "
    "run a few of their trials, and one class's time is that of a trial times the number of weights. Floor: "
    "the inputs of each neuron that matters are read once."
)
BATCHED_CAPTION = (
    " On a GPU the floor is a copy of as many bytes. Batched: a plain PyTorch walk that tries 64 weights at "
    "a time, run to its end once; and the share of the weights that it and modfast decide alike."
)
BATCHED_HEADINGS = ["batched, s", f"batched / {OURS}", "decided alike"]
HEADINGS = [
    "model",
    "weights",
    "images of the class",
    "weights kept",
    f"{OURS}, s",
    "quartiles, s",
    "all 10 classes, s",
    *(f"{name}, hours" for name in PEERS),
    *(f"{name} / {OURS}" for name in PEERS),
    "floor, s",
    f"{OURS} / floor",
]


def measure(
    case: CircuitCase, repeats: int, advance: Callable[[], None], device: str = "cpu", on_gpu: bool = False
) -> dict[str, Any]:
    case = case.on(device)
    inputs = case.of_class(LABEL)
    circuit = find_circuit(case.model, inputs, LABEL)
    features = read_tail(case.model, inputs).features
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: find_circuit(case.model, inputs, LABEL),
        ALL: lambda: find_circuits(case.model, case.inputs, case.labels),
        FLOOR: copy_of(features.nbytes, device) if on_gpu else features.sum,
    }
    for name, make in PEERS.items():
        calls[name] = make(case.model, inputs, LABEL)
    seconds = in_rounds(calls, repeats, advance, device)
    by_name = {name: [value / 1e3 for value in quartiles(values)] for name, values in seconds.items()}
    median = {name: values[1] for name, values in by_name.items()}
    weights = sum(mask.numel() for mask in circuit.masks.values())
    loops = {name: weights * median[name] for name in PEERS}
    floor = median[FLOOR] * neurons_that_matter([mask.cpu() for mask in circuit.masks.values()])
    other = measure_batched(case, circuit, median[OURS], device) if on_gpu else {}
    return {
        **other,
        "case": case.name,
        "weights": weights,
        "inputs": len(inputs),
        "size": circuit.size,
        "seconds": median,
        "quartiles": by_name,
        "loop_seconds": loops,
        "ratios": {name: time / median[OURS] for name, time in loops.items()},
        "ratio_to_design": weights * PUBLISHED_SECONDS * len(inputs) / 1000 / median[OURS],
        "floor_seconds": floor,
        "by_floor": median[OURS] / floor,
    }


def measure_batched(case: CircuitCase, circuit: Circuit, ours: float, device: str) -> dict[str, Any]:
    """Run the batched walk to its end, from the model and the images to the masks, and compare these."""
    kept: list[torch.Tensor] = []

    def run() -> None:
        kept[:] = batched(case.model, case.of_class(LABEL), LABEL, device).run()

    seconds = seconds_of(run, device)
    pairs = list(zip(circuit.masks.values(), kept, strict=True))
    alike = sum(int((mask.cpu() == own).sum()) for mask, own in pairs)
    weights = sum(mask.numel() for mask, _ in pairs)
    return {
        "batched_seconds": seconds,
        "batched_ratio": seconds / ours,
        "batched_alike": alike / weights,
    }


def neurons_that_matter(masks: list[torch.Tensor]) -> int:
    """Count the neurons of the first layer that still lead to a logit when the walk reaches their weights."""
    leads = torch.ones(len(masks[-1]), dtype=torch.bool)
    for mask in reversed(masks[1:]):
        leads = mask[leads].any(0)
    return int(leads.sum())


# --- The table


def headings(report: dict[str, Any]) -> list[str]:
    return HEADINGS if report["device"] == "cpu" else [*HEADINGS, *BATCHED_HEADINGS]


def cells(result: dict[str, Any]) -> list[str]:
    low, ours, high = result["quartiles"][OURS]
    return [
        result["case"],
        f"{result['weights']:,}",
        f"{result['inputs']:,}",
        f"{100 * result['size']:.2f} %",
        f"{ours:.3f}",
        f"{low:.3f} - {high:.3f}",
        f"{result['seconds'][ALL]:.2f}",
        *(f"{result['loop_seconds'][name] / 3600:.3f}" for name in PEERS),
        *(f"{result['ratios'][name]:,.0f} x" for name in PEERS),
        f"{result['floor_seconds']:.3f}",
        f"{result['by_floor']:.1f}",
        *batched_cells(result),
    ]


def batched_cells(result: dict[str, Any]) -> list[str]:
    if "batched_seconds" not in result:
        return []
    return [
        f"{result['batched_seconds']:.2f}",
        f"{result['batched_ratio']:.1f} x",
        f"{100 * result['batched_alike']:.2f} %",
    ]


def setting(report: dict[str, Any]) -> str:
    """Return what the times depend on, in one line."""
    return f"{report['date']}: {where(report)}; {versions(report)}"


def caption(report: dict[str, Any]) -> str:
    """Return the caption, with the ratio to the published loop's rate as measured for the design."""
    ratios = ", ".join(f"{case['case']} {case['ratio_to_design']:,.0f} x" for case in report["cases"])
    rate = f"the {PUBLISHED_SECONDS} s for a trial of 1,000 images that the design measured"
    return f"{CAPTION} At {rate}: {ratios}.{'' if report['device'] == 'cpu' else BATCHED_CAPTION}"


def markdown(report: dict[str, Any]) -> str:
    table = as_markdown(headings(report), [cells(result) for result in report["cases"]])
    return f"{setting(report)}\n\n{table}\n\n{caption(report)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run", type=Path, nargs="+", default=[], metavar="DIR", help="also time the models of these runs"
    )
    parser.add_argument("--data", default="digits", metavar="DATA", help="the data of these runs")
    parser.add_argument("--only-runs", action="store_true", help="time the models of --run alone")
    add_device_option(parser)
    add_options(parser, repeats=5)
    add_page_option(parser)
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, table_name("circuits", options.device))
    device = device_of(parser, options.device)
    torch.set_num_threads(options.threads)
    makers: list[Callable[[], CircuitCase]] = [] if options.only_runs else [digits, noisy_patterns]
    if makers and find_spec("sklearn") is None:
        print("without scikit-learn, which has the digits, their network is left out", file=sys.stderr)
        makers.remove(digits)
    makers += [lambda folder=folder: of_run(folder, options.data) for folder in options.run]
    report: dict[str, Any] = {
        **what_times_depend_on(),
        **facts(options.device, device),
        "repeats": options.repeats,
        "cases": [],
    }
    # The display is drawn between rounds: a thread that draws in the background would be timed as well.
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        for make in makers:
            case = make()
            task = progress.add_task(case.name, total=options.repeats)

            def advance(task: Any = task) -> None:
                progress.update(task, advance=1, refresh=True)

            progress.refresh()
            on_gpu = options.device != "cpu"
            report["cases"].append(measure(case, options.repeats, advance, device, on_gpu))

    rows = [cells(result) for result in report["cases"]]
    show(setting(report), caption(report), headings(report), rows)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, table_name("circuits", options.device), markdown(report))


if __name__ == "__main__":
    main()
