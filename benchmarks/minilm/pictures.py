"""The picture of where the clusters of MiniLM lie."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from modfast.report.pictures.style import new_figure, save_figure

SHOWN = ("2", "5", "10")


def draw_members(path: str | os.PathLike[str], members: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Draw which share of each space's units is in each cluster: rows are spaces, columns clusters."""
    figure = new_figure(4.6)
    widths = [int(k) + 1 for k in SHOWN]
    panels = figure.subplots(1, len(SHOWN), gridspec_kw={"width_ratios": widths})
    for axes, k in zip(panels, SHOWN, strict=True):
        spaces = sorted(members[k], key=_place)
        counts = np.array([members[k][space] for space in spaces], dtype=float)
        shares = counts / counts.sum(1, keepdims=True)
        image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column] > 0:
                colour = "white" if share > 0.6 else "black"
                text = f"{int(counts[row, column])}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xticks(range(int(k)), [str(cluster) for cluster in range(int(k))], fontsize=8)
        axes.set_title(f"{k} clusters", fontsize=9)
        axes.set_xlabel("cluster", fontsize=9)
        axes.tick_params(length=0)
        labels = [_label(space, int(each.sum())) for space, each in zip(spaces, counts, strict=True)]
        axes.set_yticks(range(len(spaces)), labels if axes is panels[0] else [""] * len(spaces), fontsize=8)
        for border in (0.5, 6.5):
            axes.axhline(border, color="black", linewidth=0.8)
    bar = figure.colorbar(image, ax=panels, pad=0.01)
    bar.set_label("share of the row's units (numbers: how many)", fontsize=8)
    save_figure(figure, path)


def _place(space: str) -> tuple[int, str]:
    return ["residual", "heads", "hidden"].index(space.split()[0]), space


def _label(space: str, units: int) -> str:
    kind, _, block = space.partition(" ")
    names = {
        "residual": "residual stream",
        "heads": f"heads, block {block}",
        "hidden": f"neurons, block {block}",
    }
    return f"{names[kind]} ({units})"
