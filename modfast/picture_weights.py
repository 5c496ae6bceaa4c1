"""The picture of the weights: each layer before and after training, sorted by cluster."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from modfast.picture_style import name_end, new_figure, save_figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modfast.partition import Partition

# At most this many drawn cells across a panel: each is then wider than a pixel, so none is skipped.
MOST_COLUMNS = 256
MOST_ROWS = 128


def _magnitude(name: str, moment: str, weight: Tensor, partition: Partition) -> NDArray[np.float64]:
    """|weight| as (out, in) float64, a convolution's kernel reduced to its Euclidean norm."""
    if weight.ndim < 2 or tuple(weight.shape[:2]) != tuple(partition.shape):
        raise ValueError(
            f"{moment}[{name!r}] must have the partition's shape {tuple(partition.shape)} in its first two "
            f"dimensions, got {tuple(weight.shape)}"
        )
    values = weight.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{moment}[{name!r}] must be finite, got NaN or infinity in it")
    if values.ndim > 2:
        values = torch.linalg.vector_norm(values.flatten(2), dim=2)
    magnitude: NDArray[np.float64] = values.abs().numpy()
    return magnitude


def _clusterability(magnitude: NDArray[np.float64], partition: Partition) -> float:
    """Share of squared weight inside clusters; 1 for an all-zero weight, which crosses nothing."""
    largest = float(magnitude.max(initial=0.0))
    if largest == 0.0:
        return 1.0
    # The share does not depend on the scale, and at scale 1 squares neither overflow nor vanish.
    squares = (magnitude / largest) ** 2
    inside = squares[partition.mask().cpu().numpy()]
    return float(inside.sum() / squares.sum())


def _cluster_starts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions at which a new cluster begins in sorted labels, and the end."""
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    return np.concatenate(([0], changes, [len(labels)])).astype(np.int64)


def _cell_edges(starts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Edges of about ``most`` drawn cells of nearly equal size, none of them across two clusters."""
    size = math.ceil(int(starts[-1]) / most)
    pieces = [
        np.linspace(begin, end, math.ceil((end - begin) / size), endpoint=False)
        for begin, end in pairwise(starts)
    ]
    return np.concatenate([*pieces, starts[-1:]]).astype(np.int64)


def _axis_label(side: str, unit: str, edges: NDArray[np.int64]) -> str:
    group = int(np.diff(edges).max())
    label = f"{side} {unit}, by cluster"
    return label if group == 1 else f"{label}\n(a cell is the maximum of up to {group} {unit}s)"


def _cluster_ticks(starts: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[list[float], list[str]]:
    """Centres and names of those clusters that are wide enough for a readable name."""
    ticks, names = [], []
    for begin, end in pairwise(starts):
        if (end - begin) / starts[-1] >= 0.045:
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

    heights = [min(max(3.6 * p.shape[0] / p.shape[1], 1.8), 3.6) for p in partitions.values()]
    figure = new_figure(sum(heights) + 1.0 * len(heights))
    panels = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (name, partition), (left, right) in zip(partitions.items(), panels, strict=True):
        _draw_layer(figure, (left, right), name, before[name], after[name], partition)
    save_figure(figure, path)


def _draw_layer(
    figure: Figure,
    panels: tuple[Axes, Axes],
    name: str,
    before: Tensor,
    after: Tensor,
    partition: Partition,
) -> None:
    row_order, col_order = partition.row_order().cpu(), partition.col_order().cpu()
    row_labels = partition.row_labels.cpu()[row_order].numpy()
    col_labels = partition.col_labels.cpu()[col_order].numpy()
    row_starts, col_starts = _cluster_starts(row_labels), _cluster_starts(col_labels)
    row_edges, col_edges = _cell_edges(row_starts, MOST_ROWS), _cell_edges(col_starts, MOST_COLUMNS)

    cells, shares = [], []
    for moment, weight in (("before", before), ("after", after)):
        magnitude = _magnitude(name, moment, weight, partition)
        shares.append(_clusterability(magnitude, partition))
        ordered = magnitude[row_order.numpy()][:, col_order.numpy()]
        rows = np.maximum.reduceat(ordered, row_edges[:-1], axis=0)
        cells.append(np.maximum.reduceat(rows, col_edges[:-1], axis=1))

    drawn = np.concatenate([cell.ravel() for cell in cells])
    largest = float(drawn.max())
    # A few outliers would leave everything else dark; few non-zero weights must still be seen.
    top = float(np.percentile(drawn, 99.5)) or largest or 1.0
    shape = " x ".join(str(size) for size in after.shape)
    unit = "neuron" if after.ndim == 2 else "channel"
    for axes, cell, share, moment in zip(panels, cells, shares, ("before", "after"), strict=True):
        mesh = axes.pcolormesh(col_edges, row_edges, cell, cmap="viridis", vmin=0.0, vmax=top)
        axes.invert_yaxis()
        for border in row_starts[1:-1]:
            axes.axhline(border, color="white", linewidth=0.6)
        for border in col_starts[1:-1]:
            axes.axvline(border, color="white", linewidth=0.6)
        axes.set_xticks(*_cluster_ticks(col_starts, col_labels))
        axes.set_yticks(*_cluster_ticks(row_starts, row_labels))
        axes.tick_params(length=0, labelsize=8)
        axes.set_xlabel(_axis_label("input", unit, col_edges), fontsize=9)
        axes.set_title(
            f"{name_end(name)} ({shape}) {moment} training\nclusterability {share:.3f}", fontsize=10
        )
    panels[0].set_ylabel(_axis_label("output", unit, row_edges), fontsize=9)
    bar = figure.colorbar(mesh, ax=panels, extend="max" if largest > top else "neither", pad=0.01)
    bar.set_label("|weight|" if after.ndim == 2 else "|weight|, norm over kernel", fontsize=9)
