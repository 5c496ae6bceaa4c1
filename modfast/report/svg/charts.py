"""Charts as SVG: dot plots with whiskers, and a heat map. The page's style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from modfast.report.numbers import MINUS, Estimate

from .picture import MOST_NAMED, WIDTH, number, path, picture, shorten, text, text_width

# The size of the text in a heat map.
_SMALL = 10.0


def marker(kind: str, x: float, y: float, radius: float = 4.0) -> Markup:
    """Draw a marker: a circle for plain models, a square for modular ones, a diamond for their difference."""
    if kind == "difference":
        diamond = f"M{number(x - radius)} {number(y)}l{number(radius)} {number(-radius)}l{number(radius)} "
        return path(f"{diamond}{number(radius)}l{number(-radius)} {number(radius)}z", kind)
    if kind == "modular":
        square = Markup('<rect x="{}" y="{}" width="{side}" height="{side}" class="{}"/>')
        return square.format(number(x - radius), number(y - radius), kind, side=number(2 * radius))
    circle = Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>')
    return circle.format(number(x), number(y), number(radius), kind)


def dot_plot(
    rows: Sequence[tuple[str, Mapping[str, Estimate]]], axis: str, description: str, rule: bool = False
) -> Markup:
    """Draw a row for each name: a marker at the mean, a whisker over the interval, open dots for seeds.

    Args:
        rows: names, each with its estimates for ``"plain"`` and ``"modular"`` (either or both) in the unit of
            the axis.
        axis: what is measured, with its unit.
        description: alternative text for those who cannot see the picture.
        rule: whether a line sets the last row apart.
    """
    left = 10.0 + max(text_width(shorten(name)) for name, _ in rows)
    right, top, step = WIDTH - 12.0, 6.0, 24.0
    bottom = top + step * len(rows)
    highest = max(
        (
            max(estimate.mean + (estimate.interval or 0.0), *estimate.values)
            for _, kinds in rows
            for estimate in kinds.values()
        ),
        default=0.0,
    )
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, highest or 1.0)
    end = float(ticks[-1])

    def across(value: float) -> float:
        return left + (right - left) * max(value, 0.0) / end

    drawn: list[Markup] = []
    for tick in ticks:
        drawn.append(path(f"M{number(across(tick))} {number(top)}V{number(bottom)}", "grid"))
        drawn.append(text(across(tick), bottom + 13, f"{tick:g}", text_anchor="middle", class_="tick"))
    if rule:
        drawn.append(path(f"M4 {number(bottom - step)}H{number(right)}", "rule"))
    for index, (name, kinds) in enumerate(rows):
        middle = top + step * (index + 0.5)
        drawn.append(text(left - 6, middle + 3.5, shorten(name), text_anchor="end"))
        for kind, estimate in kinds.items():
            y = middle + {"plain": -5.0, "modular": 5.0}[kind] * (len(kinds) > 1)
            drawn += _estimate(kind, estimate, across, y)
    drawn.append(text((left + right) / 2, bottom + 28, axis, text_anchor="middle"))
    return picture(bottom + 34, description, drawn, "dots")


def difference_plot(
    rows: Sequence[tuple[str, Estimate | None]], axis: str, description: str, rule: bool = False
) -> Markup:
    """Draw a difference for each name, of either sign, beside a line at zero; otherwise as :func:`dot_plot`.

    Args:
        rows: names, each with its estimate in the unit of the axis; None if there is none.
        axis: what is measured, with its unit.
        description: alternative text for those who cannot see the picture.
        rule: whether a line sets the last row apart.
    """
    left = 10.0 + max(text_width(shorten(name)) for name, _ in rows)
    right, top, step = WIDTH - 18.0, 6.0, 18.0
    bottom = top + step * len(rows)
    ends = [0.0]
    for _, estimate in rows:
        if estimate is not None:
            half = estimate.interval or 0.0
            ends += [estimate.mean - half, estimate.mean + half, *estimate.values]
    # Half a unit of slack where nothing differs, so that zero has a place.
    slack = 0.5 * (min(ends) == max(ends))
    locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    ticks = locator.tick_values(min(ends) - slack, max(ends) + slack)
    first, last = float(ticks[0]), float(ticks[-1])

    def across(value: float) -> float:
        return left + (right - left) * (value - first) / (last - first)

    drawn: list[Markup] = []
    for tick in ticks:
        label = f"{tick:+g}".replace("-", MINUS) if tick else "0"
        drawn.append(path(f"M{number(across(tick))} {number(top)}V{number(bottom)}", "grid"))
        drawn.append(text(across(tick), bottom + 13, label, text_anchor="middle", class_="tick"))
    drawn.append(path(f"M{number(across(0.0))} {number(top)}V{number(bottom)}", "zero"))
    if rule:
        drawn.append(path(f"M4 {number(bottom - step)}H{number(right)}", "rule"))
    for index, (name, estimate) in enumerate(rows):
        middle = top + step * (index + 0.5)
        drawn.append(text(left - 6, middle + 3.5, shorten(name), text_anchor="end"))
        if estimate is not None:
            drawn += _estimate("difference", estimate, across, middle)
    drawn.append(text((left + right) / 2, bottom + 28, axis, text_anchor="middle"))
    return picture(bottom + 34, description, drawn, "dots")


def _estimate(kind: str, estimate: Estimate, across: Callable[[float], float], y: float) -> list[Markup]:
    """Return a whisker over the interval, open dots for seeds if there are several, and the mean's marker."""
    drawn: list[Markup] = []
    if estimate.interval is not None:
        low, high = (across(estimate.mean + sign * estimate.interval) for sign in (-1, 1))
        whisker = f"M{number(low)} {number(y)}H{number(high)}m0-3v6M{number(low)} {number(y - 3)}v6"
        drawn.append(path(whisker, f"whisker {kind}"))
    if len(estimate.values) > 1:
        dot = Markup('<circle cx="{}" cy="{}" r="2"/>')
        dots = Markup("").join(dot.format(number(across(value)), number(y)) for value in estimate.values)
        drawn.append(Markup('<g class="seed {}">{}</g>').format(kind, dots))
    return [*drawn, marker(kind, across(estimate.mean), y)]


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    description: str,
    *,
    top: float,
    unit: str,
    framed: Collection[tuple[int, int]] = (),
    apart: Collection[int] = (),
    totals: Sequence[str] = (),
    mark: tuple[str, float] | None = None,
) -> Markup:
    """Draw a table of colours from 0 to ``top``, with the numbers in the cells if there is room.

    Args:
        values: by row and column, in ``unit``; None is an empty cell.
        rows: the names of the rows.
        columns: the names of the columns.
        description: alternative text for those who cannot see the picture.
        top: the value of the brightest colour, above 0.
        unit: what is measured, for the colour bar.
        framed: row and column of each cell to frame.
        apart: rows with a gap above them.
        totals: a text at the end of each row.
        mark: name and value of a baseline on the colour bar.
    """
    left = 8.0 + max(text_width(shorten(name), _SMALL) for name in rows)
    right = WIDTH - (34.0 if totals else 4.0)
    width = (right - left) / len(columns)
    height = 21.0 if len(rows) <= MOST_NAMED else min(width, 13.0)
    lefts = [left + width * column for column in range(len(columns))]
    # Low rows begin further down, so that the first name fits beside its row.
    above = 2.0 if height > 12.0 else 6.0
    tops = [above + height * row + 5.0 * sum(row >= first for first in apart) for row in range(len(rows))]
    bottom = tops[-1] + height

    drawn = _cells(values, lefts, tops, width, height, top)
    if framed:
        drawn.append(_frames([(lefts[column], tops[row]) for row, column in framed], width, height))
    every = math.ceil(10.0 / height)
    for name, y in list(zip(rows, tops, strict=True))[::every]:
        drawn.append(text(left - 5, y + height / 2 + 3.5, shorten(name), text_anchor="end"))
    for total, y in zip(totals, tops, strict=bool(totals)):
        drawn.append(text(WIDTH - 2, y + height / 2 + 3.5, total, text_anchor="end"))
    names, under = _column_names(columns, left, width, bottom)
    bar, end = _colour_bar(left, right, under, top, unit, mark)
    return picture(end, description, [*drawn, *names, *bar], "heat")


def _cells(
    values: Sequence[Sequence[float | None]],
    lefts: Sequence[float],
    tops: Sequence[float],
    width: float,
    height: float,
    top: float,
) -> list[Markup]:
    """Return one path for each colour, as a hundred classes are ten thousand cells, and the numbers."""
    paths: dict[str, list[str]] = {}
    numbers: list[Markup] = []
    decimals = 0 if top >= 10.0 else 1 if top >= 1.0 else 2
    fits = height >= _SMALL and text_width(f"{top:.{decimals}f}", _SMALL) <= width
    for line, y in zip(values, tops, strict=True):
        for value, x in zip(line, lefts, strict=True):
            # A cell ends at the very coordinates where the next begins: the slightest gap would show.
            right, bottom = number(x + width), number(y + height)
            cell = f"M{number(x)} {number(y)}H{right}V{bottom}H{number(x)}z"
            paths.setdefault("" if value is None else _colour(value, top), []).append(cell)
            if fits and value is not None:
                label = f"{value:.{decimals}f}"
                shade = "on-light" if value >= 0.6 * top else "on-dark"
                middle = x + width / 2, y + height / 2 + 3.2
                numbers.append(text(*middle, label, text_anchor="middle", class_=shade))
    cells = [
        path("".join(outlines), "cell" if colour else "cell empty", fill=colour or None)
        for colour, outlines in paths.items()
    ]
    return cells + numbers


def _frames(corners: Sequence[tuple[float, float]], width: float, height: float) -> Markup:
    inset = min(1.5, 0.15 * width)
    across, down = number(width - 2 * inset), number(height - 2 * inset)
    frames = [f"M{number(x + inset)} {number(y + inset)}h{across}v{down}h-{across}z" for x, y in corners]
    return path("".join(frames), "framed", stroke_width=number(1.4 * inset))


def _colour(value: float, top: float) -> str:
    """Return the nearest of 64 steps of the colour scale."""
    return to_hex(matplotlib.colormaps["viridis"](round(63 * min(max(value / top, 0.0), 1.0)) / 63))


def _column_names(
    columns: Sequence[str], left: float, width: float, bottom: float
) -> tuple[list[Markup], float]:
    """Return the names below a heat map, slanted if they are long, and where they end."""
    names = [shorten(name) for name in columns]
    every = math.ceil(11.0 / width)
    shown = [(left + width * (index + 0.5), name) for index, name in enumerate(names)][::every]
    longest = max(text_width(name, _SMALL) for name in names)
    if longest < width * every:
        return [text(x, bottom + 13, name, text_anchor="middle") for x, name in shown], bottom + 18
    slanted = []
    for x, name in shown:
        turn = f"rotate(-45 {number(x + 3)} {number(bottom + 9)})"
        slanted.append(text(x + 3, bottom + 9, name, text_anchor="end", transform=turn))
    return slanted, bottom + 14 + 0.71 * longest


def _colour_bar(
    left: float, right: float, top: float, highest: float, unit: str, mark: tuple[str, float] | None
) -> tuple[list[Markup], float]:
    count = 40
    # A mark and its name stand above the bar.
    y = top + (8.0 if mark is None else 20.0)
    width = (right - left) / count
    drawn = [
        path(
            f"M{number(left + width * step)} {number(y)}H{number(left + width * (step + 1))}v8"
            f"H{number(left + width * step)}z",
            "cell",
            fill=_colour(step, count - 1.0),
        )
        for step in range(count)
    ]
    drawn.append(text(left, y + 20, "0", class_="tick"))
    drawn.append(text(right, y + 20, f"{highest:.3g}", text_anchor="end", class_="tick"))
    drawn.append(text((left + right) / 2, y + 20, unit, text_anchor="middle"))
    if mark is not None:
        name, value = mark
        share = min(value / highest, 1.0)
        x = left + (right - left) * share
        drawn.append(path(f"M{number(x)} {number(y + 9)}v-10l-3-5h6l-3 5", "mark"))
        beside, anchor = (x + 6, None) if share < 0.5 else (x - 6, "end")
        drawn.append(text(beside, y - 3, name, text_anchor=anchor, class_="tick"))
    return drawn, y + 26
