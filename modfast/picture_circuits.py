"""The picture of circuits: the network with the weights that a class needs, plain above modular."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from .circuit import Circuit
from .circuit_network import Network, lay_out, weight_class
from .circuit_words import percent
from .partition import Partition
from .picture_style import name_end, new_figure, save_figure

# Okabe and Ito's colours again, beginning with those that plain and modular leave.
CLUSTERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#0072B2", "#D55E00")
_CROSSING, _UNUSED = "#8B949E", "#D5DBE1"

# Points, by weight_class.
_LINE_WIDTHS = (0.4, 0.6, 0.9, 1.2, 1.7)

_MOST_NAMED = 12


def draw_circuits(
    path: str | os.PathLike[str],
    circuits: Mapping[str, Sequence[Circuit]],
    partitions: Mapping[str, Mapping[str, Partition]],
    classes: Sequence[str],
) -> None:
    """Draw circuits as networks: a column of dots for the neurons between two layers, a line for each weight.

    Lines inside a cluster have its colour, those between clusters are grey; dots that no line touches are
    pale. Of more than 64 neurons several share a dot, and a broad line stands for several weights.

    Args:
        path: PNG file to write.
        circuits: ``"plain"`` and ``"modular"`` (or any names, a row of panels for each) to circuits (a panel
            for each), of the same classes in the same order.
        partitions: the same names to the partitions of their layers; a layer may have none.
        classes: names of the classes, by label.

    Raises:
        ValueError: there is no circuit, the rows differ in their classes, a label has no name, or a
            partition is missing or does not fit.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "circuits.png"
        >>> circuit = Circuit(0, {"fc": torch.eye(2, dtype=torch.bool)}, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)
        >>> draw_circuits(target, {"plain": [circuit]}, {"plain": {}}, ["cat", "dog"])
        >>> target.exists()
        True
    """
    if not circuits or not all(circuits.values()):
        raise ValueError(f"circuits must hold at least one for each name, got {dict(circuits)}")
    labels = [circuit.label for circuit in next(iter(circuits.values()))]
    for name, row in circuits.items():
        if [circuit.label for circuit in row] != labels:
            raise ValueError(
                f"circuits[{name!r}] must be of the classes {labels}, got {[each.label for each in row]}"
            )
        if name not in partitions:
            raise ValueError(f"partitions must hold {name!r}, got {sorted(partitions)}")
    if not all(0 <= label < len(classes) for label in labels):
        raise ValueError(f"classes must name every label of {labels}, got {len(classes)} names")

    networks = {name: [lay_out(each, partitions[name]) for each in row] for name, row in circuits.items()}
    figure = new_figure(2.9 * len(circuits) + 0.5)
    rows = figure.subplots(len(circuits), len(labels), squeeze=False)
    for (name, row), panels in zip(circuits.items(), rows, strict=True):
        for circuit, network, axes in zip(row, networks[name], panels, strict=True):
            _draw(axes, network, classes, circuit.label)
            kept = f"{circuit.num_weights:,} weights, {percent(circuit.size)}"
            axes.set_title(f"{name}, class {classes[circuit.label]}\n{kept}", fontsize=9)
    clusters = {
        int(cluster)
        for row in networks.values()
        for network in row
        for column in network.columns
        for cluster, _, _ in column.bands
        if cluster >= 0
    }
    handles = [Line2D([], [], color=_colour(each), linewidth=2.5) for each in (*sorted(clusters), -1)]
    names = [*(f"inside cluster {each}" for each in sorted(clusters)), "between clusters"]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), fontsize=9)
    save_figure(figure, path)


def _colour(cluster: int) -> str:
    return _CROSSING if cluster < 0 else CLUSTERS[cluster % len(CLUSTERS)]


def _draw(axes: Axes, network: Network, classes: Sequence[str], label: int) -> None:
    for links in network.links:
        before, after = links.columns
        starts = network.columns[before].places[links.starts]
        ends = network.columns[after].places[links.ends]
        crossing, inside = (0.15, 0.7) if links.dense else (0.35, 0.9)
        lines = LineCollection(
            [((before, start), (after, end)) for start, end in zip(starts, ends, strict=True)],
            colors=[
                to_rgba(_colour(cluster), crossing if cluster < 0 else inside)
                for cluster in links.clusters.tolist()
            ],
            linewidths=[_LINE_WIDTHS[weight_class(count)] for count in links.counts.tolist()],
        )
        axes.add_collection(lines)
        under = f"{name_end(links.layer, 10)}\n{percent(links.kept)}"
        axes.text((before + after) / 2, 1.04, under, ha="center", va="top", fontsize=8)
    for place, column in enumerate(network.columns):
        used = network.used(place)
        colours = [
            _colour(cluster) if touched else _UNUSED
            for cluster, touched in zip(column.clusters.tolist(), used, strict=True)
        ]
        size = 5 if len(column.places) > _MOST_NAMED else 16
        axes.scatter([place] * len(column.places), column.places, s=size, c=colours, zorder=3, linewidths=0)
        axes.text(place, -0.05, f"{column.size:,}", ha="center", va="bottom", fontsize=8, color="#57606A")
    outputs = network.columns[-1]
    if outputs.size == len(classes):
        for output, name in enumerate(classes):
            if len(classes) <= _MOST_NAMED or output == label:
                where = (len(network.columns) - 0.9, outputs.places[outputs.node_of[output]])
                weight = "bold" if output == label else "normal"
                axes.text(*where, name_end(name, 12), va="center", fontsize=7, fontweight=weight)
    axes.set_xlim(-0.15, len(network.columns) - 0.4)
    axes.set_ylim(1.2, -0.1)
    axes.set_axis_off()
