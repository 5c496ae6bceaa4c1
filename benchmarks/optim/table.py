"""Time the optimiser's step beside PyTorch's fused AdamW, as a table. See docs/speed/optimiser.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.device import facts, where
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
from benchmarks.common.rounds import in_rounds, quartiles
from benchmarks.optim.peers import (
    ACCUMULATE,
    CASES,
    FUSED,
    PLAIN,
    TOPK,
    WITH_KEEP,
    WITH_LOSS,
    Case,
    contestants,
)
from modfast.files import write_json

CAPTION = (
    "Medians of a step over all weights. The columns with x say how many times as long as PyTorch's fused "
    "AdamW alone each took: modfast's AdamW without and with the loss, and with the loss and keep=0.1; the "
    "loss apart from the step; and a tenth kept by torch.topk and a mask."
)
HEADINGS = [
    "weights",
    f"{FUSED}, ms",
    "quartiles, ms",
    PLAIN,
    WITH_LOSS,
    WITH_KEEP,
    ACCUMULATE,
    TOPK,
    f"{TOPK} / {WITH_KEEP}",
]


def measure(case: Case, repeats: int, advance: Callable[[], None]) -> dict[str, Any]:
    calls = contestants(case)
    for call in calls.values():  # the first steps make the moments, and find the first threshold
        call()
    # A contestant of seconds is timed once.
    seconds = in_rounds(calls, repeats, advance, once_above=1.0)
    by_name = {name: quartiles(values) for name, values in seconds.items()}
    median = {name: values[1] for name, values in by_name.items()}
    return {
        "case": str(case),
        "shapes": case.shapes,
        "clusters": case.clusters,
        "milliseconds": median,
        "quartiles": by_name,
        "ratios": {name: median[name] / median[FUSED] for name in median if name != FUSED},
        "topk_over_keep": median[TOPK] / median[WITH_KEEP],
    }


def cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table, under its headings."""
    low, fused, high = result["quartiles"][FUSED]
    return [
        result["case"],
        f"{fused:.3f}",
        f"{low:.3f} - {high:.3f}",
        *(f"{ratio:.2f} x" for ratio in result["ratios"].values()),
        f"{result['topk_over_keep']:.0f}",
    ]


def setting(report: dict[str, Any]) -> str:
    """Return what the times depend on, in one line."""
    return f"{report['date']}: {where(report)}; {versions(report)}"


def markdown(report: dict[str, Any]) -> str:
    table = as_markdown(HEADINGS, [cells(result) for result in report["results"]])
    return f"{setting(report)}\n\n{table}\n\n{CAPTION}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=names, default=names, metavar="NAME", help=f"of: {', '.join(names)}"
    )
    add_options(parser, repeats=11)
    add_page_option(parser)
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, "optim")
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        **what_times_depend_on(),
        **facts("cpu", "cpu"),
        "repeats": options.repeats,
        "results": [],
    }
    # The display is drawn between rounds: a thread that draws in the background would be timed as well.
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        for case in CASES:
            if case.name not in options.cases:
                continue
            task = progress.add_task(str(case), total=options.repeats)

            def advance(task: Any = task) -> None:
                progress.update(task, advance=1, refresh=True)

            report["results"].append(measure(case, options.repeats, advance))
    rows = [cells(result) for result in report["results"]]
    show(setting(report), CAPTION, HEADINGS, rows)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, "optim", markdown(report))


if __name__ == "__main__":
    main()
