"""The pictures of the page: clusterability layer by layer, and circuits class by class."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from benchmarks.findings.pictures import CLASSES
from modfast.report.pictures.style import new_figure, save_figure
from modfast.report.statistics import mean_interval

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
            points = [_over_seeds(arm, layer, which) for layer in _LAYERS]
            places = np.arange(len(_LAYERS)) + 0.2 * (index - (len(arms) - 1) / 2)
            axes.errorbar(
                places,
                [middle for middle, _ in points],
                yerr=[interval or 0.0 for _, interval in points],
                fmt=_MARKERS[arm],
                color=_COLOURS[arm],
                markersize=5,
                capsize=2,
                label=ARMS[arm].title,
            )
        if which == "own":
            axes.axhline(1 / CLUSTERS, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(
            range(len(_LAYERS)), [name.removesuffix(".0") for name in _LAYERS], rotation=35, ha="right"
        )
        axes.tick_params(labelsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("clusterability, with batch norm", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    save_figure(figure, path)


def _over_seeds(arm: str, layer: str, which: str) -> tuple[float, float | None]:
    return mean_interval([record["layers"][layer]["with_norm"][which] for record in analysis.records(arm)])


def draw_circuits(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw the size of each class's circuit by two rules, and the clusters that it is in by the second.

    Args:
        path: the PNG file.
        arms: what to draw; the clusters get a panel each.
    """
    figure = new_figure(3.9)
    panels = figure.subplots(1, 2 + len(arms), width_ratios=[1.3, 1.3, *[1.0] * len(arms)], sharey=True)
    titles = {"own": "by log odds", "logit": "by the class's own logit"}
    for axes, (rule, title) in zip(panels, titles.items(), strict=False):
        for index, arm in enumerate(arms):
            _draw_sizes(axes, arm, rule, 0.2 * (index - (len(arms) - 1) / 2))
        axes.set_title(f"circuits\n{title}", fontsize=8)
        axes.set_xlabel("channels kept, %", fontsize=9)
        axes.set_xlim(0, 105)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(CLASSES)), CLASSES, fontsize=8)
    panels[0].invert_yaxis()
    for axes, arm in zip(panels[2:], arms, strict=True):
        _draw_shares(axes, arm)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    save_figure(figure, path)


def _draw_sizes(axes: Axes, arm: str, rule: str, shift: float) -> None:
    for place in range(len(CLASSES)):
        circuits = [record["circuits"][rule]["by_class"][place] for record in analysis.records(arm)]
        middle, interval = mean_interval([100 * circuit["size"] for circuit in circuits])
        axes.errorbar(
            middle,
            place + shift,
            xerr=interval or 0.0,
            fmt=_MARKERS[arm],
            color=_COLOURS[arm],
            markersize=5,
            capsize=2,
            label=ARMS[arm].title if place == 0 else None,
        )


def _draw_shares(axes: Axes, arm: str) -> None:
    """Draw the share of each class's circuit in each cluster, a mean over seeds, with the number."""
    shares = mean_shares(arm)
    axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(CLUSTERS), [str(number + 1) for number in range(CLUSTERS)], fontsize=8)
    axes.set_xlabel("cluster", fontsize=9)
    axes.set_title(f"{arm}, by own logit:\nshare in each cluster, %", fontsize=8)


def mean_shares(arm: str) -> np.ndarray:
    """Return the share of each class's circuit in each of the loss's clusters, classes x clusters."""
    tables = [
        record["circuits"]["logit"]["measures"]["clusters"]["own"]["shares"]
        for record in analysis.records(arm)
    ]
    shares = np.array(tables, dtype=float).mean(0)
    if shares.shape != (len(CLASSES), CLUSTERS) or not math.isfinite(shares.sum()):
        raise ValueError(f"{arm}: shares must be a table of classes and clusters, got {shares.shape}")
    return shares
