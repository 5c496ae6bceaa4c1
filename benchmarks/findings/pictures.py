"""The pictures of the page: differences of all arms, size against loss, and sizes by class."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.axes import Axes

from modfast.report.pictures.style import new_figure, save_figure

from . import analysis
from .arms import ARMS

# Okabe and Ito's colours, which colour-blind readers can distinguish.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def draw_circuits(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw the differences of circuit size and overlap to plain training, with their 95 % intervals.

    Args:
        path: the PNG file.
        arms: from top to bottom.
    """
    series = {"circuits by loss": "loss", "circuits by balanced loss": "balanced"}
    panels = [
        (title, {label: (group, name) for label, group in series.items()}, 100.0)
        for name, title in (("size", "circuit size, % of weights"), ("overlap", "overlap of two circuits, %"))
    ]
    _draw_differences(path, arms, panels)


def draw_neurons(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw the differences of what clusters and neurons do for classes, as :func:`draw_circuits` does."""
    panels = [
        ("one cluster alone, points", {"": ("model", "specialisation_only")}, 100.0),
        ("one cluster off, points", {"": ("model", "specialisation_without")}, 100.0),
        ("classes among top images, %", {"": ("model", "label_semanticity:fc2")}, 100.0),
    ]
    _draw_differences(path, arms, panels)


# The title of a panel, its measures by name of series, and the factor to its unit.
_Panel = tuple[str, dict[str, tuple[str, str]], float]


def _draw_differences(path: str | os.PathLike[str], arms: Sequence[str], panels: Sequence[_Panel]) -> None:
    figure = new_figure(0.34 * len(arms) + 1.6)
    styles = ((_BLUE, "o"), (_ORANGE, "s"))
    drawn = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, measures, factor) in zip(drawn, panels, strict=True):
        _zero_line(axes)
        for index, ((label, (group, name)), (colour, marker)) in enumerate(
            zip(measures.items(), styles, strict=False)
        ):
            shift = 0.15 * (2 * index - len(measures) + 1)
            for place, arm in enumerate(arms):
                found = analysis.compare(arm, group, name)
                if found is not None:
                    axes.errorbar(
                        factor * found.difference,
                        place + shift,
                        xerr=factor * found.interval,
                        fmt=marker,
                        color=colour,
                        markersize=4,
                        capsize=2,
                        label=label if place == 0 else None,
                    )
        axes.set_xlabel(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    drawn[0].set_yticks(range(len(arms)), [_name(arm) for arm in arms])
    drawn[0].invert_yaxis()
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.supxlabel("difference to plain training, and its 95 % interval", fontsize=9)
    if any(labels):
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    save_figure(figure, path)


def draw_against_loss(path: str | os.PathLike[str], plain: str, arm: str, ended: str) -> None:
    """Draw size and overlap of circuits against the test loss, for every seed.

    Args:
        path: the PNG file.
        plain: an arm of which every epoch is drawn.
        arm: another one.
        ended: an arm of which the end is drawn.
    """
    figure = new_figure(4.2)
    panels = figure.subplots(1, 2)
    for axes, name, title in zip(
        panels,
        ("size", "overlap"),
        ("circuit size, % of weights", "overlap of two circuits, %"),
        strict=True,
    ):
        for each, colour, marker in ((plain, _BLUE, "o"), (arm, _ORANGE, "s")):
            points = [
                (
                    record["history"][found["epoch"] - 1]["test_cross_entropy"],
                    100 * found[name],
                    found["epoch"] == len(record["history"]),
                )
                for record in analysis.records(each)
                for found in record["epochs"]
            ]
            for is_last, fill in ((False, "none"), (True, colour)):
                chosen = [(loss, value) for loss, value, last in points if last == is_last]
                axes.scatter(
                    *zip(*chosen, strict=True),
                    s=14,
                    marker=marker,
                    facecolors=fill,
                    edgecolors=colour,
                    linewidths=0.7,
                    label=f"{_name(each)}{', at the end' if is_last else ', after each epoch'}",
                )
        ends = [
            (
                record["history"][-1]["test_cross_entropy"],
                100 * (analysis.measure(record, "loss", name) or 0.0),
            )
            for record in analysis.records(ended)
        ]
        axes.scatter(
            *zip(*ends, strict=True), s=24, marker="^", color=_GREEN, label=f"{_name(ended)}, at the end"
        )
        axes.set_xlabel("test loss (nats)", fontsize=9)
        axes.set_ylabel(title, fontsize=9)
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    save_figure(figure, path)


def draw_by_class(path: str | os.PathLike[str], arm: str) -> None:
    """Draw by how much the circuits of each class are larger or smaller than those of plain networks."""
    figure = new_figure(3.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, group in zip(panels, ("loss", "balanced"), strict=True):
        _zero_line(axes)
        for place, (middle, interval) in enumerate(analysis.relative_by_class(arm, group)):
            axes.errorbar(
                100 * middle,
                place,
                xerr=100 * (interval or 0.0),
                fmt="o",
                color=_BLUE if group == "loss" else _ORANGE,
                markersize=4,
                capsize=2,
            )
        axes.set_title("circuits by " + ("loss" if group == "loss" else "balanced loss"), fontsize=9)
        axes.set_xlabel("size relative to plain networks (%)", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(CLASSES)), CLASSES, fontsize=8)
    panels[0].invert_yaxis()
    save_figure(figure, path)


def _name(arm: str) -> str:
    return ARMS[arm].title.replace("`", "")


def _zero_line(axes: Axes) -> None:
    axes.axvline(0.0, color=_GREY, linewidth=1)
