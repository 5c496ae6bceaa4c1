"""The drawing of a small matrix: colours, with the numbers in the cells where they can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from modfast.report.numbers import visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A matrix with more columns or rows than this has colours alone.
MOST_NUMBERED = 20

_LONGEST = 20
_WIDEST = 1e7


def draw_table(
    axes: Axes, table: NDArray[np.float64], top: float, text: str, low: float = 0.0, size: float = 8
) -> Any:
    """Draw a matrix, cell by cell; NaN is grey and says "n/a".

    Args:
        axes: where to draw.
        table: (rows, columns).
        top: the value of the brightest colour.
        text: how numbers are written into the cells, such as ``"{:.0f}"``.
        low: the value of the darkest colour.
        size: of the numbers, in points.

    Returns:
        The image, for a colour bar.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> image = draw_table(axes, np.array([[0.25, math.nan]]), 1.0, "{:.2f}")
        >>> [text.get_text() for text in axes.texts]
        ['0.25', 'n/a']
    """
    image = axes.imshow(
        np.ma.masked_invalid(table),
        cmap=matplotlib.colormaps["viridis"].with_extremes(bad="lightgrey"),
        vmin=low,
        vmax=top,
        aspect="auto",
        interpolation="nearest",
    )
    if max(table.shape) > MOST_NUMBERED:
        return image
    for (row, column), value in np.ndenumerate(table):
        # Large numbers would be wider than any cell.
        written = text.format(value) if abs(value) < _WIDEST else f"{value:.3g}"
        written = written if math.isfinite(value) else "n/a"
        # The upper colours are light.
        colour = "white" if value < low + 0.6 * (top - low) else "black"
        axes.text(column, row, written, ha="center", va="center", color=colour, fontsize=size)
    return image


def name_columns(axes: Axes, names: Sequence[str], size: float = 9) -> None:
    """Write the columns' names below a matrix; of many columns only some."""
    step = math.ceil(len(names) / MOST_NUMBERED)
    shown = range(0, len(names), step)
    texts = [shortened(names[i]) for i in shown]
    # Names stand upright only where each fits into its own share of the axis.
    inches = axes.get_window_extent().width / axes.figure.dpi
    crowded = max(len(name) for name in texts) * len(texts) > 120 * inches / size
    # Names are not formulas: the dollars of a token would be taken for one.
    axes.set_xticks(shown, texts, fontsize=size, parse_math=False)
    if crowded:
        axes.tick_params(axis="x", labelrotation=45)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")


def shortened(name: str) -> str:
    """Return at most 20 characters of a name.

    Example:
        >>> shortened("a name of many characters")
        'a name of many char…'
    """
    name = visible(name)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
