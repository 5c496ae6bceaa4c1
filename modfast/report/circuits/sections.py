"""The contents of those sections of a circuits report that show pictures, plain beside modular."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from modfast.circuits.keys import ALL
from modfast.report.numbers import MARGIN, MINUS, NOTHING, Estimate, average, estimate, numbers, percent
from modfast.report.svg.charts import difference_plot, dot_plot, heat_map

from .drawing import CLUSTER_COLOURS, draw_network
from .findings import Findings
from .summary import BY_CLASS
from .words import CRITERIA


class Panel(NamedTuple):
    """A picture with its heading, and the kind of model that it shows; None if it shows all kinds."""

    kind: str | None
    heading: str
    picture: Markup


class Figure(NamedTuple):
    """Panels, beside each other where there is room, and their caption."""

    panels: Sequence[Panel]
    caption: str


class ByLayer(NamedTuple):
    """Figures by layer name: of the regularised layers, and of the other layers with clusters."""

    first: Mapping[str, Figure]
    others: Mapping[str, Figure]


def criterion_section(findings: Findings, criterion: str) -> dict[str, Any]:
    """Return what a criterion's section shows: its rule, sizes, overlaps, clusters and the circuits."""
    inside = findings.shown_run(findings.kinds[0])["criteria"][criterion]["inside"]
    tolerance = findings.config["tolerance"]
    return {
        "rule": CRITERIA[criterion].rule.format(f" plus {tolerance:g} nats" if tolerance else ""),
        "right_answers": _right_answers(findings, criterion),
        "undemanding": _undemanding(findings, criterion),
        "sizes": _sizes(findings, criterion),
        "size_changes": _size_changes(findings, criterion),
        "overlaps": _overlaps(findings, criterion),
        "inside": _by_layer(findings, inside, lambda layer: _inside(findings, criterion, layer)),
        "shared_dots": _shared_dots(findings),
        "colours": _colours(findings),
        "networks": _networks(findings, criterion),
    }


def clusters_section(findings: Findings) -> ByLayer:
    """Return figures of how well each class is recognised with one cluster alone, and with one off."""
    layers = findings.shown_run(findings.kinds[0])["cluster_accuracy"]
    return _by_layer(findings, layers, lambda layer: _class_accuracy(findings, layer))


def _right_answers(findings: Findings, criterion: str) -> list[tuple[str, str, str]]:
    """Return each kind, and the shares of images on which its whole networks and its circuits are right."""

    def mean(kind: str, measure: str) -> str:
        return percent(
            average([value for measures in findings.found(kind, criterion) for value in measures[measure]])
        )

    return [(kind, mean(kind, "accuracy_before"), mean(kind, "accuracy_after")) for kind in findings.kinds]


def _undemanding(findings: Findings, criterion: str) -> dict[str, Any] | None:
    """Count the circuits that are allowed the loss of a constant answer, ln 2; None unless balanced."""
    if criterion != "balanced":
        return None
    by_run = [measures for kind in findings.kinds for measures in findings.found(kind, criterion)]
    losses = [loss for measures in by_run for loss in measures["loss_before"] if loss is not None]
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
            kind: estimate([read(measures) for measures in findings.found(kind, criterion)], 100.0)
            for kind in findings.kinds
        }
        return {kind: size for kind, size in made.items() if size is not None}

    rows = [
        (name, estimates(lambda measures, index=index: measures["size"][index]))
        for index, name in enumerate(findings.names)
    ]
    mean = estimates(lambda measures: average(measures["size"]))
    if len(rows) > 1:
        rows.append(("all classes", mean))
    layers = [
        (layer, estimates(lambda measures, layer=layer: average(measures["sizes"][layer])))
        for layer in findings.config["layers"]
    ]
    means = ", ".join(f"{kind} {size.mean:.3g} %" for kind, size in mean.items())
    by_class = dot_plot(
        rows, "circuit size (% of weights)", f"Circuit size by class: {means}", rule=len(rows) > 1
    )
    by_layer = dot_plot(layers, "kept weights (% of the layer's)", "Share of weights kept, by layer")
    return [
        Panel(None, "by class", by_class),
        Panel(None, "by layer, mean of the classes", by_layer),
    ]


def _size_changes(findings: Findings, criterion: str) -> Figure | None:
    """Return the figure of relative differences of size by class; None unless two kinds are compared."""
    if len(findings.kinds) < 2:
        return None
    changes = findings.results["summary"][criterion][BY_CLASS]
    parts = dict(zip(findings.names, changes["size_change"], strict=True))
    mean = changes["mean_size_change"]
    rows = [(name, _scaled(part)) for name, part in parts.items()]
    if len(rows) > 1:
        rows.append(("all classes", _scaled(mean)))
    told = numbers([None, None, mean], 100.0)[2]
    average_told = "nothing to measure" if mean["mean"] is None else f"{told} %"
    drawn = difference_plot(
        rows,
        f"(modular {MINUS} plain) / plain (%)",
        f"Relative difference of circuit sizes by class, modular against plain, on average: {average_told}",
        rule=len(rows) > 1,
    )
    several = len(findings.config["seeds"]) > 1
    intervals = ", with 95 % intervals over seeds, not corrected for the number of classes" if several else ""
    caption = (
        "By how much each class's circuit is smaller (left of zero) or larger in the modular network than in "
        f"the plain one, in percent of the latter{intervals}. Mean of the classes: {average_told}."
    )
    return Figure([Panel(None, f"by class, {findings.over_seeds}", drawn)], caption)


def _scaled(part: Mapping[str, Any]) -> Estimate | None:
    """Return a mean over seeds in percent; None where a seed has no value."""
    return None if part["mean"] is None else estimate(part["values"], 100.0)


def _overlaps(findings: Findings, criterion: str) -> Figure | None:
    """Return the figure of overlaps; None if there are no two circuits."""
    count = len(findings.names)
    if count < 2:
        return None
    tables: dict[str, list[list[float | None]]] = {}
    chances: dict[str, float | None] = {}
    for kind in findings.kinds:
        runs = findings.found(kind, criterion)
        tables[kind] = [
            [
                None if row == column else _hundredfold([run["overlap"][ALL][row][column] for run in runs])
                for column in range(count)
            ]
            for row in range(count)
        ]
        chances[kind] = _hundredfold([run["random_overlap"][ALL] for run in runs])
    top = _top([value for table in tables.values() for row in table for value in row], list(chances.values()))
    panels: list[Panel] = []
    sentences: list[str] = []
    for kind, table in tables.items():
        chance = chances[kind]
        mean = average([value for row in table for value in row])
        means = f"{kind} {_percentage(mean)} on average, by chance {_percentage(chance)}"
        sentences.append(means.capitalize() if not sentences else means)
        drawn = heat_map(
            table,
            findings.names,
            findings.names,
            f"Overlap of the circuits of each two classes, {means}",
            top=top,
            unit="overlap (% of the union)",
            mark=None if chance is None else ("by chance", chance),
        )
        panels.append(Panel(kind, f"{kind}, {findings.over_seeds}", drawn))
    caption = (
        "Intersection over union of the circuits of each two classes: the weights that both keep, as a share "
        f"of those that either keeps; the diagonal is left out. {'; '.join(sentences)}. Random circuits have "
        "the same sizes in each layer; the triangle on the colour bar marks their overlap."
    )
    return Figure(panels, caption)


def _inside(findings: Findings, criterion: str, layer: str) -> Figure:
    tables: dict[str, list[list[float | None]]] = {}
    for kind in findings.kinds:
        measures = findings.shown_run(kind)["criteria"][criterion]
        lines = [measures["random_inside"][layer], *measures["inside"][layer]]
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
        f"The share of the circuits' weights of {layer} inside each cluster, and at the right inside any; "
        "the others cross between clusters. The first row is that of a random circuit. A row with one bright "
        "cell is a class with a cluster of its own."
    )
    return Figure(panels, caption)


def _networks(findings: Findings, criterion: str) -> list[tuple[str, list[Panel]]]:
    """Return the name of each class whose circuits are drawn, and its circuit in each kind of model."""
    classes = findings.config["classes"]
    labels = [
        label for kind, rule, label in findings.networks if (kind, rule) == (findings.kinds[0], criterion)
    ]
    drawn = []
    for label in labels:
        panels = []
        for kind in findings.kinds:
            circuit = findings.circuits[kind, criterion, label]
            shares = ", ".join(f"{percent(share)} of {layer}" for layer, share in circuit.sizes.items())
            description = f"Circuit of {classes[label]} in the {kind} network, which keeps {shares}"
            network = findings.networks[kind, criterion, label]
            heading = f"{kind}, {circuit.num_weights:,} weights ({percent(circuit.size)})"
            panels.append(Panel(kind, heading, draw_network(network, classes, label, description)))
        drawn.append((classes[label], panels))
    return drawn


def _shared_dots(findings: Findings) -> dict[str, int]:
    """Return the sizes of columns whose dots stand for several neurons, and for how many at most."""
    return {
        f"{column.size:,}": column.most_shared
        for network in findings.networks.values()
        for column in network.columns
        if column.most_shared > 1
    }


def _colours(findings: Findings) -> list[tuple[str, str]]:
    """Return the classes that the style sheet has for lines, and what they mean."""
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
    """Return the cells where a cluster alone nearly equals the whole network, or where its absence costs."""
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
