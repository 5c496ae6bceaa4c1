"""What the sections of a circuits report show that are pictures, plain beside modular."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from modfast.circuits.keys import ALL
from modfast.report.numbers import MARGIN, NOTHING, Estimate, average, estimate, percent
from modfast.report.svg.charts import dot_plot, heat_map

from .drawing import CLUSTER_COLOURS, draw_network
from .findings import Findings
from .words import CRITERIA


class Panel(NamedTuple):
    """A picture below its heading, and of which kind of model it is; None: of each."""

    kind: str | None
    heading: str
    picture: Markup


class Figure(NamedTuple):
    """Panels beside each other where there is room, and what they show."""

    panels: Sequence[Panel]
    caption: str


class ByLayer(NamedTuple):
    """Layer name to figure: of the regularised layers, and of the others that have clusters."""

    first: Mapping[str, Figure]
    others: Mapping[str, Figure]


def criterion_section(findings: Findings, criterion: str) -> dict[str, Any]:
    """What was asked, then sizes, overlaps, clusters and the circuits themselves."""
    inside = findings.shown_run(findings.kinds[0])["criteria"][criterion]["inside"]
    tolerance = findings.config["tolerance"]
    return {
        "rule": CRITERIA[criterion].rule.format(f" plus {tolerance:g} nats" if tolerance else ""),
        "right_answers": _right_answers(findings, criterion),
        "undemanding": _undemanding(findings, criterion),
        "sizes": _sizes(findings, criterion),
        "overlaps": _overlaps(findings, criterion),
        "inside": _by_layer(findings, inside, lambda layer: _inside(findings, criterion, layer)),
        "shared_dots": _shared_dots(findings),
        "colours": _colours(findings),
        "networks": _networks(findings, criterion),
    }


def clusters_section(findings: Findings) -> ByLayer:
    """How well each class is recognised with one cluster alone, and with one off."""
    layers = findings.shown_run(findings.kinds[0])["cluster_accuracy"]
    return _by_layer(findings, layers, lambda layer: _class_accuracy(findings, layer))


def _right_answers(findings: Findings, criterion: str) -> list[tuple[str, str, str]]:
    """Kind, and on which share of the images its whole networks are right, and their circuits."""

    def told(kind: str, share: str) -> str:
        return percent(
            average([value for found in findings.found(kind, criterion) for value in found[share]])
        )

    return [(kind, told(kind, "accuracy_before"), told(kind, "accuracy_after")) for kind in findings.kinds]


def _undemanding(findings: Findings, criterion: str) -> dict[str, Any] | None:
    """For how many circuits it would do to know nothing."""
    if criterion != "balanced":
        return None
    found = [each for kind in findings.kinds for each in findings.found(kind, criterion)]
    losses = [loss for each in found for loss in each["loss_before"] if loss is not None]
    cost = math.log(2)
    count = sum(loss + findings.config["tolerance"] >= cost for loss in losses)
    return {"cost": cost, "count": count, "total": len(losses)}


def _by_layer(findings: Findings, layers: Iterable[str], draw: Callable[[str], Figure]) -> ByLayer:
    clustered = list(layers)
    first = [layer for layer in clustered if layer in findings.config["regularised_layers"]] or clustered[:1]
    drawn = {layer: draw(layer) for layer in clustered}
    return ByLayer(
        {layer: drawn[layer] for layer in first},
        {layer: figure for layer, figure in drawn.items() if layer not in first},
    )


def _sizes(findings: Findings, criterion: str) -> list[Panel]:
    def estimates(read: Any) -> dict[str, Estimate]:
        made = {
            kind: estimate([read(found) for found in findings.found(kind, criterion)], 100.0)
            for kind in findings.kinds
        }
        return {kind: each for kind, each in made.items() if each is not None}

    rows = [
        (name, estimates(lambda found, index=index: found["size"][index]))
        for index, name in enumerate(findings.names)
    ]
    mean = estimates(lambda found: average(found["size"]))
    if len(rows) > 1:
        rows.append(("all classes", mean))
    layers = [
        (layer, estimates(lambda found, layer=layer: average(found["sizes"][layer])))
        for layer in findings.config["layers"]
    ]
    told = ", ".join(f"{kind} {each.mean:.3g} %" for kind, each in mean.items())
    by_class = dot_plot(
        rows, "circuit size (% of weights)", f"Circuit size by class: {told}", rule=len(rows) > 1
    )
    by_layer = dot_plot(layers, "kept weights (% of the layer's)", "Share of weights kept, by layer")
    return [
        Panel(None, "by class", by_class),
        Panel(None, "by layer, mean of the classes", by_layer),
    ]


def _overlaps(findings: Findings, criterion: str) -> Figure | None:
    """None if there are no two circuits."""
    count = len(findings.names)
    if count < 2:
        return None
    tables: dict[str, list[list[float | None]]] = {}
    chances: dict[str, float | None] = {}
    for kind in findings.kinds:
        found = findings.found(kind, criterion)
        tables[kind] = [
            [
                None if row == column else _hundredfold([each["overlap"][ALL][row][column] for each in found])
                for column in range(count)
            ]
            for row in range(count)
        ]
        chances[kind] = _hundredfold([each["random_overlap"][ALL] for each in found])
    top = _top([value for table in tables.values() for row in table for value in row], list(chances.values()))
    panels: list[Panel] = []
    sentences: list[str] = []
    for kind, table in tables.items():
        chance = chances[kind]
        mean = average([value for row in table for value in row])
        told = f"{kind} {_percentage(mean)} on average, by chance {_percentage(chance)}"
        sentences.append(told.capitalize() if not sentences else told)
        drawn = heat_map(
            table,
            findings.names,
            findings.names,
            f"Overlap of the circuits of each two classes, {told}",
            top=top,
            unit="overlap (% of the union)",
            mark=None if chance is None else ("by chance", chance),
        )
        panels.append(Panel(kind, f"{kind}, {findings.over_seeds}", drawn))
    caption = (
        "Intersection over union of each two classes' circuits: the weights that both keep, as a share of "
        f"those that either keeps; the diagonal is left out. {'; '.join(sentences)}. Random circuits have "
        "the same sizes in each layer; the triangle on the colour bar is theirs."
    )
    return Figure(panels, caption)


def _inside(findings: Findings, criterion: str, layer: str) -> Figure:
    tables: dict[str, list[list[float | None]]] = {}
    for kind in findings.kinds:
        found = findings.shown_run(kind)["criteria"][criterion]
        lines = [found["random_inside"][layer], *found["inside"][layer]]
        tables[kind] = [[_hundredfold([value]) for value in line] for line in lines]
    top = _top([value for table in tables.values() for row in table for value in row])
    panels = []
    for kind, table in tables.items():
        # A circuit without a weight in the layer has no shares.
        totals = [None if None in row else sum(value or 0.0 for value in row) for row in table]
        drawn = heat_map(
            table,
            ["by chance", *findings.names],
            [f"cluster {cluster}" for cluster in range(len(table[0]))],
            f"{layer}, {kind}: {_rounded(average(totals[1:]))} of the circuits' weights lie inside clusters, "
            f"{_rounded(totals[0])} by chance",
            top=top,
            unit="share of kept weights (%)",
            apart=(1,),
            totals=[_rounded(total) for total in totals],
        )
        panels.append(Panel(kind, f"{kind}, {layer}, seed {findings.shown_seed}", drawn))
    caption = (
        f"Where the circuits' weights of {layer} are: inside each cluster, and at the right inside any; the "
        "others cross between clusters. The first row is a random circuit's. A row with one bright cell is a "
        "class with a cluster of its own."
    )
    return Figure(panels, caption)


def _networks(findings: Findings, criterion: str) -> list[tuple[str, list[Panel]]]:
    """For each class whose circuits are drawn its name, and the circuit in each kind of model."""
    classes = findings.config["classes"]
    labels = [
        label for kind, each, label in findings.networks if (kind, each) == (findings.kinds[0], criterion)
    ]
    drawn = []
    for label in labels:
        panels = []
        for kind in findings.kinds:
            circuit = findings.circuits[kind, criterion, label]
            kept = ", ".join(f"{percent(share)} of {layer}" for layer, share in circuit.sizes.items())
            description = f"Circuit of {classes[label]} in the {kind} network, which keeps {kept}"
            network = findings.networks[kind, criterion, label]
            heading = f"{kind}, {circuit.num_weights:,} weights ({percent(circuit.size)})"
            panels.append(Panel(kind, heading, draw_network(network, classes, label, description)))
        drawn.append((classes[label], panels))
    return drawn


def _shared_dots(findings: Findings) -> dict[str, int]:
    """For how many neurons a dot stands, at most, in a column of so many neurons."""
    return {
        f"{column.size:,}": column.most_shared
        for network in findings.networks.values()
        for column in network.columns
        if column.most_shared > 1
    }


def _colours(findings: Findings) -> list[tuple[str, str]]:
    """The style sheet's classes of lines, and what they mean."""
    count = min(max(findings.num_clusters.values(), default=0), CLUSTER_COLOURS)
    inside = [(f"c{cluster}", f"inside cluster {cluster}") for cluster in range(count)]
    return [*inside, ("crossing", "between clusters")]


def _class_accuracy(findings: Findings, layer: str) -> Figure:
    classes = findings.config["classes"]
    panels = []
    for kind in findings.kinds:
        run = findings.shown_run(kind)
        shares = run["cluster_accuracy"][layer]
        clusters = range(len(shares["only"]))
        lines = [run["class_accuracy"], *shares["only"], *shares["without"]]
        table = [[_hundredfold([value]) for value in line] for line in lines]
        names = [f"only cluster {cluster}" for cluster in clusters]
        names += [f"cluster {cluster} off" for cluster in clusters]
        drawn = heat_map(
            table,
            ["whole network", *names],
            classes,
            f"Accuracy by class of the {kind} network, whole, with one cluster of {layer} alone, with one "
            "off",
            top=100.0,
            unit="test accuracy (%)",
            framed=_notable(table, len(clusters)),
            apart=(1, 1 + len(clusters)),
        )
        panels.append(Panel(kind, f"{kind}, {layer}, seed {findings.shown_seed}", drawn))
    caption = (
        f"Test accuracy on each class: with one cluster of {layer} alone, framed where that is at most "
        f"{MARGIN:.0f} points below the whole network; with one off, framed where that costs more than "
        f"{MARGIN:.0f} points."
    )
    return Figure(panels, caption)


def _notable(table: Sequence[Sequence[float | None]], clusters: int) -> list[tuple[int, int]]:
    """Cells where a cluster alone does nearly as well as the whole network, or its loss is felt."""
    return [
        (row, column)
        for row, line in enumerate(table[1:], start=1)
        for column, (whole, value) in enumerate(zip(table[0], line, strict=True))
        if whole is not None and value is not None and (whole - value <= MARGIN) == (row <= clusters)
    ]


def _hundredfold(values: Sequence[float | None]) -> float | None:
    mean = average(values)
    return None if mean is None else 100.0 * mean


def _top(*values: Sequence[float | None]) -> float:
    """A colour scale's end: the largest value."""
    return max((value for part in values for value in part if value is not None), default=0.0) or 1.0


def _rounded(percentage: float | None) -> str:
    return NOTHING if percentage is None else f"{percentage:.0f} %"


def _percentage(value: float | None) -> str:
    return percent(None if value is None else value / 100.0)
