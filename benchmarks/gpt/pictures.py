"""The pictures of the page: where circuits lie, and differences to plain networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modfast.report.pictures.style import new_figure, save_figure

from . import analysis
from .arms import ARMS, CLUSTERS
from .behaviours import NAMES

# Okabe and Ito's colours, which colour-blind readers can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_MARKERS = ("o", "s", "^")


class Row(NamedTuple):
    """A row of the picture of differences.

    Attributes:
        title: what is compared.
        measure: reads it.
        panel: where it stands.
    """

    title: str
    measure: analysis.Measure
    panel: str


def draw_clusters(path: str | os.PathLike[str], arms: Sequence[str]) -> None:
    """Draw how each circuit is spread over the four blocks, for every arm and seed.

    Args:
        path: the PNG file.
        arms: from top to bottom.
    """
    seeds = sorted({record["seed"] for arm in arms for record in analysis.records(arm)})
    figure = new_figure(1.35 * len(arms) + 1.0)
    panels = figure.subplots(len(arms), len(seeds), squeeze=False)
    image = None
    for row, arm in enumerate(arms):
        by_seed = {record["seed"]: record for record in analysis.records(arm)}
        for column, seed in enumerate(seeds):
            axes = panels[row, column]
            axes.set_xticks(range(CLUSTERS), [str(cluster + 1) for cluster in range(CLUSTERS)], fontsize=7)
            axes.set_yticks(range(len(NAMES)), NAMES if column == 0 else [""] * len(NAMES), fontsize=8)
            axes.tick_params(length=0)
            if row == 0:
                axes.set_title(f"seed {seed}", fontsize=9)
            if column == 0:
                axes.set_ylabel(ARMS[arm].title.replace(" modular", "\nmodular"), fontsize=8)
            if seed not in by_seed:
                axes.text(1.5, 1, "not run", ha="center", va="center", fontsize=8, color="#777777")
                axes.set_xlim(-0.5, CLUSTERS - 0.5)
                axes.set_ylim(len(NAMES) - 0.5, -0.5)
                continue
            shares = spread(by_seed[seed])
            image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=60, aspect="auto")
            for (i, j), share in np.ndenumerate(shares):
                if not np.isnan(share):
                    colour = "white" if share > 0.36 else "black"
                    axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    assert image is not None
    figure.colorbar(image, ax=panels, label="% of the circuit's units", fraction=0.03, pad=0.01)
    figure.supxlabel("cluster (one of four contiguous blocks)", fontsize=9)
    save_figure(figure, path)


def spread(record: analysis.Record) -> np.ndarray:
    """Return the share of each behaviour's circuit that lies in each block; NaN where there is none."""
    shares = np.full((len(NAMES), CLUSTERS), np.nan)
    for row, name in enumerate(NAMES):
        found = record["circuits"]["relative"]["by_behaviour"].get(name)
        if found is not None and found["units"]:
            counts = np.sum(list(found["counts"]["blocks"].values()), axis=0)
            shares[row] = counts / counts.sum()
    return shares


def draw_differences(path: str | os.PathLike[str], arms: Sequence[str], rows: Sequence[Row]) -> None:
    """Draw differences to plain networks of the same seeds, with their 95 % intervals, and each seed's.

    Args:
        path: the PNG file.
        arms: in different colours.
        rows: from top to bottom in each panel.
    """
    panels = list(dict.fromkeys(row.panel for row in rows))
    most = max(sum(row.panel == panel for row in rows) for panel in panels)
    figure = new_figure(0.42 * most + 1.5)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [row for row in rows if row.panel == panel]
        axes.axvline(0.0, color="#777777", linewidth=1)
        for index, arm in enumerate(arms):
            for place, row in enumerate(shown):
                found = analysis.compare(arm, row.measure)
                if found is None:
                    continue
                height = place + 0.22 * (index - (len(arms) - 1) / 2)
                style = {"color": _COLOURS[index]}
                differences = [
                    own - other
                    for own, other in ((row.measure(a), row.measure(b)) for a, b in analysis.pairs(arm))
                    if own is not None and other is not None
                ]
                axes.plot(differences, [height] * len(differences), "|", markersize=6, alpha=0.6, **style)
                axes.errorbar(
                    found.difference,
                    height,
                    xerr=found.interval or 0.0,
                    fmt=_MARKERS[index],
                    markersize=4,
                    capsize=2,
                    label=ARMS[arm].title if place == 0 else None,
                    **style,
                )
        axes.set_yticks(range(len(shown)), [row.title for row in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(panel, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(arms), fontsize=8)
    figure.supxlabel("difference to plain networks: mean, its 95 % interval, and each seed", fontsize=9)
    save_figure(figure, path)
