"""Pictures of weights: each layer twice, before and after training or before and after sorting."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from torch import Tensor

from modfast.report.cells import cell_edges, cluster_starts
from modfast.report.numbers import name_end

from .style import new_figure, save_figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modfast.partition import Partition

# At most this many drawn cells across a panel: each is then wider than a pixel, so none is skipped.
MOST_COLUMNS = 256
MOST_ROWS = 128


class Panel(NamedTuple):
    """A weight to draw.

    Attributes:
        magnitude: (out, in), as :func:`magnitude` returns it.
        partition: the clusters by which it is sorted; None draws it as it is stored.
        title: two lines at most.
        unit: what a row is: a neuron, or a convolution's channel.
    """

    magnitude: NDArray[np.float64]
    partition: Partition | None
    title: str
    unit: str


def magnitude(
    argument: str, weight: Tensor, partition: Partition | None, *, finite: bool = True
) -> NDArray[np.float64]:
    """Return |weight| as (out, in) float64, a convolution's kernel reduced to its Euclidean norm.

    Args:
        argument: the name of the weight, for messages.
        weight: ``(out, in, *kernel)``.
        partition: the clusters that it must fit, or None.
        finite: whether NaN and infinity raise.

    Raises:
        ValueError: the weight does not fit the partition or is not finite; named ``argument``.
    """
    if partition is not None and (weight.ndim < 2 or tuple(weight.shape[:2]) != tuple(partition.shape)):
        raise ValueError(
            f"{argument} must have the partition's shape {tuple(partition.shape)} in its first two "
            f"dimensions, got {tuple(weight.shape)}"
        )
    values = weight.detach().cpu().to(torch.float64)
    if finite and not bool(torch.isfinite(values).all()):
        raise ValueError(f"{argument} must be finite, got NaN or infinity in it")
    if values.ndim > 2:
        values = torch.linalg.vector_norm(values.flatten(2), dim=2)
    result: NDArray[np.float64] = values.abs().numpy()
    return result


def _clusterability(values: NDArray[np.float64], partition: Partition) -> float:
    """Return the share of squared weight inside clusters; 1 for an all-zero weight."""
    largest = float(values.max(initial=0.0))
    if largest == 0.0:
        return 1.0
    # The share does not depend on the scale, and at scale 1 squares neither overflow nor vanish.
    squares = (values / largest) ** 2
    inside = squares[partition.mask().cpu().numpy()]
    return float(inside.sum() / squares.sum())


def _axis_label(side: str, panel: Panel, edges: NDArray[np.int64]) -> str:
    group, unit = int(np.diff(edges).max()), panel.unit
    label = f"{side} {unit}, {'as stored' if panel.partition is None else 'by cluster'}"
    return label if group == 1 else f"{label}\n(a cell is the maximum of up to {group} {unit}s)"


def cluster_ticks(
    starts: NDArray[np.int64], labels: NDArray[np.int64], least: float = 0.045
) -> tuple[list[float], list[str]]:
    """Return the centres and names of the clusters whose share is enough for a readable name."""
    ticks, names = [], []
    for begin, end in pairwise(starts):
        if (end - begin) / starts[-1] >= least:
            ticks.append((begin + end) / 2)
            names.append("none" if labels[begin] < 0 else str(labels[begin]))
    return ticks, names


def draw_weights(
    path: str | os.PathLike[str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    partitions: Mapping[str, Partition],
) -> None:
    """Draw each layer's |weight| before and after training, rows and columns sorted by cluster.

    One row of panels for each layer of ``partitions``, with thin lines between clusters and one colour
    scale for both panels, whose top is the 99.5th percentile of what is drawn (an arrow on the colour
    bar says that larger values exist). Matrices with more neurons than the picture can show are drawn in
    groups of neighbours within a cluster, each group as its maximum, so that no weight is lost. The
    titles give the clusterability, computed here in float64.

    Args:
        path: PNG file to write.
        before: Layer name to weight, (out, in, *kernel), any floating dtype and device; a
            convolution's weight is drawn as the Euclidean norm over its kernel.
        after: The same for the weights after training.
        partitions: Layer name to the partition of that weight.

    Raises:
        ValueError: ``partitions`` is empty or holds a partition of nothing, a layer is missing from
            ``before`` or ``after``, or its weight does not fit the partition or is not finite.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from modfast.partition import Partition
        >>> target = Path(tempfile.mkdtemp()) / "weights.png"
        >>> partition = Partition.blocks((8, 12), 2)
        >>> before, after = {"fc": torch.ones(8, 12)}, {"fc": partition.mask().float()}
        >>> draw_weights(target, before, after, {"fc": partition})
        >>> target.exists()
        True
    """
    if not partitions:
        raise ValueError("partitions must name at least one layer, got none")
    for argument, weights in (("before", before), ("after", after)):
        for name in partitions:
            if name not in weights:
                raise ValueError(f"{argument} must hold layer {name!r}, got {sorted(weights)}")
    for name, partition in partitions.items():
        if 0 in partition.shape:
            raise ValueError(f"partitions[{name!r}] must have rows and columns, got shape {partition.shape}")

    pairs = []
    for name, partition in partitions.items():
        panels = []
        for moment, weights in (("before", before), ("after", after)):
            weight = weights[name]
            values = magnitude(f"{moment}[{name!r}]", weight, partition)
            shape = " x ".join(str(size) for size in weight.shape)
            title = (
                f"{name_end(name)} ({shape}) {moment} training\n"
                f"clusterability {_clusterability(values, partition):.3f}"
            )
            panels.append(Panel(values, partition, title, "neuron" if weight.ndim == 2 else "channel"))
        pairs.append((panels[0], panels[1]))
    draw_pairs(path, pairs)


def draw_pairs(
    path: str | os.PathLike[str], pairs: Sequence[tuple[Panel, Panel]], heading: str | None = None
) -> None:
    """Draw pairs of weights, each pair a row with one colour scale.

    Args:
        path: PNG file to write.
        pairs: the left and right panel of each row, of one shape without a side of 0.
        heading: a title above all rows.
    """
    shapes = [left.magnitude.shape for left, _ in pairs]
    heights = [min(max(3.6 * rows / columns, 1.8), 3.6) for rows, columns in shapes]
    figure = new_figure(sum(heights) + 1.0 * len(heights))
    panels = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for pair, axes in zip(pairs, panels, strict=True):
        _draw_pair(figure, axes, pair)
    if heading is not None:
        figure.suptitle(heading, fontsize=10)
    save_figure(figure, path)


class Cells(NamedTuple):
    """The cells of a panel: the largest weight in each, and where cells and clusters begin."""

    values: NDArray[np.float64]
    edges: tuple[NDArray[np.int64], NDArray[np.int64]]
    starts: tuple[NDArray[np.int64], NDArray[np.int64]]
    labels: tuple[NDArray[np.int64], NDArray[np.int64]]


def cells_of(panel: Panel) -> Cells:
    """Return the cells of a panel. A cell with NaN in it is NaN."""
    ordered = panel.magnitude
    if panel.partition is None:
        rows, cols = (np.zeros(size, dtype=np.int64) for size in ordered.shape)
    else:
        row_order, col_order = panel.partition.row_order().cpu(), panel.partition.col_order().cpu()
        rows = panel.partition.row_labels.cpu()[row_order].numpy()
        cols = panel.partition.col_labels.cpu()[col_order].numpy()
        ordered = ordered[row_order.numpy()][:, col_order.numpy()]
    starts = (cluster_starts(rows), cluster_starts(cols))
    edges = (cell_edges(starts[0], MOST_ROWS), cell_edges(starts[1], MOST_COLUMNS))
    values = np.maximum.reduceat(ordered, edges[0][:-1], axis=0)
    values = np.maximum.reduceat(values, edges[1][:-1], axis=1)
    return Cells(values, edges, starts, (rows, cols))


def colour_top(*panels: Cells) -> float:
    """Return the magnitude of the brightest colour: few outliers are above it."""
    drawn = np.concatenate([cells.values.ravel() for cells in panels])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return 1.0
    # A few outliers would leave everything else dark; few non-zero weights must still be seen.
    return float(np.percentile(drawn, 99.5)) or float(drawn.max()) or 1.0


def draw_panel(axes: Axes, panel: Panel, cells: Cells, top: float) -> QuadMesh:
    """Draw one weight: its cells, the borders of its clusters, title, and the names of both sides."""
    (row_edges, col_edges), (row_starts, col_starts) = cells.edges, cells.starts
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="lightgrey")
    values = np.ma.masked_invalid(cells.values)
    mesh = axes.pcolormesh(col_edges, row_edges, values, cmap=colours, vmin=0.0, vmax=top)
    # Axes that are shared or drawn into again may have been turned already.
    axes.yaxis.set_inverted(True)
    for border in row_starts[1:-1]:
        axes.axhline(border, color="white", linewidth=0.6)
    for border in col_starts[1:-1]:
        axes.axvline(border, color="white", linewidth=0.6)
    if panel.partition is not None:
        axes.set_xticks(*cluster_ticks(col_starts, cells.labels[1]))
        axes.set_yticks(*cluster_ticks(row_starts, cells.labels[0]))
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel(_axis_label("input", panel, col_edges), fontsize=9)
    axes.set_ylabel(_axis_label("output", panel, row_edges), fontsize=9)
    # A layer's name is no formula, though it may have dollars.
    axes.set_title(panel.title, fontsize=10, parse_math=False)
    return mesh


def weight_label(panel: Panel) -> str:
    """Return what the colours of a panel stand for."""
    return "|weight|" if panel.unit == "neuron" else "|weight|, norm over kernel"


def _draw_pair(figure: Figure, axes_pair: Sequence[Axes], pair: tuple[Panel, Panel]) -> None:
    cells = [cells_of(panel) for panel in pair]
    top = colour_top(*cells)
    for axes, panel, side in zip(axes_pair, pair, cells, strict=True):
        mesh = draw_panel(axes, panel, side, top)
    if pair[1].partition is pair[0].partition:
        axes_pair[1].set_ylabel("")
    largest = max(float(side.values.max()) for side in cells)
    bar = figure.colorbar(mesh, ax=axes_pair, extend="max" if largest > top else "neither", pad=0.01)
    bar.set_label(weight_label(pair[0]), fontsize=9)
