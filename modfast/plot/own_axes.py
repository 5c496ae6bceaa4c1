"""The axes of a picture: the caller's, or those of a new figure."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .drawable import plain_unless_formula

# Points; a figure of 4 inches is still read if a page shows it at 3.
TITLE, LABEL, TICK = 9, 8.5, 8

# A new figure is dark on white, also where the caller's style has light lines for a dark page.
_ON_WHITE: dict[Any, str] = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), "white"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor"), "black"),
    **dict.fromkeys(("xtick.color", "ytick.color", "xtick.labelcolor", "ytick.labelcolor"), "black"),
}

MOST_AXES = 100
_MOST_COLUMNS = 3

# In a legend that leaves room for the lines themselves. There are as many styles of lines.
_MOST_LINES = 16


def axes_for(ax: object, size: tuple[float, float] = (4.4, 3.3)) -> Axes:
    """Return the caller's axes, or those of a new figure that pyplot knows, so that notebooks show it.

    Args:
        ax: the caller's argument: axes or None.
        size: of a new figure, in inches.

    Raises:
        TypeError: ``ax`` is neither axes nor None, or the axes are polar or three-dimensional.
        ValueError: the axes have been removed from their figure.
    """
    if ax is None:
        axes: Axes = new_grid(1, size)[0]
        return axes
    if not isinstance(ax, Axes):
        raise TypeError(
            f"ax must be matplotlib Axes, or None for a new figure, got {type(ax).__name__}"
            + (": pass one of its axes" if isinstance(ax, np.ndarray) else "")
        )
    if ax.name != "rectilinear":
        raise TypeError(f"ax must be rectangular axes, got {ax.name} ones")
    if ax.figure is None:
        raise ValueError("ax must be in a figure, got axes that were removed from theirs")
    return ax


def new_grid(count: int, size: tuple[float, float]) -> np.ndarray[Any, Any]:
    """Return the axes of a new figure, 1-D; ``size`` is that of each one, in inches."""
    # Only a caller who passes no axes needs pyplot.
    from matplotlib import pyplot

    columns = min(count, _MOST_COLUMNS)
    rows = math.ceil(count / columns)
    # The first figure loads the backend, and that of notebooks then sets what makes them show figures: not
    # within the context, which would put it back.
    figure = pyplot.figure(
        figsize=(columns * size[0], rows * size[1]), layout="constrained", facecolor="white"
    )
    with matplotlib.rc_context(_ON_WHITE):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return grid[:count]


def style_lines(axes: Axes) -> None:
    """Set what all pictures of lines share."""
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=TICK)


def legend(axes: Axes) -> None:
    """Draw a legend where it hides least, of the first lines if there are many."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > _MOST_LINES:
        more = f"... and {len(handles) - _MOST_LINES:,} more"
        handles, labels = (
            [*handles[:_MOST_LINES], Line2D([], [], linestyle="none")],
            [*labels[:_MOST_LINES], more],
        )
    drawn = axes.legend(handles, labels, fontsize=TICK, framealpha=0.8)
    for text in drawn.get_texts():
        plain_unless_formula(text)
