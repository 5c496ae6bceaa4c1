"""A circuit as SVG: columns of neurons, and lines for the kept weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from modfast.report.numbers import name_end, percent
from modfast.report.svg.picture import MOST_NAMED, WIDTH, number, path, picture, shorten, text, text_width

from .layout import Column, Links, Network, weight_class

# Classes c0, c1, ... of the page's style sheet.
CLUSTER_COLOURS = 6

_LEFT, _TOP, _HEIGHT = 24.0, 24.0, 230.0


def draw_network(network: Network, classes: Sequence[str], label: int, description: str) -> Markup:
    """Draw a circuit: columns of nodes for the neurons, and a line for one or several kept weights.

    Args:
        network: the circuit, laid out.
        classes: names of the outputs, if the last column has as many neurons.
        label: the class whose circuit it is.
        description: alternative text for those who cannot see the picture.
    """
    outputs = network.columns[-1]
    named = outputs.size == len(classes)
    shown = [shorten(name, 12) for name in classes]
    # The name of the circuit's own class is in bold type, which is wider.
    right = WIDTH - (12.0 + max(text_width(name, 12.0) for name in shown) if named else 16.0)
    step = (right - _LEFT) / (len(network.columns) - 1)
    across = [_LEFT + step * index for index in range(len(network.columns))]

    drawn: list[Markup] = []
    for links in network.links:
        before, after = links.columns
        ends = ((across[before], network.columns[before]), (across[after], network.columns[after]))
        drawn += _lines(links, *ends)
        middle = (across[before] + across[after]) / 2
        under = (name_end(links.layer, max(3, int(step / 5.6))), percent(links.kept))
        for shift, line in zip((17, 31), under, strict=True):
            drawn.append(text(middle, _TOP + _HEIGHT + shift, line, text_anchor="middle"))
    for index, (x, column) in enumerate(zip(across, network.columns, strict=True)):
        drawn += _nodes(column, network.used(index), x)
        drawn.append(text(x, _TOP - 10, f"{column.size:,}", text_anchor="middle", class_="tick"))
    drawn += [
        text(2, _down((top + bottom) / 2) + 4, str(cluster), class_=f"name {_colour(cluster)}")
        for cluster, top, bottom in network.columns[0].bands
        if cluster >= 0
    ]
    if named:
        for output, name in enumerate(shown):
            if len(classes) <= MOST_NAMED or output == label:
                y = _down(outputs.places[outputs.node_of[output]]) + 3.5
                style = "found" if output == label else None
                drawn.append(text(right + 8, y, name, class_=style))
    return picture(_TOP + _HEIGHT + 38, description, drawn, "network")


def _down(place: float) -> float:
    return _TOP + _HEIGHT * place


def _colour(cluster: int) -> str:
    return "crossing" if cluster < 0 else f"c{cluster % CLUSTER_COLOURS}"


def _lines(links: Links, start: tuple[float, Column], end: tuple[float, Column]) -> list[Markup]:
    """Return one path for each colour and width."""
    (left, before), (right, after) = start, end
    across = number(right - left, 1)
    paths: dict[tuple[int, int], list[str]] = {}
    for index in range(len(links.counts)):
        top = _down(before.places[links.starts[index]])
        change = _down(after.places[links.ends[index]]) - top
        key = (int(links.clusters[index]), weight_class(int(links.counts[index])))
        line = f"M{number(left, 1)} {number(top, 1)}l{across} {number(change, 1)}"
        paths.setdefault(key, []).append(line)
    dense = " dense" if links.dense else ""
    return [
        path("".join(lines), f"line {_colour(cluster)} w{width}{dense}")
        for (cluster, width), lines in paths.items()
    ]


def _nodes(column: Column, used: np.ndarray, x: float) -> list[Markup]:
    """Return one path for each colour; its lines have no length, and their round ends are the dots."""
    paths: dict[str, list[str]] = {}
    for place, cluster, touched in zip(column.places, column.clusters, used, strict=True):
        kind = f"node {_colour(int(cluster))}" if touched else "node unused"
        paths.setdefault(kind, []).append(f"M{number(x, 1)} {number(_down(place), 1)}h0")
    few = " few" if len(column.places) <= MOST_NAMED else ""
    return [path("".join(dots), f"{kind}{few}") for kind, dots in paths.items()]
