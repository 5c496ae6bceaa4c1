"""What all pictures share: their size, how they are written, and how long names are cut."""

from __future__ import annotations

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import atomic_write

DOTS_PER_INCH = 150
WIDTH = 9.6  # inches: 1440 pixels


def new_figure(height: float) -> Figure:
    """A figure of the common width and of ``height`` inches, unknown to pyplot."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write ``figure`` as a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        # Without the Software entry the bytes do not change with matplotlib's version number alone.
        figure.savefig(temporary, format="png", dpi="figure", metadata={"Software": None})


def name_end(name: str, most: int = 34) -> str:
    """``name``, or its end after an ellipsis, in at most ``most`` characters.

    Example:
        >>> name_end("features.block.conv", most=10)
        '…lock.conv'
    """
    # Layers of one network differ in the ends of their names.
    return name if len(name) <= most else "…" + name[1 - most :]
