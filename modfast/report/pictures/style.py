"""What all pictures share: their size, and the way they are written."""

from __future__ import annotations

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modfast.files import atomic_write

DOTS_PER_INCH = 150
WIDTH = 9.6  # inches: 1440 pixels


def new_figure(height: float) -> Figure:
    """Return a figure of the common width and ``height`` inches, unknown to pyplot."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write ``figure`` as a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        # Without the Software entry the bytes do not change with matplotlib's version number alone.
        figure.savefig(temporary, format="png", dpi="figure", metadata={"Software": None})
