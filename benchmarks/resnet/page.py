"""Write the page on the ResNet, and its pictures, from the committed results.

python -m benchmarks.resnet.page
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.common.pages import as_markdown
from benchmarks.common.templates import page_template
from benchmarks.findings.pictures import CLASSES
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, NOTHING

from . import analysis
from .analysis import Estimate
from .arms import ARMS, EPOCHS, LIGHT, SEEDS, WEIGHT
from .circuits import ALLOWED, TOLERANCE
from .measure import ABLATED, EACH
from .pictures import draw_classes, draw_layers

PAGE = Path(__file__).parents[2] / "docs" / "findings" / "resnet.md"
PICTURES = {
    "resnet-layers.png": lambda path: draw_layers(path, analysis.arms()),
    "resnet-classes.png": lambda path: draw_classes(path, analysis.arms()),
}

Row = tuple[str, str, float, int]
"""Heading, measure, factor, decimals."""

PRICE: tuple[Row, ...] = (
    ("accuracy, %", "accuracy", 100.0, 1),
    ("test loss, nats", "test_loss", 1.0, 3),
    ("clusterability", "clusterability", 1.0, 3),
    ("the same, with batch norm", "with_norm", 1.0, 3),
    ("live channels written, %", "live_rows", 100.0, 1),
    ("live channels read, %", "live_columns", 100.0, 1),
    ("effective channels written, %", "effective_rows", 100.0, 0),
    ("effective clusters of four, mean of layers", "effective_clusters", 1.0, 2),
    ("effective clusters, worst layer", "least_clusters", 1.0, 2),
)
FOUND: tuple[Row, ...] = (
    ("clusterability", "found", 1.0, 3),
    ("the same, with batch norm", "found_with_norm", 1.0, 3),
    ("… of the layer that is cut most", "found_least", 1.0, 3),
    ("as many equal clusters", "balance", 1.0, 2),
    ("units in the largest, %", "largest", 100.0, 0),
)


def circuit_rows(rule: str) -> tuple[Row, ...]:
    """Return the rows of the table of circuits, for one rule of how much loss they may have."""
    return (
        ("size, % of channels", f"{rule}:size", 100.0, 1),
        ("overlap of two classes, %", f"{rule}:overlap", 100.0, 1),
        ("… of random circuits of these sizes", f"{rule}:random_overlap", 100.0, 1),
        ("in the cluster with most of it, %", f"{rule}:inside:own", 100.0, 1),
        ("… of random circuits", f"{rule}:random_inside:own", 100.0, 1),
        ("in the found cluster with most of it, %", f"{rule}:inside:found", 100.0, 1),
        ("… of random circuits of these sizes", f"{rule}:random_inside:found", 100.0, 1),
        ("loss of the network, nats", f"{rule}:loss_before", 1.0, 3),
        ("loss of the circuit, nats", f"{rule}:loss_after", 1.0, 3),
        ("right on other images, %", f"{rule}:held_out", 100.0, 1),
    )


SAME: tuple[Row, ...] = tuple(row for row in circuit_rows("same") if "found" not in row[1])
CLUSTERS: tuple[Row, ...] = (
    ("accuracy with one cluster alone, %", "accuracy_only", 100.0, 1),
    ("accuracy without one cluster, %", "accuracy_without", 100.0, 1),
    ("told from others with the class's own cluster off, %", "without:own_cluster", 100.0, 1),
    ("… with another one off, %", "without:other_cluster", 100.0, 1),
    ("told from others by the class's own cluster alone, %", "only:own_cluster", 100.0, 1),
    ("… by another one alone, %", "only:other_cluster", 100.0, 1),
    ("best cluster alone, above the mean, points", "specialisation_only:own", 100.0, 1),
    ("… of random clusters", "specialisation_only:random", 100.0, 1),
    ("most needed cluster off, below the mean, points", "specialisation_without:own", 100.0, 1),
    ("… of random clusters", "specialisation_without:random", 100.0, 1),
    ("clusters that a right answer depends on", "dependence:own", 1.0, 2),
    ("… of random clusters", "dependence:random", 1.0, 2),
    ("… less those of random clusters", "dependence:beyond", 1.0, 2),
    ("… of the found clusters", "dependence:found", 1.0, 2),
)


def main() -> None:
    """Write everything."""
    for name, draw in PICTURES.items():
        draw(PAGE.with_name(name))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    text = page_template(Path(__file__).with_name("page.md.jinja")).render(
        seeds=len(analysis.records("plain")),
        all_seeds=len(SEEDS),
        epochs=EPOCHS,
        weight=WEIGHT,
        light=LIGHT,
        tolerance=TOLERANCE,
        allowed=ALLOWED,
        each=EACH,
        ablated=ABLATED,
        classes=CLASSES,
        parameters=f"{analysis.records('plain')[0]['parameters']:,}",
        channels=sum(analysis.records("plain")[0]["spaces"].values()) - 3 - len(CLASSES),
        has=lambda arm: arm in analysis.arms(),
        mean=_mean,
        num=_number,
        crossing=math.sqrt(1 - _number("modular", "with_norm")),
        diff=_difference,
        word=_word,
        table=_table,
        price=PRICE,
        found=FOUND,
        circuit_rows=circuit_rows,
        same=SAME,
        clusters=CLUSTERS,
        seeds_of_same=_seeds_of_same,
        each_takes=_each_takes,
    )
    # True minus signs before numbers, but not in names and commands.
    return re.sub(r"(?<![\w`\-./])-(?=\d)", MINUS, text)


# --- Numbers and words in sentences.


def _mean(arm: str, measure: str, factor: float = 1.0, decimals: int = 2) -> str:
    return _cell(analysis.mean(arm, measure), factor, decimals)


def _number(arm: str, measure: str) -> float:
    found = analysis.mean(arm, measure)
    if found is None:
        raise ValueError(f"no network of {arm} has {measure}")
    return found.mean


def _difference(arm: str, measure: str, factor: float = 1.0, decimals: int = 2) -> str:
    return _signed(analysis.difference(arm, measure), factor, decimals)


def _word(arm: str, measure: str, more: str, less: str, undecided: str) -> str:
    """Return the word that a difference to plain networks deserves."""
    found = analysis.difference(arm, measure)
    return undecided if found is None else {1: more, -1: less, 0: undecided}[found.sign]


def _cell(found: Estimate | None, factor: float, decimals: int) -> str:
    return NOTHING if found is None else f"{factor * found.mean:.{decimals}f}"


def _signed(found: Estimate | None, factor: float, decimals: int) -> str:
    if found is None:
        return NOTHING
    spread = "" if found.interval is None else f" ± {factor * found.interval:.{decimals}f}"
    return f"{factor * found.mean:+.{decimals}f}{spread}"


def _seeds_of_same(arm: str) -> int:
    """Return at how many seeds both networks may have the loss that is allowed to all, in every class."""
    found = analysis.difference(arm, "same:size")
    return 0 if found is None else found.seeds


# --- Tables.


def _table(rows: Sequence[Row]) -> str:
    """Return a table of measures: the mean of each arm, then the differences to the plain one."""
    plain, *others = analysis.arms()
    headings = ["", ARMS[plain].title]
    for arm in others:
        own = len(analysis.records(arm))
        fewer = "" if own == len(analysis.records(plain)) else f" (seeds: {own})"
        headings += [ARMS[arm].title + fewer, "difference"]
    lines = []
    for heading, measure, factor, decimals in rows:
        cells = [_mean(plain, measure, factor, decimals)]
        for arm in others:
            cells += [_mean(arm, measure, factor, decimals), _difference(arm, measure, factor, decimals)]
        lines.append([heading, *cells])
    return as_markdown(headings, lines)


def _each_takes(what: str) -> str:
    """Return the median of a network's seconds: one whose training was stopped counts from its last start."""
    spent = [record["seconds"][what] for arm in analysis.arms() for record in analysis.records(arm)]
    return f"{median(spent):.0f}"


if __name__ == "__main__":
    main()
