"""The tables of the page, and the measures in them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.pages import as_markdown
from modfast.report.numbers import MINUS, NOTHING

from . import analysis
from .analysis import Comparison, Measure, at, circuit, less, mean_of
from .arms import ARMS
from .behaviours import NAMES

_Column = tuple[str, Measure, float, int]
"""A heading, what is measured, the factor to its unit, and decimals."""


def shown_arms() -> list[str]:
    """Return the modular arms that have been run."""
    return [name for name, arm in ARMS.items() if arm.weight and analysis.has_records(name)]


def mean(arm: str, measure: Measure, factor: float = 1.0, decimals: int = 2, interval: bool = False) -> str:
    found = analysis.mean(arm, measure)
    if found is None:
        return NOTHING
    middle, width = found
    text = f"{factor * middle:.{decimals}f}"
    if interval and width is not None:
        text += f" ± {factor * width:.{decimals}f}"
    return minus(text)


def difference(found: Comparison | None, factor: float = 1.0, decimals: int = 2) -> str:
    if found is None:
        return NOTHING
    text = f"{factor * found.difference:+.{decimals}f}"
    if found.interval is not None:
        text += f" ± {factor * found.interval:.{decimals}f}"
    return minus(text)


def minus(text: str) -> str:
    return text.replace("-", MINUS)


def sizes(kind: str) -> Measure:
    """Return the mean size of the circuits of all behaviours."""
    return mean_of([circuit(kind, name, "size") for name in NAMES])


def overlap(kind: str) -> Measure:
    """Return the overlap of two circuits, less that of random ones of equal size."""
    return less(at("circuits", kind, "overlap", "mean"), at("circuits", kind, "overlap", "random"))


def best_beyond_chance(labels: str) -> Measure:
    """Return the share of a circuit in its best cluster less that of random circuits, over behaviours."""
    return mean_of(
        [
            less(
                circuit("relative", name, "best_cluster", labels, "share"),
                circuit("relative", name, "best_cluster", labels, "random"),
            )
            for name in NAMES
        ]
    )


def bits_beyond_chance(labels: str) -> Measure:
    """Return what a unit's cluster says of its circuit, less that of random circuits, in bits."""
    where = ("circuits", "relative", "information", labels)
    return less(at(*where, "bits"), at(*where, "random"))


def equal_loss_sizes(arm: str) -> Comparison | None:
    """Compare the mean size of all circuits with that in plain networks of equal loss."""
    return analysis.mean_size_at_equal_loss(arm, NAMES)


def _table(columns: Sequence[_Column], first: str = "trained") -> str:
    """A row of means of plain networks, and rows of differences to them."""
    rows = [
        [
            ARMS["plain"].title,
            *(
                _bold(mean("plain", measure, factor, decimals, True))
                for _, measure, factor, decimals in columns
            ),
        ]
    ]
    for arm in shown_arms():
        cells = [
            difference(analysis.compare(arm, measure), factor, decimals)
            for _, measure, factor, decimals in columns
        ]
        rows.append([ARMS[arm].title, *cells])
    return as_markdown([first, *(column[0] for column in columns)], rows)


def _bold(text: str) -> str:
    middle, sign, rest = text.partition(" ±")
    return text if middle == NOTHING else f"**{middle}**{sign}{rest}"


def training_table() -> str:
    """Return what training gave."""
    return _table(
        [
            ("held-out loss, nats a byte", at("model", "loss"), 1.0, 3),
            ("right bytes, %", at("model", "accuracy"), 100.0, 1),
            ("clusterability, MLPs", at("clusters", "blocks", "mlps"), 1.0, 3),
            ("clusterability, attention", at("clusters", "blocks", "attention"), 1.0, 3),
            ("live neurons, %", at("live", "neurons"), 100.0, 1),
            ("effective clusters", at("live", "clusters"), 1.0, 2),
        ]
    )


def abilities_table() -> str:
    """Return what the networks can do."""
    columns: list[_Column] = []
    for name in NAMES:
        columns += [
            (f"{name}: right, %", at("behaviours", name, "right"), 100.0, 1),
            (f"{name}: logits", at("behaviours", name, "metric"), 1.0, 2),
        ]
    return _table(columns)


def clusters_table() -> str:
    """Return how modular each network is by the clusters that are found in it, beside random ones."""
    rows = []
    for arm in ("plain", *shown_arms()):
        cells = [
            mean(arm, at("clusters", labels, kind))
            + f" ({mean(arm, at('clusters', labels, f'{kind}_random'))})"
            for labels in ("blocks", "found")
            for kind in ("mlps", "attention")
        ]
        rows.append([ARMS[arm].title, *cells])
    headings = [
        f"{labels}: {kind}" for labels in ("blocks", "found afterwards") for kind in ("MLPs", "attention")
    ]
    return as_markdown(["trained", *headings], rows)


def dependence_table(labels: str) -> str:
    """Return on how many clusters answers depend, beside random clusters of the same sizes."""
    rows = []
    for arm in ("plain", *shown_arms()):
        cells = []
        for task in ("text", *NAMES):
            own, random = (at("dependence", labels, task, name) for name in ("mean", "random_mean"))
            cells.append(f"{mean(arm, own)} ({mean(arm, random)})")
            cells.append(mean(arm, less(own, random), 1.0, 2, True))
        rows.append([ARMS[arm].title, *cells])
    headings = [
        heading for task in ("held-out text", *NAMES) for heading in (f"{task} (random)", "difference")
    ]
    return as_markdown(["trained", *headings], rows)


def circuits_table(kind: str) -> str:
    """Return sizes of circuits, and how much they overlap."""
    columns: list[_Column] = [
        (f"{name}, % of units", circuit(kind, name, "size"), 100.0, 1) for name in NAMES
    ]
    columns += [
        ("overlap of two, %", at("circuits", kind, "overlap", "mean"), 100.0, 1),
        ("beyond random, points", overlap(kind), 100.0, 1),
    ]
    if kind == "relative":
        columns += [
            ("best block beyond random, points", best_beyond_chance("blocks"), 100.0, 1),
            ("block and behaviour beyond random, bits", bits_beyond_chance("blocks"), 1.0, 3),
        ]
    return _table(columns)


def equal_table() -> str:
    """Return circuits beside those of plain networks of the same loss."""
    rows = []
    for arm in shown_arms():
        for name in NAMES:
            found = analysis.at_equal_loss(arm, name)
            if found is None:
                continue
            loss, size = found
            rows.append(
                [
                    f"{ARMS[arm].title}: {name}",
                    difference(loss, 1.0, 3),
                    f"{100 * size.other:.1f}",
                    f"{100 * size.own:.1f}",
                    difference(size, 100.0, 1),
                ]
            )
    headings = ["trained", "loss, difference", "size of plain, %", "size, %", "difference, points"]
    return as_markdown(headings, rows)


def curve_table() -> str:
    """Return the areas of the curves of faithfulness."""
    rows = []
    for arm in ("plain", *shown_arms()):
        cells = [
            f"{mean(arm, at('curve', name), 1.0, 2, True)} ({mean(arm, at('curve', f'random_{name}'))})"
            for name in ("cpr", "cmd")
        ]
        rows.append([ARMS[arm].title, *cells])
    return as_markdown(["trained", "CPR (random rankings)", "CMD (random rankings)"], rows)
