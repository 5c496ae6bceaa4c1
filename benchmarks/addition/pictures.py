"""The pictures of the page: frequencies of the neurons of each cluster, and differences to plain training."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from modfast.report.pictures.style import new_figure, save_figure

from . import analysis
from .analysis import Record, Value
from .arms import ARMS

# Okabe and Ito's colours, which colour-blind readers can distinguish.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

_MEASURES: tuple[tuple[str, Value, float], ...] = (
    ("held-out accuracy, points", analysis.at("measures", "test_accuracy"), 100.0),
    ("cluster and frequency,\nbits above chance", analysis.excess("blocks"), 1.0),
    (
        "own less other frequencies\nlost, points above random",
        analysis.beyond_random_selectivity("blocks"),
        100.0,
    ),
    ("live neurons, points", analysis.at("measures", "live"), 100.0),
    ("circuit at equal loss,\n% of units", analysis.at("circuit", "size"), 100.0),
)


def draw_frequencies(path: str | os.PathLike[str], panels: Sequence[tuple[str, str, str]]) -> None:
    """Draw the share of each live neuron's variance that each frequency explains, sorted by cluster.

    Args:
        path: the PNG file.
        panels: from left to right an arm, a clustering ("blocks" or "spectral") and a title; of each arm the
            first network is drawn.
    """
    figure = new_figure(4.6)
    drawn = figure.subplots(1, len(panels))
    mapped = None
    for axes, (arm, clustering, title) in zip(drawn, panels, strict=True):
        mapped = _draw_neurons(axes, analysis.records(arm)[0], clustering)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("frequency", fontsize=9)
    drawn[0].set_ylabel("live neurons, by cluster", fontsize=9)
    assert mapped is not None
    bar = figure.colorbar(mapped, ax=list(drawn), shrink=0.8, pad=0.01)
    bar.set_label("share of the neuron's variance", fontsize=9)
    save_figure(figure, path)


def _draw_neurons(axes: Axes, record: Record, clustering: str) -> ScalarMappable:
    shares = np.array(record["shares"])
    neurons = record["neurons"]
    live = np.flatnonzero(neurons["live"])
    cluster = analysis.blocks_of(len(shares)) if clustering == "blocks" else np.array(neurons["spectral"])
    frequency = np.array(neurons["frequency"])
    order = live[np.lexsort((-shares.max(1)[live], frequency[live], cluster[live]))]
    image = axes.imshow(
        shares[order],
        aspect="auto",
        cmap="viridis",
        vmin=0,
        vmax=1,
        extent=(0.5, shares.shape[1] + 0.5, len(order), 0),
        interpolation="nearest",
    )
    edges = np.flatnonzero(np.diff(cluster[order])) + 1
    for edge in edges:
        axes.axhline(edge, color="white", linewidth=1.2)
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(order)]])
    names = [chr(ord("A") + int(cluster[order[start]])) for start in starts]
    axes.set_yticks((starts + ends) / 2, names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(record["keys"])
    axes.tick_params(axis="x", labelsize=7, labelrotation=90)
    return image


def draw_differences(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw differences to plain training, with their 95 % intervals.

    Args:
        path: the PNG file.
        arms: from top to bottom.
    """
    figure = new_figure(0.42 * len(arms) + 1.5)
    drawn = figure.subplots(1, len(_MEASURES), sharey=True)
    for axes, (title, value, factor) in zip(drawn, _MEASURES, strict=True):
        axes.axvline(0.0, color=_GREY, linewidth=1)
        for place, arm in enumerate(arms):
            found = analysis.compare(arm, value)
            if found is not None:
                axes.errorbar(
                    factor * found.difference,
                    place,
                    xerr=factor * (found.interval or 0.0),
                    fmt="o" if ARMS[arm].kind.name == "transformer" else "s",
                    color=_BLUE if ARMS[arm].kind.name == "transformer" else _ORANGE,
                    markersize=4,
                    capsize=2,
                )
        axes.set_xlabel(title, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    names = [f"{ARMS[arm].kind.title.removeprefix('the ')}:\n{_short(arm)}" for arm in arms]
    drawn[0].set_yticks(range(len(arms)), names)
    drawn[0].set_ylim(len(arms) - 0.5, -0.5)
    figure.supxlabel("difference to plain training, and its 95 % interval", fontsize=9)
    save_figure(figure, path)


def _short(arm: str) -> str:
    return ARMS[arm].title.replace("`", "").removeprefix("loss on ")
