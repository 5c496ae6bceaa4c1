"""The pictures of a run's numbers: curves over the epochs, and plain against modular.

Every function writes one PNG, whole or not at all; the same input gives the same bytes with the same
matplotlib. Only matplotlib's object-oriented interface is used, so a caller's own figures and backend stay
untouched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from modfast.report.numbers import name_end

from .style import new_figure, save_figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; markers and dashes repeat the
# distinction for print without colour.
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


def _style(name: str, position: int) -> tuple[str, str, str]:
    # A modular run has the same colours alone as beside a plain one.
    known = {"plain": 0, "modular": 1}
    return STYLES[known.get(name, position) % len(STYLES)]


# ----------------------------------------------------------------------------------------- curves


def _by_epoch(
    histories: Sequence[Sequence[Mapping[str, Any]]], measure: str, layer: str | None = None
) -> dict[int, list[float]]:
    """Return the seeds' values by epoch, in the order of epochs."""
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
    # From the end: a layer whose clusters are found in training has no clusterability before.
    backwards = reversed(every_record)
    layers = list(dict.fromkeys(layer for record in backwards for layer in record["clusterability"]))

    columns = min(3, max(1, len(layers)))
    rows = math.ceil(len(layers) / columns)
    figure = new_figure(2.9 * (1 + rows) + 0.5)
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
        axes.set_title(name_end(layer) + (", regularised" if layer in regularised else ""), fontsize=10)
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
    save_figure(figure, path)


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
        draw_mean_line(
            axes,
            list(values),
            [scale * math.fsum(seeds) / len(seeds) for seeds in values.values()],
            [scale * min(seeds) for seeds in values.values()],
            [scale * max(seeds) for seeds in values.values()],
            _style(name, position),
            name,
        )


def draw_mean_line(
    axes: Axes,
    steps: Sequence[float],
    means: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    style: tuple[str, str, str],
    label: str,
) -> None:
    """Draw a line, and a band around it.

    Args:
        axes: where to draw.
        steps: the places of all numbers.
        means: the line; NaN leaves a hole.
        low: the lower edge of the band; NaN draws none there.
        high: its upper edge.
        style: colour, marker and dashes; :data:`STYLES` has some.
        label: for a legend.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> draw_mean_line(axes, [1, 2], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7], STYLES[0], "plain")
        >>> axes.lines[0].get_ydata().tolist()
        [0.5, 0.6]
    """
    colour, marker, dashes = style
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        steps,
        means,
        color=colour,
        linestyle=dashes,
        marker=marker,
        markersize=3.5,
        # Markers distinguish the lines; one at each of many steps would hide the line.
        markevery=max(1, len(means) // 12),
        label=label,
    )


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

    figure = new_figure(max(4.2, 1.6 + 0.55 * len(layers)))
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
    names = [name_end(layer) + ("\n(regularised)" if layer in regularised else "") for layer in layers]
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
    save_figure(figure, path)


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
