"""The pictures of a run: weights, curves, class accuracy, and plain against modular.

Every function writes one PNG, whole or not at all; the same input gives the same bytes with the same
matplotlib. Only matplotlib's object-oriented interface is used, so a caller's own figures and backend
stay untouched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from modfast.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modfast.partition import Partition

DOTS_PER_INCH = 150
WIDTH = 9.6  # inches: 1440 pixels

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and dashes repeat the
# distinction for print without colour.
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))

# At most this many drawn cells across a panel: each is then wider than a pixel, so none is skipped.
MOST_COLUMNS = 256
MOST_ROWS = 128

MOST_NUMBERED_CLASSES = 20

# Percentage points of a class's accuracy by which a cluster is said to matter.
MARGIN = 10.0


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        # Without the Software entry the bytes do not change with matplotlib's version number alone.
        figure.savefig(temporary, format="png", dpi="figure", metadata={"Software": None})


def _end(name: str, most: int = 34) -> str:
    # Layers of one network differ in the ends of their names.
    return name if len(name) <= most else "…" + name[1 - most :]


def _style(name: str, position: int) -> tuple[str, str, str]:
    # A picture of a single modular run has the colours it has beside a plain one.
    known = {"plain": 0, "modular": 1}
    return STYLES[known.get(name, position) % len(STYLES)]


# ---------------------------------------------------------------------------------------- weights


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
    figure = _figure(sum(heights) + 1.0 * len(heights))
    panels = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (name, partition), (left, right) in zip(partitions.items(), panels, strict=True):
        _draw_layer(figure, (left, right), name, before[name], after[name], partition)
    _save(figure, path)


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
        axes.set_title(f"{_end(name)} ({shape}) {moment} training\nclusterability {share:.3f}", fontsize=10)
    panels[0].set_ylabel(_axis_label("output", unit, row_edges), fontsize=9)
    bar = figure.colorbar(mesh, ax=panels, extend="max" if largest > top else "neither", pad=0.01)
    bar.set_label("|weight|" if after.ndim == 2 else "|weight|, norm over kernel", fontsize=9)


# ----------------------------------------------------------------------------------------- curves


def _by_epoch(
    histories: Sequence[Sequence[Mapping[str, Any]]], measure: str, layer: str | None = None
) -> dict[int, list[float]]:
    """Epoch to the seeds' values, in the order of epochs."""
    values: dict[int, list[float]] = {}
    for history in histories:
        for record in history:
            value = record[measure] if layer is None else record[measure].get(layer)
            if value is not None:
                values.setdefault(int(record["epoch"]), []).append(float(value))
    return dict(sorted(values.items()))


def draw_curves(
    path: str | os.PathLike[str],
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    regularised: Sequence[str] = (),
) -> None:
    """Draw cross-entropy, test accuracy and each layer's clusterability over the epochs.

    A line is the mean over seeds, a band reaches from the smallest to the largest seed.

    Args:
        path: PNG file to write.
        runs: ``"plain"`` and ``"modular"`` (either or both) to one history for each seed; a history
            is a list of records with the keys ``epoch`` (from 1), ``cross_entropy``,
            ``test_accuracy`` (a share, drawn in percent) and ``clusterability`` (layer name to
            share). Histories may differ in length.
        regularised: Layers trained for modularity, marked in their panels' titles.

    Raises:
        ValueError: ``runs`` is empty or holds a name without any epoch.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "curves.png"
        >>> record = {"epoch": 1, "cross_entropy": 1.2, "test_accuracy": 0.6, "clusterability": {"fc2": 0.4}}
        >>> draw_curves(target, {"modular": [[record]]}, regularised=["fc2"])
        >>> target.exists()
        True
    """
    if not runs:
        raise ValueError("runs must name at least one kind of run, got none")
    for name, histories in runs.items():
        if not any(histories):
            raise ValueError(f"runs[{name!r}] must hold at least one epoch, got none")
    every_record = [record for histories in runs.values() for history in histories for record in history]
    layers = list(dict.fromkeys(layer for record in every_record for layer in record["clusterability"]))

    columns = min(3, max(1, len(layers)))
    rows = math.ceil(len(layers) / columns)
    figure = _figure(2.9 * (1 + rows) + 0.5)
    # Six columns divide into two, and into one, two or three.
    grid = figure.add_gridspec(1 + rows, 6)
    panels = [figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])]
    _draw_measure(panels[0], runs, "cross_entropy", None, 1.0)
    panels[0].set_title("Cross-entropy in training", fontsize=10)
    panels[0].set_ylabel("cross-entropy (nats)", fontsize=9)
    panels[0].set_ylim(bottom=0.0)
    _draw_measure(panels[1], runs, "test_accuracy", None, 100.0)
    panels[1].set_title("Test accuracy", fontsize=10)
    panels[1].set_ylabel("accuracy (%)", fontsize=9)
    width = 6 // columns
    for position, layer in enumerate(layers):
        column = width * (position % columns)
        axes = figure.add_subplot(grid[1 + position // columns, column : column + width])
        _draw_measure(axes, runs, "clusterability", layer, 1.0)
        axes.set_title(_end(layer) + (", regularised" if layer in regularised else ""), fontsize=10)
        axes.set_ylabel("clusterability", fontsize=9)
        axes.set_ylim(0.0, 1.04)
        panels.append(axes)
    last = max(int(record["epoch"]) for record in every_record)
    for axes in panels:
        axes.set_xlim(0.5, last + 0.5)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    handles, _ = panels[0].get_legend_handles_labels()
    labels = [_run_label(name, len(histories)) for name, histories in runs.items()]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9)
    _save(figure, path)


def _run_label(name: str, seeds: int) -> str:
    return f"{name}, one seed" if seeds == 1 else f"{name}, mean and range of {seeds} seeds"


def _draw_measure(
    axes: Axes,
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    measure: str,
    layer: str | None,
    scale: float,
) -> None:
    for position, (name, histories) in enumerate(runs.items()):
        values = _by_epoch(histories, measure, layer)
        colour, marker, dashes = _style(name, position)
        means = [scale * math.fsum(seeds) / len(seeds) for seeds in values.values()]
        low = [scale * min(seeds) for seeds in values.values()]
        high = [scale * max(seeds) for seeds in values.values()]
        axes.fill_between(list(values), low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            list(values),
            means,
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=3.5,
            # Markers tell the lines apart; on every one of many epochs they would hide them.
            markevery=max(1, len(means) // 12),
            label=name,
        )


# --------------------------------------------------------------------------------- class accuracy


def draw_class_accuracy(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    full: Tensor,
    only: Tensor,
    without: Tensor,
    layer: str,
) -> None:
    """Draw how well each class is recognised with one cluster alone, and with one cluster off.

    Args:
        path: PNG file to write.
        classes: Names of the classes.
        full: (classes,) accuracy of the whole network, shares in [0, 1]; NaN where a class has no image.
        only: (k, classes) accuracy with cluster ``i`` alone.
        without: (k, classes) accuracy with cluster ``i`` off.
        layer: The layer whose clusters are switched.

    Frames mark where one cluster alone stays within 10 points of the whole network, and where the network
    without it loses more. Up to 20 classes have their percentages written into the cells.

    Raises:
        ValueError: ``classes`` is empty, a tensor's shape does not fit it, or a value is outside [0, 1].

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "classes.png"
        >>> alone = torch.tensor([[0.9, 0.0], [0.1, 0.8]])
        >>> draw_class_accuracy(target, ["cat", "dog"], torch.tensor([0.9, 0.8]), alone, 1 - alone, "fc2")
        >>> target.exists()
        True
    """
    count = len(classes)
    if count == 0:
        raise ValueError("classes must name at least one class, got none")
    if tuple(full.shape) != (count,):
        raise ValueError(f"full must have the shape ({count},), got {tuple(full.shape)}")
    if only.ndim != 2 or only.shape[0] == 0 or only.shape[1] != count:
        raise ValueError(f"only must have the shape (clusters, {count}), got {tuple(only.shape)}")
    if without.shape != only.shape:
        raise ValueError(f"without must have only's shape {tuple(only.shape)}, got {tuple(without.shape)}")
    for name, shares in (("full", full), ("only", only), ("without", without)):
        outside = shares[(shares < 0) | (shares > 1)]
        if outside.numel():
            raise ValueError(f"{name} must be in [0, 1], got {outside[0].item()}")

    clusters = only.shape[0]
    figure = _figure(2.6 + 2 * max(0.32 * (clusters + 1), 1.2))
    panels = figure.subplots(2, 1)
    whole = full.detach().to("cpu", torch.float64).numpy()[None]
    titles = (
        f"One cluster of {_end(layer)} alone (framed: at most {MARGIN:.0f} points below the whole network)",
        f"One cluster of {_end(layer)} off (framed: more than {MARGIN:.0f} points below the whole network)",
    )
    for axes, shares, title, word in zip(panels, (only, without), titles, ("only", "without"), strict=True):
        table = 100.0 * np.concatenate([whole, shares.detach().to("cpu", torch.float64).numpy()])
        image = _draw_percentages(axes, table)
        loss = table[0] - table[1:]
        _frame(axes, loss <= MARGIN if word == "only" else loss > MARGIN)
        names = ["whole network", *(f"{word} cluster {cluster}" for cluster in range(clusters))]
        axes.set_yticks(range(clusters + 1), names, fontsize=9)
        # The line sets the unchanged network apart from its parts.
        axes.axhline(0.5, color="white", linewidth=3)
        step = math.ceil(count / MOST_NUMBERED_CLASSES)
        shown = range(0, count, step)
        names = [classes[i] if len(classes[i]) <= 20 else classes[i][:19] + "…" for i in shown]
        # Names stand upright only where each fits into its own share of the axis.
        crowded = max(len(name) for name in names) * len(names) > 100
        axes.set_xticks(shown, names, fontsize=9)
        if crowded:
            axes.tick_params(axis="x", labelrotation=45)
            for text in axes.get_xticklabels():
                text.set_horizontalalignment("right")
                text.set_rotation_mode("anchor")
        axes.set_title(title, fontsize=10)
        axes.tick_params(length=0)
    panels[1].set_xlabel("class", fontsize=9)
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.set_label("test accuracy on the class (%)", fontsize=9)
    _save(figure, path)


def _frame(axes: Axes, marked: NDArray[np.bool_]) -> None:
    """Frame the marked cells, given without the first row, which is the whole network's."""
    width = 1.8 if marked.shape[1] <= MOST_NUMBERED_CLASSES else 0.8
    for row, column in np.argwhere(marked):
        corner = (float(column) - 0.46, float(row) + 0.56)
        axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor="#D55E00", linewidth=width))


def _draw_percentages(axes: Axes, table: NDArray[np.float64]) -> Any:
    colours: Colormap = matplotlib.colormaps["viridis"].with_extremes(bad="lightgrey")
    image = axes.imshow(
        np.ma.masked_invalid(table),
        cmap=colours,
        vmin=0.0,
        vmax=100.0,
        aspect="auto",
        interpolation="nearest",
    )
    if table.shape[1] > MOST_NUMBERED_CLASSES:
        return image
    for (row, column), share in np.ndenumerate(table):
        text = "n/a" if math.isnan(share) else f"{share:.0f}"
        colour = "white" if share < 60.0 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return image


# ------------------------------------------------------------------------------------- comparison


def draw_comparison(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Draw accuracy and each layer's clusterability, plain against modular.

    Open dots are seeds; a filled marker with a bar is the mean with its 95% interval (no bar for a
    single seed).

    Args:
        path: PNG file to write.
        results: What ``modfast reproduce`` writes as ``results.json``: ``plain``, ``modular`` and
            ``difference`` as :func:`modfast.report.summarize` makes them, and optionally ``config``
            with ``regularised_layers``.

    Raises:
        ValueError: ``results`` lacks ``plain``, ``modular`` or ``difference``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from modfast.report import summarize
        >>> target = Path(tempfile.mkdtemp()) / "comparison.png"
        >>> run = {"accuracy": 0.9, "clusterability": {"fc2": 0.3}, "history": [{"seconds": 1.0}]}
        >>> draw_comparison(target, summarize([run], [run]))
        >>> target.exists()
        True
    """
    for key in ("plain", "modular", "difference"):
        if key not in results:
            raise ValueError(f"results must hold {key!r}, got {sorted(results)}")
    layers = list(results["plain"]["clusterability"])
    regularised = results.get("config", {}).get("regularised_layers", ())

    figure = _figure(max(4.2, 1.6 + 0.55 * len(layers)))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.0, 1.8]})
    for position, name in enumerate(("plain", "modular")):
        part = results[name]
        percent = [100.0 * accuracy for accuracy in part["accuracies"]]
        interval = part["accuracy_interval"]
        half = None if interval is None else 100.0 * interval
        _draw_mean(left, name, position, percent, 100.0 * part["accuracy"], half)
        for place, layer in enumerate(layers):
            _draw_mean(
                right,
                name,
                place + (-0.32 if name == "plain" else 0.08),
                part["clusterabilities"][layer],
                part["clusterability"][layer],
                part["clusterability_interval"][layer],
                horizontal=True,
            )

    left.set_xticks([0, 1], ["plain", "modular"])
    left.set_xlim(-0.6, 1.6)
    left.set_ylabel("test accuracy (%)", fontsize=9)
    left.set_title(f"Accuracy, modular - plain:\n{_difference(results['difference'])}", fontsize=10)
    left.grid(axis="y", alpha=0.3)
    names = [_end(layer) + ("\n(regularised)" if layer in regularised else "") for layer in layers]
    right.set_yticks(range(len(layers)), names, fontsize=9)
    right.set_ylim(len(layers) - 0.4, -0.6)
    right.set_xlim(0.0, 1.05)
    right.set_xlabel("clusterability (share of squared weight inside clusters)", fontsize=9)
    right.set_title("Clusterability by layer", fontsize=10)
    right.grid(axis="x", alpha=0.3)

    seeds = len(results["plain"]["accuracies"])
    meaning = "one seed" if seeds == 1 else f"mean and 95% interval, {seeds} seeds as open dots"
    handles, _ = left.get_legend_handles_labels()
    labels = [f"{name} ({meaning})" for name in ("plain", "modular")]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    _save(figure, path)


def _difference(difference: Mapping[str, Any]) -> str:
    text = f"{100.0 * difference['accuracy']:+.2f}"
    if difference["accuracy_interval"] is not None:
        text += f" ± {100.0 * difference['accuracy_interval']:.2f}"
    return text + " percentage points"


def _draw_mean(
    axes: Axes,
    name: str,
    place: float,
    seeds: Sequence[float],
    mean: float,
    half_width: float | None,
    horizontal: bool = False,
) -> None:
    colour, marker, _ = _style(name, 0)
    centre = (mean, place) if horizontal else (place, mean)
    axes.errorbar(
        *centre,
        xerr=half_width if horizontal else None,
        yerr=None if horizontal else half_width,
        color=colour,
        marker=marker,
        markersize=6,
        capsize=4,
        linestyle="none",
        label=name,
    )
    if len(seeds) == 1:
        return
    # Beside the mean and each other, so that seeds which agree stay visible.
    places = [float(spot) for spot in np.linspace(place + 0.14, place + 0.24, len(seeds))]
    dots = (list(seeds), places) if horizontal else (places, list(seeds))
    axes.plot(
        *dots, linestyle="none", marker="o", markersize=4, markerfacecolor="none", markeredgecolor=colour
    )
