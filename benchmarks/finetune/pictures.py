"""The pictures of the page: clusterability and loss over the number of clusters, and dependence."""

from __future__ import annotations

import os

from matplotlib.axes import Axes

from modfast.report.pictures.style import new_figure, save_figure

from . import analysis
from .arms import ARMS, KS

# Okabe and Ito's colours, which colour-blind readers can distinguish.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def draw_over_k(path: str | os.PathLike[str]) -> None:
    """Draw clusterability, and loss less that of plain fine-tuning: one marker for each seed."""
    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2)
    modular = [k for k in KS if f"blocks-{k}" in analysis.shown()]
    left.plot(KS, [1 / k for k in KS], color=_GREY, linestyle=":", label="1/k: weights without structure")
    _over_seeds(left, "plain", list(KS), [analysis.in_blocks(k) for k in KS], _BLUE, "o", "plain")
    for k in modular:
        label = "with the loss" if k == modular[0] else None
        measure = analysis.in_blocks(k)
        _over_seeds(left, f"blocks-{k}", [k], [measure], _ORANGE, "s", label)
        _over_seeds(right, f"blocks-{k}", [k], [_above_plain], _ORANGE, "s", label)
    left.set_ylabel("clusterability, mean of 12 weights", fontsize=9)
    right.set_ylabel("held-out loss less plain's of the seed, nats", fontsize=9)
    right.axhline(0.0, color=_BLUE, label="plain")
    if "plain-slow" in analysis.shown():
        _over_seeds(right, "plain-slow", [1.3], [_above_plain], _GREEN, "D", "plain, a fifth of the rate")
    if "spectral-4" in analysis.shown():
        _over_seeds(right, "spectral-4", [4.6], [_above_plain], "black", "^", "spectral clusters")
    for axes in (left, right):
        axes.set_xlabel("clusters, k", fontsize=9)
        axes.set_xticks(KS, [str(k) for k in KS])
        axes.set_xlim(KS[0] - 1, KS[-1] + 1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5)
    left.set_ylim(bottom=0.0)
    save_figure(figure, path)


def _above_plain(record: analysis.Record) -> float:
    """By how much a loss is higher than plain fine-tuning's, for the same order of pairs."""
    theirs = {each["seed"]: analysis.loss(each) for each in analysis.records("plain")}
    return analysis.loss(record) - theirs[record["seed"]]


def _over_seeds(
    axes: Axes,
    arm: str,
    places: list[float] | list[int],
    measures: list[analysis.Measure],
    colour: str,
    marker: str,
    label: str | None,
) -> None:
    for number, record in enumerate(analysis.records(arm)):
        values = [measure(record) for measure in measures]
        axes.plot(
            places,
            values,
            marker,
            color=colour,
            fillstyle="none",
            markersize=5,
            label=label if number == 0 else None,
        )


def draw_dependence(path: str | os.PathLike[str]) -> None:
    """Draw how many clusters answers depend on, beside random clusters, for the numbers with many seeds."""
    figure = new_figure(3.9)
    panels = figure.subplots(1, 2)
    for axes, k in zip(panels, (4, 12), strict=True):
        arms = [
            (arm, colour)
            for arm, colour in (("untouched", _GREY), ("plain", _BLUE), (f"blocks-{k}", _ORANGE))
            if analysis.has_dependence(arm, k)
        ]
        width, most = 0.8 / len(arms), 4
        for number, (arm, colour) in enumerate(arms):
            places = [count + (number - (len(arms) - 1) / 2) * width for count in range(most + 1)]
            found, random = (_tail(analysis.shares(arm, k, which), most) for which in _BOTH)
            title = ARMS[arm].title if ARMS[arm].k is None else f"{k} blocks, with the loss"
            axes.bar(places, [100 * each for each in found], width, color=colour, label=title)
            axes.plot(
                places,
                [100 * each for each in random],
                "_",
                color="black",
                markersize=13,
                markeredgewidth=1.8,
                label="random clusters of the same sizes" if number == len(arms) - 1 else None,
            )
        axes.set_xticks(range(most + 1), [str(count) for count in range(most)] + [_last(k, most)])
        axes.set_xlabel(f"of {k} clusters an answer depends on", fontsize=9)
        axes.set_ylabel("share of right answers, %", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(fontsize=7.5)
    save_figure(figure, path)


_BOTH = ("shares", "random_shares")


def _tail(found: list[float], most: int) -> list[float]:
    return [*found[:most], sum(found[most:])]


def _last(k: int, most: int) -> str:
    return str(most) if k == most else f"{most} or more"
