"""The sections of a circuits report that are pictures, plain beside modular."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modfast.circuits.keys import ALL
from modfast.report.numbers import MARGIN, NOTHING, Estimate, average, estimate, percent
from modfast.report.svg.charts import dot_plot, heat_map, marker
from modfast.report.svg.markup import Content, Markup, element, join

from .drawing import CLUSTER_COLOURS, draw_network
from .findings import Findings
from .words import CRITERIA


def criterion_section(findings: Findings, criterion: str) -> tuple[str, Markup]:
    """Heading and content: what was asked, then sizes, overlaps, clusters and the circuits themselves."""
    title, _, rule = CRITERIA[criterion]
    inside = findings.shown_run(findings.kinds[0])["criteria"][criterion]["inside"]
    tolerance = findings.config["tolerance"]
    rule = rule.format(f" plus {tolerance:g} nats" if tolerance else "")
    return title, join(
        element("p", rule),
        element("p", _right_answers(findings, criterion), _undemanding(findings, criterion)),
        element("h3", "How large the circuits are"),
        _sizes(findings, criterion),
        element("h3", "How much two circuits share"),
        _overlaps(findings, criterion),
        element("h3", "Which clusters the circuits lie in"),
        _by_layer(findings, inside, lambda layer: _inside(findings, criterion, layer)),
        element("h3", "What the circuits look like"),
        _networks(findings, criterion),
    )


def _right_answers(findings: Findings, criterion: str) -> str:
    sentences = []
    for kind in findings.kinds:
        before, after = (
            average([value for found in findings.found(kind, criterion) for value in found[share]])
            for share in ("accuracy_before", "accuracy_after")
        )
        sentences.append(
            f"whole {kind} networks are right on {percent(before)}, their circuits on {percent(after)}"
        )
    return f"On these images {'; '.join(sentences)}."


def _undemanding(findings: Findings, criterion: str) -> str | None:
    """For how many circuits it would do to know nothing."""
    if criterion != "balanced":
        return None
    found = [each for kind in findings.kinds for each in findings.found(kind, criterion)]
    losses = [loss for each in found for loss in each["loss_before"] if loss is not None]
    count = sum(loss + findings.config["tolerance"] >= math.log(2) for loss in losses)
    return (
        f" Saying one half to every image costs ln 2 = {math.log(2):.3f} nats: {count} of the {len(losses)} "
        "circuits were allowed that, since the loss of their whole network is no lower."
    )


def _key(kinds: Sequence[str], *more: str) -> Markup:
    """What the markers of plain and modular models mean."""
    items = [element("li", _kind_mark(kind), kind) for kind in kinds]
    return element("ul", items, [element("li", each) for each in more], class_="key")


def _kind_mark(kind: str) -> Markup:
    """The marker of a kind of model, in a line of text."""
    return element("svg", marker(kind, 8, 8), viewBox="0 0 16 16", aria_hidden="true")


def _columns(pictures: Mapping[str, tuple[str, Markup]]) -> Markup:
    """For each kind of model a heading and a picture, beside each other where there is room."""
    columns = [
        element("div", element("p", _kind_mark(kind), heading, class_="kind"), drawn)
        for kind, (heading, drawn) in pictures.items()
    ]
    return element("div", columns, class_="side")


def _side_by_side(pictures: Mapping[str, tuple[str, Markup]], caption: Content) -> Markup:
    return element("figure", _columns(pictures), element("figcaption", caption))


def _by_layer(findings: Findings, layers: Iterable[str], draw: Callable[[str], Markup]) -> Markup:
    """The regularised layers' pictures, and behind a click those of the others that have clusters."""
    clustered = list(layers)
    if not clustered:
        return element("p", "None of the layers has clusters.", class_="quiet")
    first = [layer for layer in clustered if layer in findings.config["regularised_layers"]] or clustered[:1]
    others = [layer for layer in clustered if layer not in first]
    shown = [draw(layer) for layer in first]
    if others:
        more = element("summary", f"The same for {', '.join(others)}")
        shown.append(element("details", more, [draw(layer) for layer in others]))
    return join(shown)


def _sizes(findings: Findings, criterion: str) -> Markup:
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
    pictures = [
        element("div", element("p", heading, class_="kind"), picture)
        for heading, picture in (
            (
                "by class",
                dot_plot(
                    rows, "circuit size (% of weights)", f"Circuit size by class: {told}", len(rows) > 1
                ),
            ),
            (
                "by layer, mean of the classes",
                dot_plot(layers, "kept weights (% of the layer's)", "Share of weights kept, by layer"),
            ),
        )
    ]
    several = len(findings.config["seeds"]) > 1
    notes = (
        ["whisker: 95 % interval of the mean over seeds", "small circles: single seeds"] if several else []
    )
    caption = f"Circuit sizes, {findings.over_seeds}. Smaller circuits use less of the network."
    return element(
        "figure",
        _key(findings.kinds, *notes),
        element("div", pictures, class_="side"),
        element("figcaption", caption),
    )


def _overlaps(findings: Findings, criterion: str) -> Markup:
    count = len(findings.names)
    if count < 2:
        return element("p", "Overlap needs the circuits of two classes.", class_="quiet")
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
    pictures = {}
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
        pictures[kind] = f"{kind}, {findings.over_seeds}", drawn
    caption = (
        "Intersection over union of each two classes' circuits: the weights that both keep, as a share of "
        f"those that either keeps; the diagonal is left out. {'; '.join(sentences)}. Random circuits have "
        "the same sizes in each layer; the triangle on the colour bar is theirs."
    )
    return _side_by_side(pictures, caption)


def _inside(findings: Findings, criterion: str, layer: str) -> Markup:
    tables: dict[str, list[list[float | None]]] = {}
    for kind in findings.kinds:
        found = findings.shown_run(kind)["criteria"][criterion]
        lines = [found["random_inside"][layer], *found["inside"][layer]]
        tables[kind] = [[_hundredfold([value]) for value in line] for line in lines]
    top = _top([value for table in tables.values() for row in table for value in row])
    pictures = {}
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
        pictures[kind] = f"{kind}, {layer}, seed {findings.shown_seed}", drawn
    caption = (
        f"Where the circuits' weights of {layer} are: inside each cluster, and at the right inside any; the "
        "others cross between clusters. The first row is a random circuit's. A row with one bright cell is a "
        "class with a cluster of its own."
    )
    return _side_by_side(pictures, caption)


def _networks(findings: Findings, criterion: str) -> Markup:
    config = findings.config
    drawn = [
        label for kind, each, label in findings.networks if (kind, each) == (findings.kinds[0], criterion)
    ]
    figures = []
    for label in drawn:
        name = config["classes"][label]
        pictures = {}
        for kind in findings.kinds:
            circuit = findings.circuits[kind, criterion, label]
            kept = ", ".join(f"{percent(share)} of {layer}" for layer, share in circuit.sizes.items())
            description = f"Circuit of {name} in the {kind} network, which keeps {kept}"
            network = findings.networks[kind, criterion, label]
            heading = f"{kind}, {circuit.num_weights:,} weights ({percent(circuit.size)})"
            pictures[kind] = heading, draw_network(network, config["classes"], label, description)
        title = ["Class ", element("b", name), f", seed {findings.shown_seed}"]
        figures.append(element("figure", element("figcaption", title, class_="title"), _columns(pictures)))
    shared = {
        f"{column.size:,}": column.most_shared
        for network in findings.networks.values()
        for column in network.columns
        if column.most_shared > 1
    }
    merged = " ".join(
        f"Of the {size} a dot stands for up to {count}, and a broad line for several weights."
        for size, count in shared.items()
    )
    reading = (
        "Each column is the neurons between two layers, sorted by cluster, with their number above it; "
        "inputs are at the left, classes at the right. A line is a weight that the circuit keeps: coloured "
        "inside a cluster, grey between clusters or where a layer has none. Pale dots are neurons that the "
        f"circuit does not use. Below are the layers and how much of each is kept. {merged}"
    )
    return join(element("p", reading), _cluster_key(findings), figures)


def _cluster_key(findings: Findings) -> Markup:
    def swatch(colour: str) -> Markup:
        line = element("path", d="M0 8H24", class_=f"line {colour}", stroke_width=5)
        return element("svg", line, viewBox="0 0 24 16", aria_hidden="true")

    count = min(max(findings.num_clusters.values(), default=0), CLUSTER_COLOURS)
    items = [element("li", swatch(f"c{each}"), f"inside cluster {each}") for each in range(count)]
    return element("ul", items, element("li", swatch("crossing"), "between clusters"), class_="key")


def clusters_section(findings: Findings) -> Markup:
    """How well each class is recognised with one cluster alone, and with one off."""
    layers = findings.shown_run(findings.kinds[0])["cluster_accuracy"]
    return join(
        element(
            "p",
            "If a cluster were specialised in some classes, these would still be recognised with that "
            "cluster alone, and would suffer when it is off.",
        ),
        _by_layer(findings, layers, lambda layer: _class_accuracy(findings, layer)),
    )


def _class_accuracy(findings: Findings, layer: str) -> Markup:
    classes = findings.config["classes"]
    pictures = {}
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
        pictures[kind] = f"{kind}, {layer}, seed {findings.shown_seed}", drawn
    caption = (
        f"Test accuracy on each class: with one cluster of {layer} alone, framed where that is at most "
        f"{MARGIN:.0f} points below the whole network; with one off, framed where that costs more than "
        f"{MARGIN:.0f} points."
    )
    return _side_by_side(pictures, caption)


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
