"""Time spectral clustering over decades of entries, and draw the exponents. See docs/speed/spectral.md."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import Progress
from scipy import sparse
from threadpoolctl import threadpool_limits

import modfast
from benchmarks.common.pages import add_options, versions, what_times_depend_on
from benchmarks.common.rounds import in_rounds, quartiles
from benchmarks.spectral.cases import GraphCase, WeightCase, block_model, plant
from benchmarks.spectral.peers import expert
from modfast.files import write_json
from modfast.report.pictures.runs import STYLES
from modfast.report.pictures.style import new_figure, save_figure

CLUSTERS = 8
PER_ROW = 100  # entries of a sparse weight, on average
SLOW_SECONDS = 5.0


class Series(NamedTuple):
    """A kind of input, and a function that makes one with a number of entries, ready to be clustered."""

    name: str
    least: float
    make: Callable[[int], tuple[int, Callable[[], object]]]  # entries wanted -> entries made, call to time


def dense(entries: int) -> tuple[int, Callable[[], object]]:
    cols = max(round(math.sqrt(entries / 4)), CLUSTERS)
    weight = plant(WeightCase(4 * cols, cols, CLUSTERS)).weight
    return weight.numel(), partial(modfast.spectral_cocluster, weight, CLUSTERS)


def compressed(entries: int) -> tuple[int, Callable[[], object]]:
    weight = sparse_weight(entries)
    return weight.nnz, partial(modfast.spectral_cocluster, weight, CLUSTERS)


def sparse_weight(entries: int) -> sparse.csr_array:
    """Return a square weight of normal numbers at random places, times 0.1 outside the clusters."""
    generator = np.random.default_rng(0)
    size = max(entries // PER_ROW, math.isqrt(entries))
    of_rows, of_cols = (generator.integers(CLUSTERS, size=size, dtype=np.int32) for _ in range(2))
    rows, cols = (generator.integers(size, size=entries, dtype=np.int32) for _ in range(2))
    values = generator.standard_normal(entries, dtype=np.float32)
    values[of_rows[rows] != of_cols[cols]] *= 0.1
    weight = sparse.csr_array((values, (rows, cols)), shape=(size, size))
    weight.sum_duplicates()
    return weight


def graph(entries: int, cluster: Callable[[Any, int], object]) -> tuple[int, Callable[[], object]]:
    # A node has twenty entries.
    adjacency, _ = block_model(GraphCase(max(entries // 20, 4 * CLUSTERS), CLUSTERS))
    return adjacency.nnz, partial(cluster, adjacency, CLUSTERS)


SERIES = [
    Series("dense weight", 2e4, dense),
    Series("sparse weight", 2e3, compressed),
    Series("graph", 2e3, partial(graph, cluster=modfast.spectral_cluster)),
    Series("graph, expert's eigsh and k-means", 2e3, partial(graph, cluster=expert)),
]


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """Return the slope of the least-squares line through the logarithms of entries and times."""
    entries, times = (np.log([point[key] for point in points]) for key in ("entries", "milliseconds"))
    return float(np.polyfit(entries, times, 1)[0])


def upper_half(points: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the points in the upper half of the decades, where a call's constant cost no longer shows."""
    middle = math.sqrt(points[0]["entries"] * points[-1]["entries"])
    return [point for point in points if point["entries"] >= 0.9 * middle]


def measure(series: Series, entries: int, repeats: int) -> dict[str, Any]:
    made, call = series.make(entries)
    seconds = in_rounds({series.name: call}, repeats, lambda: None, once_above=SLOW_SECONDS)
    low, median, high = quartiles(seconds[series.name])
    return {"entries": made, "milliseconds": median, "quartiles": [low, median, high]}


def draw(path: Path, report: dict[str, Any]) -> None:
    figure = new_figure(5.6)
    axes: Axes = figure.subplots()
    for (colour, marker, dashes), series in zip(STYLES, report["series"], strict=False):
        axes.loglog(
            [point["entries"] for point in series["points"]],
            [point["milliseconds"] / 1e3 for point in series["points"]],
            color=colour,
            marker=marker,
            linestyle=dashes,
            markersize=4,
            label=f"{series['name']}: exponent {series['exponent']:.2f}, "
            f"{series['upper_exponent']:.2f} in the upper half",
        )
    # The line goes through the last point of the first series, the largest dense weight.
    last = report["series"][0]["points"][-1]
    entries = np.array([2e3, last["entries"]])
    axes.loglog(
        entries,
        last["milliseconds"] / 1e3 * entries / last["entries"],
        color="0.5",
        linewidth=1,
        linestyle=":",
        label="proportional to the entries",
    )
    # Otherwise the line would extend the axis to where nothing was measured.
    axes.set_ylim(
        bottom=0.5e-3 * min(point["milliseconds"] for curve in report["series"] for point in curve["points"])
    )
    axes.set_xlabel("entries", fontsize=9)
    axes.set_ylabel("seconds", fontsize=9)
    axes.set_title(f"Spectral clustering into {CLUSTERS} clusters, {report['threads']} threads", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--decades",
        type=float,
        default=4.0,
        metavar="D",
        help="decades of entries; default 4: up to 2e8, sparse up to 2e7",
    )
    parser.add_argument(
        "--picture", type=Path, default=Path("docs/speed/spectral_scaling.png"), metavar="FILE"
    )
    add_options(parser, repeats=5)
    options = parser.parse_args(arguments)
    if not 1 <= options.decades <= 5:
        parser.error(f"--decades must be from 1 to 5, got {options.decades}")
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        **what_times_depend_on(),
        "threads": options.threads,
        "clusters": CLUSTERS,
        "series": [],
    }
    # Two points per decade.
    steps = np.linspace(0.0, options.decades, round(2 * options.decades) + 1)
    progress = Progress(console=Console(stderr=True), auto_refresh=False)
    with threadpool_limits(options.threads), progress:
        for series in SERIES:
            task = progress.add_task(series.name, total=len(steps))
            points = []
            for step in steps:
                points.append(measure(series, round(series.least * 10**step), options.repeats))
                progress.update(task, advance=1, refresh=True)
            report["series"].append(
                {
                    "name": series.name,
                    "exponent": exponent(points),
                    "upper_exponent": exponent(upper_half(points)),
                    "points": points,
                }
            )
    print(f"{versions(report)}, threads {options.threads}")
    for series in report["series"]:
        print(
            f"{series['name']}: time grows as entries^{series['exponent']:.2f}, "
            f"in the upper half of the decades as entries^{series['upper_exponent']:.2f}"
        )
    draw(options.picture, report)
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
