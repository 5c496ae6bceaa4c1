"""The drawing of singular values or eigenvalues, with the gap that chooses the number of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

FOUND, CHANCE, CHOSEN = "#0072B2", "#666666", "#D55E00"
SHUFFLED: dict[str, Any] = {"color": "black", "marker": "+", "markersize": 7, "linestyle": "none"}


def draw_spectrum(
    axes: Axes,
    values: Sequence[float],
    shuffled: Sequence[Sequence[float]],
    chosen: int | None,
    *,
    first: int = 2,
    label: str | None = None,
    shuffled_label: str | None = None,
    gap_label: str | None = None,
) -> None:
    """Draw the values by their numbers, those of shuffled weights, and the gap after the chosen number.

    Args:
        axes: where to draw.
        values: the values, descending.
        shuffled: the values of some shuffles: one is drawn as crosses, several as a band from the least to
            the largest. Of those that are longer, the rest is left out.
        chosen: the number of clusters, or None.
        first: the number of the first value to draw. The very first is 1 for any weights: to show it would
            only compress the others.
        label: of the values, for a legend.
        shuffled_label: of the shuffles.
        gap_label: of the gap, for a legend.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> draw_spectrum(axes, [1.0, 0.9, 0.2], [[1.0, 0.4, 0.3]], 2)
        >>> [line.get_ydata().tolist() for line in axes.lines[:2]]
        [[0.9, 0.2], [0.4, 0.3]]
    """
    places = list(range(first, len(values) + 1))
    dots: dict[str, Any] = {"color": FOUND, "marker": "o", "markersize": 3, "linestyle": "none"}
    axes.plot(places, list(values[first - 1 :]), label=label, **dots)
    others = [list(each[first - 1 : len(values)]) for each in shuffled]
    if len(others) == 1:
        axes.plot(places[: len(others[0])], others[0], label=shuffled_label, **SHUFFLED)
    elif others:
        by_place = list(zip(*others, strict=False))  # shuffles may have different numbers of values
        low, high = list(map(min, by_place)), list(map(max, by_place))
        axes.fill_between(
            places[: len(low)], low, high, color=CHANCE, alpha=0.35, linewidth=0, label=shuffled_label
        )
    if chosen is not None and chosen < len(values):
        axes.axhspan(
            values[chosen], values[chosen - 1], color=CHOSEN, alpha=0.25, linewidth=0, label=gap_label
        )
        axes.axvline(chosen + 0.5, color=CHOSEN, linewidth=1.2)
