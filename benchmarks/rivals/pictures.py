"""The picture of the page: accuracy against the size and the overlap of circuits, all ways of training."""

from __future__ import annotations

import os
from collections.abc import Sequence

from modfast.report.pictures.style import new_figure, save_figure

from . import analysis
from .arms import ARMS

# Okabe and Ito's colours, which colour-blind readers can distinguish; a marker for each family of arms.
_FAMILIES = (
    ("#000000", "*", ("plain",)),
    (
        "#0072B2",
        "o",
        ("blocks", "spectral", "last-two", "last-two-five", "last-two-five-5", "shared-5", "shared"),
    ),
    ("#CC79A7", "P", ("shared-keep-30",)),  # enmeshment and few weights
    ("#56B4E9", "D", ("hard", "hard-last-two", "hard-shared")),
    ("#D55E00", "s", ("l1", "keep-30", "keep-10", "keep-3")),
    ("#009E73", "^", ("eigenvalues", "distance")),
)


def draw_rivals(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw the mean and its 95 % interval of every arm, by number; the legend has the names.

    Args:
        path: the PNG file.
        arms: in the order of their numbers.
    """
    figure = new_figure(6.4)
    panels = figure.subplots(2, 2, sharey=True)
    accuracy = {arm: analysis.mean_of(arm, analysis.of("model", "accuracy")) for arm in arms}
    for row, (criterion, words) in zip(
        panels, (("loss", "circuits by loss"), ("balanced", "circuits by balanced loss")), strict=True
    ):
        for axes, (name, title) in zip(
            row, (("size", "size, % of weights"), ("overlap", "overlap of two, %")), strict=True
        ):
            for number, arm in enumerate(arms, start=1):
                colour, marker = _family(arm)
                middle, interval = analysis.mean_of(arm, analysis.of(criterion, name))
                height, spread = accuracy[arm]
                axes.errorbar(
                    100 * middle,
                    100 * height,
                    xerr=100 * (interval or 0.0),
                    yerr=100 * (spread or 0.0),
                    fmt=marker,
                    color=colour,
                    markersize=6,
                    elinewidth=0.6,
                    label=f"{number} {ARMS[arm].title.replace('`', '')}",
                )
                axes.annotate(
                    str(number),
                    (100 * middle, 100 * height),
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                )
            axes.set_xlabel(f"{words}: {title}", fontsize=9)
            axes.set_xlim(left=0.0)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("test accuracy, %", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)
    save_figure(figure, path)


def _family(arm: str) -> tuple[str, str]:
    """Return the colour and the marker of an arm."""
    ((colour, marker),) = [(colour, marker) for colour, marker, members in _FAMILIES if arm in members]
    return colour, marker
