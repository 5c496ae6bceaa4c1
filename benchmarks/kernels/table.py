"""Compile the CUDA kernels and print what they take: registers, spills, occupancy, least times.

No GPU is used. See benchmarks/README.md. `docs/speed/cuda-kernels.md` is written from the results that are
kept in `resources.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common.pages import add_page_option, as_markdown, check_page, put_into_page, show
from benchmarks.kernels.compiler import CompilerError, Resources, all_kernels, compile_all, sources
from benchmarks.kernels.occupancy import LIMITS, Occupancy, occupancy
from benchmarks.kernels.traffic import ALL_SHARED, CASES, Traffic, base_name, launch_shared, traffic
from build_cuda import NVCC_FLAGS, NoToolkitError, find_toolkit
from modfast.files import write_json

KEPT = Path(__file__).with_name("resources.json")
ARCHITECTURES = ("8.0", "9.0", "10.0")


class Gpu(NamedTuple):
    """A GPU as its maker's data sheet describes it."""

    name: str
    architecture: str
    bandwidth: float  # bytes per second
    multiprocessors: int


GPUS = [
    Gpu("A100 40 GB", "8.0", 1555e9, 108),
    Gpu("H100 SXM", "9.0", 3350e9, 132),
    Gpu("B200", "10.0", 8000e9, 148),
]

RESOURCES_CAPTION = (
    "Under an architecture: registers of a thread, and the occupancy: warps that a multiprocessor runs at a "
    "time, and what limits them; without a word only the most that there can be, 64. Shared memory after a + "
    "is what the launch adds in the case of the last table."
)
SPILLS_CAPTION = "Bytes of a thread that do not fit into registers: stored, loaded."
TIMES_CAPTION = (
    "Under a GPU: the time in microseconds that its bandwidth allows for these bytes, and, in brackets, how "
    "many times the launch's blocks fill it. "
    + "; ".join(f"{name.capitalize()}: {case}" for name, case in CASES.items())
    + "."
)


def occupancy_of(resources: Resources) -> Occupancy:
    shared = resources.shared + launch_shared(resources.kernel)
    if base_name(resources.kernel) in ALL_SHARED:
        limits = LIMITS[resources.architecture]
        shared = limits.shared - limits.shared_of_system
    return occupancy(resources.architecture, resources.threads, resources.registers, shared)


def by_kernel(report: dict[str, Any]) -> list[list[Resources]]:
    """Return the resources of each kernel, in the order of the report's architectures."""
    order: list[str] = report["architectures"]
    kernels = sorted(
        (Resources(**kernel) for kernel in report["kernels"]),
        key=lambda each: (each.source, each.kernel, order.index(each.architecture)),
    )
    return [list(group) for _, group in groupby(kernels, key=lambda each: (each.source, each.kernel))]


# --- The tables


def shared_cell(group: Sequence[Resources]) -> str:
    if base_name(group[0].kernel) in ALL_SHARED:
        return "all"
    own = " / ".join(dict.fromkeys(f"{each.shared:,}" for each in group))
    more = launch_shared(group[0].kernel)
    return f"{own} + {more:,}" if more else own


def resource_cell(resources: Resources) -> str:
    filled = occupancy_of(resources)
    limit = "" if filled.warps == filled.most_warps else f" ({filled.limited_by})"
    return f"{resources.registers}, {filled.warps}{limit}"


def resource_rows(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"`{group[0].kernel}`",
            group[0].source,
            str(group[0].threads),
            shared_cell(group),
            " / ".join(dict.fromkeys(str(each.barriers) for each in group)),
            *map(resource_cell, group),
        ]
        for group in by_kernel(report)
    ]


def spill_rows(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"`{group[0].kernel}`",
            *(
                f"{each.spill_stores}, {each.spill_loads}" if each.spill_stores or each.spill_loads else "-"
                for each in group
            ),
        ]
        for group in by_kernel(report)
        if any(each.spill_stores or each.spill_loads for each in group)
    ]


def amount(number: int) -> str:
    """Return a number of bytes with a unit."""
    if number < 10_000:
        return f"{number:,} B"
    return f"{number / 1e3:,.1f} kB" if number < 1_000_000 else f"{number / 1e6:,.1f} MB"


def time_cell(gpu: Gpu, resources: Resources, moved: Traffic) -> str:
    at_once = gpu.multiprocessors * occupancy_of(resources).blocks
    fills = f"{moved.blocks / at_once:.1f}" if moved.blocks >= 0.1 * at_once else "< 0.1"
    return f"{1e6 * moved.bytes / gpu.bandwidth:,.2f} ({fills})"


def time_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for group in by_kernel(report):
        moved = traffic(group[0].kernel)
        if moved is None:
            rows.append([f"`{group[0].kernel}`", *["unknown"] * (3 + len(GPUS))])
            continue
        of = {resources.architecture: resources for resources in group}
        times = [time_cell(gpu, of[gpu.architecture], moved) for gpu in GPUS]
        rows.append([f"`{group[0].kernel}`", moved.case, moved.formula, amount(moved.bytes), *times])
    return rows


def tables(report: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Return the title, headings, rows and caption of each table."""
    architectures = [f"sm_{name.replace('.', '')}" for name in report["architectures"]]
    return [
        (
            "Resources and occupancy",
            ["kernel", "source", "threads", "shared, bytes", "barriers", *architectures],
            resource_rows(report),
            RESOURCES_CAPTION,
        ),
        ("Spilled registers", ["kernel", *architectures], spill_rows(report), SPILLS_CAPTION),
        (
            "Least times",
            ["kernel", "case", "what is moved", "bytes", *(gpu.name for gpu in GPUS)],
            time_rows(report),
            TIMES_CAPTION,
        ),
    ]


def setting(report: dict[str, Any]) -> str:
    return f"{report['date']}: nvcc {report['nvcc']}, {' '.join(report['flags'])}"


def markdown(report: dict[str, Any]) -> str:
    parts = [f"`{setting(report)}`\n"]
    for title, headings, rows, caption in tables(report):
        body = f"{as_markdown(headings, rows)}\n\n{caption}" if rows else "None."
        parts.append(f"## {title}\n\n{body}\n")
    return "\n".join(parts)


# --- From the command line


def measure(architectures: Sequence[str]) -> dict[str, Any]:
    """Compile all kernels.

    Raises:
        NoToolkitError, CompilerError: there is no toolkit, or it fails.
    """
    toolkit = find_toolkit(torch.version.cuda or "13")
    found = compile_all(toolkit, sources(), architectures)
    if missing := all_kernels() - {base_name(each.kernel) for each in found}:
        raise CompilerError(f"kernels without a report of the compiler: {', '.join(sorted(missing))}")
    return {
        "date": date.today().isoformat(),
        "nvcc": toolkit.release,
        "flags": list(NVCC_FLAGS),
        "architectures": list(architectures),
        "kernels": [each._asdict() for each in found],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", action="store_true", help=f"compile nothing, read {KEPT.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    add_page_option(parser)
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, "kernels")
    try:
        report = json.loads(KEPT.read_text(encoding="utf-8")) if options.kept else measure(ARCHITECTURES)
    except (NoToolkitError, CompilerError) as error:
        parser.error(str(error))
    for title, headings, rows, caption in tables(report):
        show(f"{title}. {setting(report)}", caption, headings, rows)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, "kernels", markdown(report))


if __name__ == "__main__":
    main()
