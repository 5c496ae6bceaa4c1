"""The pictures of the page: clusterability layer by layer, circuits and clusters class by class."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.findings.pictures import CLASSES
from modfast.report.pictures.style import new_figure, save_figure

from . import analysis
from .arms import ARMS, CLUSTERS, CONVOLUTIONS, HEAD

# Okabe and Ito's colours, which colour-blind readers can distinguish.
_COLOURS = {"plain": "#777777", "modular": "#0072B2", "light": "#009E73", "convolutions": "#D55E00"}
_MARKERS = {"plain": "o", "modular": "s", "light": "D", "convolutions": "^"}
_LAYERS = (*sorted(CONVOLUTIONS), HEAD)


def draw_layers(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw the clusterability of each layer: of the clusters trained for, and of those found afterwards.

    Args:
        path: the PNG file.
        arms: what to draw.
    """
    figure = new_figure(3.9)
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("four blocks of channels, those of the loss", "four spectral clusters, found afterwards")
    for axes, which, title in zip(panels, ("own", "found"), titles, strict=True):
        for index, arm in enumerate(arms):
            for layer, name in enumerate(_LAYERS):
                values = [record["layers"][name]["with_norm"][which] for record in analysis.records(arm)]
                places = np.full(len(values), layer + _shift(index, arms))
                _draw_seeds(axes, arm, places, np.array(values), first=layer == 0)
        if which == "own":
            axes.axhline(1 / CLUSTERS, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_title(title, fontsize=9)
        names = [name.removesuffix(".0") for name in _LAYERS]
        axes.set_xticks(range(len(_LAYERS)), names, rotation=35, ha="right")
        axes.tick_params(labelsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("clusterability, with batch norm", fontsize=9)
    _legend(figure, panels[0])
    save_figure(figure, path)


def draw_classes(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw the size of each class's circuit by two rules, and what is left of a class without each cluster.

    Args:
        path: the PNG file.
        arms: what to draw; the clusters get a panel each.
    """
    figure = new_figure(3.9)
    panels = figure.subplots(1, 2 + len(arms), width_ratios=[1.3, 1.3, *[1.0] * len(arms)], sharey=True)
    titles = {"own": "by log odds", "logit": "by the class's own logit"}
    for axes, (rule, title) in zip(panels, titles.items(), strict=False):
        for index, arm in enumerate(arms):
            for place in range(len(CLASSES)):
                circuits = [record["circuits"][rule]["by_class"][place] for record in analysis.records(arm)]
                sizes = np.array([100 * circuit["size"] for circuit in circuits])
                places = np.full(len(sizes), place + _shift(index, arms))
                _draw_seeds(axes, arm, sizes, places, first=place == 0)
        axes.set_title(f"circuits\n{title}", fontsize=8)
        axes.set_xlabel("channels kept, %", fontsize=9)
        axes.set_xlim(0, 105)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(CLASSES)), CLASSES, fontsize=8)
    panels[0].invert_yaxis()
    for axes, arm in zip(panels[2:], arms, strict=True):
        _draw_without(axes, arm)
    _legend(figure, panels[0])
    save_figure(figure, path)


def _shift(index: int, arms: Sequence[str]) -> float:
    return 0.24 * (index - (len(arms) - 1) / 2)


def _draw_seeds(axes: Axes, arm: str, across: np.ndarray, up: np.ndarray, *, first: bool) -> None:
    """Draw each seed as a faint point, and their mean."""
    axes.scatter(across, up, s=7, color=_COLOURS[arm], alpha=0.45, linewidths=0)
    axes.plot(
        across.mean(),
        up.mean(),
        _MARKERS[arm],
        color=_COLOURS[arm],
        markerfacecolor="none",
        markersize=5.5,
        linestyle="none",
        label=f"{ARMS[arm].title} (mean; points are seeds)" if first else None,
    )


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)


def _draw_without(axes: Axes, arm: str) -> None:
    """Draw how often a class is told from others without each cluster, a mean over seeds, with the number."""
    tables = [record["clusters"]["own"]["without"] for record in analysis.records(arm)]
    answers = np.array(tables, dtype=float).mean(0).T
    axes.imshow(answers, vmin=0.5, vmax=1.0, cmap="Blues", aspect="auto")
    for (label, cluster), share in np.ndenumerate(answers):
        colour = "white" if share > 0.8 else "black"
        axes.text(cluster, label, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    for label in range(len(CLASSES)):
        corner = analysis.cluster_of(label, len(CLASSES)) - 0.47, label - 0.45
        axes.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor="#D55E00", linewidth=1.4))
    axes.set_xticks(range(CLUSTERS), [str(number + 1) for number in range(CLUSTERS)], fontsize=8)
    axes.set_xlabel("cluster that is off", fontsize=9)
    axes.set_title(f"{arm}: told from others, %\n(frame: the class's cluster)", fontsize=8)
