"""Pictures of a whole network's clusters: measures over their number, and all layers sorted by them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from modfast.report.cells import cell_edges, cluster_starts
from modfast.report.network_table import largest_shuffled_gap, shuffled_cuts, z_score
from modfast.report.numbers import name_end

from .spectrum import CHANCE, CHOSEN, FOUND, draw_spectrum
from .style import new_figure, save_figure
from .weights import cluster_ticks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modfast.partition import Partition

# Cells across one of the small maps; each is a few pixels wide.
_CELLS = 48

# Few layers get larger maps; at most this many stand in a row with the larger ones.
_MOST_LARGE, _LARGE_COLUMNS, _COLUMNS = 50, 5, 7


def draw_curve(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Draw the normalised cut, its z-score against shuffled networks, and the eigenvalues.

    Args:
        path: PNG file to write.
        record: ``network_clustering`` of a finished clustering.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> clusters = [{"num_clusters": k, "normalized_cut": 0.5 * k, "gap": 0.1} for k in (2, 3)]
        >>> shuffled = {"normalized_cuts": {"2": 1.1, "3": 2.1}, "eigenvalues": [1, 0.2, 0.1, 0.1]}
        >>> shuffles = {"0": {**shuffled, "largest_gap": 0.1}}
        >>> record = {"clusters": clusters, "shuffled": shuffles, "chosen": 2}
        >>> record["eigenvalues"] = [1, 0.9, 0.2, 0.1]
        >>> path = Path(tempfile.mkdtemp()) / "curve.png"
        >>> draw_curve(path, {**record, "units": 40, "layers": {}})
        >>> path.exists()
        True
    """
    figure = new_figure(3.4)
    cuts, scores, values = figure.subplots(1, 3)
    _draw_cuts(cuts, record)
    _draw_scores(scores, record)
    _draw_eigenvalues(values, record)
    for axes in (cuts, scores, values):
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (cuts, scores):
        axes.axvline(record["chosen"], color=CHOSEN, linewidth=1.2)
        axes.set_xlabel("number of clusters k", fontsize=9)
    handles = {
        label: handle
        for axes in (cuts, values)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    title = f"{record['units']} units, {len(record['layers'])} weights"
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=4, fontsize=8, title=title
    )
    save_figure(figure, path)


def _draw_cuts(axes: Axes, record: Mapping[str, Any]) -> None:
    # One cluster has the cut 0 whatever the network.
    shown = [each for each in record["clusters"] if each["num_clusters"] > 1]
    counts = [each["num_clusters"] for each in shown]
    own = [each["normalized_cut"] / (k - 1) for k, each in zip(counts, shown, strict=True)]
    shuffled = [[cut / (k - 1) for cut in shuffled_cuts(record, k)] for k in counts]
    axes.plot(counts, own, color=FOUND, marker="o", markersize=3, label="this network")
    middle = [float(np.mean(each)) for each in shuffled]
    dashed: dict[str, Any] = {"linestyle": "--", "marker": "x", "markersize": 3}
    axes.plot(counts, middle, color=CHANCE, label="shuffled weights", **dashed)
    axes.fill_between(
        counts, [min(each) for each in shuffled], [max(each) for each in shuffled], color=CHANCE, alpha=0.3
    )
    low, high = min([*own, *middle], default=0.0), max([*own, *middle], default=0.0)
    if high > low:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_title("normalised cut / (k - 1)\n(lower: more separate)", fontsize=9)


def _draw_scores(axes: Axes, record: Mapping[str, Any]) -> None:
    scores = {each["num_clusters"]: z_score(record, each) for each in record["clusters"]}
    known = {k: score for k, score in scores.items() if score is not None}
    axes.plot(list(known), list(known.values()), color=FOUND, marker="o", markersize=3)
    axes.axhline(0.0, color=CHANCE, linestyle="--")
    axes.set_title("z-score of the cut\n(standard deviations from shuffled)", fontsize=9)


def _draw_eigenvalues(axes: Axes, record: Mapping[str, Any]) -> None:
    values = record["eigenvalues"]
    first = next(iter(record["shuffled"].values()))["eigenvalues"]
    chosen, largest = record["chosen"], largest_shuffled_gap(record)
    title = f"eigenvalues (k = {chosen}: no gap to show)"
    if chosen < len(values):
        gap = values[chosen - 1] - values[chosen]
        title = f"eigenvalues, gap {gap:.4f} at k = {chosen}"
        title += "" if largest is None else f"\n(shuffled: at most {largest:.4f})"
    draw_spectrum(axes, values, [first], chosen, gap_label="chosen k (largest gap)")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("eigenvalue number", fontsize=9)


def draw_layers(
    path: str | os.PathLike[str],
    record: Mapping[str, Any],
    weight: Callable[[str], Tensor],
    partitions: Mapping[str, Partition],
) -> None:
    """Draw every layer as a small map, rows and columns sorted by the clusters that all layers share.

    A cell is the mean of ``|W|`` over some rows and columns of one cluster each, in comparison with the mean
    of its matrix. If the clusters are modules, the blocks on the diagonal are above the mean.

    Args:
        path: PNG file to write.
        record: ``network_clustering`` of a finished clustering.
        weight: returns the weight of a layer, ``(out, in, *kernel)``, by name; called for one at a time.
        partitions: the partition of each layer that is drawn.

    Raises:
        ValueError: there is no layer.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from modfast.partition import Partition
        >>> layers = {"fc": {"role": "linear", "shape": [8, 6]}}
        >>> path = Path(tempfile.mkdtemp()) / "layers.png"
        >>> partitions = {"fc": Partition.blocks((8, 6), 2)}
        >>> draw_layers(path, {"layers": layers, "chosen": 2}, lambda name: torch.rand(8, 6), partitions)
        >>> path.exists()
        True
    """
    if not partitions:
        raise ValueError("partitions must name at least one layer, got none")
    columns = min(len(partitions), _LARGE_COLUMNS if len(partitions) <= _MOST_LARGE else _COLUMNS)
    rows = -(-len(partitions) // columns)
    side = 9.6 / max(columns, 3)
    figure = new_figure(rows * side * 1.12 + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False)
    maps = {name: _Map(weight(name), partition) for name, partition in partitions.items()}
    drawn = np.abs(np.concatenate([each.values.ravel() for each in maps.values()]))
    top = float(np.clip(np.percentile(drawn, 99), 0.5, 3.0))
    mesh: Any = None
    small = columns > _LARGE_COLUMNS
    for axes in grid.flat[len(maps) :]:
        axes.axis("off")
    for axes, (name, each) in zip(grid.flat, maps.items(), strict=False):
        mesh = each.draw(axes, top)
        about = record["layers"][name]
        shape = " x ".join(map(str, about["shape"]))
        title = f"{name_end(name, 28)}\n{about['role']}, {shape}"
        axes.set_title(title, fontsize=4.8 if small else 6.5)
    bar = figure.colorbar(
        mesh, ax=grid, location="top", extend="both", aspect=60, shrink=0.6, fraction=0.02, pad=0.01
    )
    step = 0.25 if top < 1.0 else 0.5
    ticks = step * np.arange(-np.floor(top / step), np.floor(top / step) + 1)
    bar.set_ticks(ticks.tolist(), labels=[f"{2**tick:.2g}" for tick in ticks])
    bar.set_label(
        f"mean |weight| in a cell, in multiples of the matrix's mean; rows (outputs) and columns (inputs) "
        f"sorted into {record['chosen']} clusters that all layers share",
        fontsize=8,
    )
    bar.ax.tick_params(labelsize=7)
    save_figure(figure, path)


class _Map:
    """The cells of one small map: the logarithm to base 2 of their mean over that of the matrix."""

    def __init__(self, weight: Tensor, partition: Partition) -> None:
        magnitudes = weight.detach().cpu().to(torch.float32).abs()
        magnitudes = magnitudes.flatten(2).sum(2) if magnitudes.dim() > 2 else magnitudes
        orders = partition.row_order().cpu(), partition.col_order().cpu()
        sides = partition.row_labels.cpu(), partition.col_labels.cpu()
        self.labels = [labels[order].numpy() for labels, order in zip(sides, orders, strict=True)]
        self.starts = [cluster_starts(labels) for labels in self.labels]
        self.edges = [cell_edges(starts, _CELLS) for starts in self.starts]
        rows, cols = self.edges
        # Rows first, so that only a few long sums are in float64.
        sums = np.add.reduceat(magnitudes[orders[0]].numpy(), rows[:-1], axis=0, dtype=np.float64)
        sums = np.add.reduceat(sums[:, orders[1].numpy()], cols[:-1], axis=1)
        means = sums / np.outer(np.diff(rows), np.diff(cols))
        overall = float(sums.sum()) / magnitudes.numel()
        ratios = means / overall if overall > 0 else np.ones_like(means)
        self.values: NDArray[np.float64] = np.log2(np.maximum(ratios, 2.0**-8))

    def draw(self, axes: Axes, top: float) -> Any:
        rows, cols = self.edges
        mesh = axes.pcolormesh(cols, rows, self.values, cmap="RdBu_r", vmin=-top, vmax=top, rasterized=True)
        axes.invert_yaxis()
        for border in self.starts[0][1:-1]:
            axes.axhline(border, color="black", linewidth=0.25)
        for border in self.starts[1][1:-1]:
            axes.axvline(border, color="black", linewidth=0.25)
        axes.set_xticks(*cluster_ticks(self.starts[1], self.labels[1], least=0.07))
        axes.set_yticks(*cluster_ticks(self.starts[0], self.labels[0], least=0.07))
        axes.tick_params(length=0, labelsize=5, pad=1)
        return mesh
