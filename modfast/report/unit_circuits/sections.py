"""The tables and pictures below the units: sizes, what two circuits share, and the clusters they lie in."""

from __future__ import annotations

from typing import Any, NamedTuple

from markupsafe import Markup

from modfast.report.numbers import MINUS, NOTHING, average, percent
from modfast.report.svg.charts import heat_map

from .content import UnitFindings


class Figure(NamedTuple):
    """A picture and its caption."""

    picture: Markup
    caption: str


class SizeRow(NamedTuple):
    """A row of the table of sizes.

    Attributes:
        name: the task's.
        whole: how many units the circuit keeps, and their share of those that were asked for.
        spaces: the same for each space; None if none of its units were asked for.
        before: the metric of the whole model.
        after: the metric of the circuit.
    """

    name: str
    whole: tuple[int, str]
    spaces: list[tuple[int, str] | None]
    before: str
    after: str


def size_rows(findings: UnitFindings) -> list[SizeRow]:
    """Return the table of sizes, a row for each circuit."""
    measures = findings.measures

    def in_space(name: str, place: int) -> tuple[int, str] | None:
        share = measures["sizes"][name][place]
        return None if share is None else (measures["scores"][name][place]["kept"], percent(share))

    return [
        SizeRow(
            name,
            (measures["num_units"][place], percent(measures["size"][place])),
            [in_space(space, place) for space in findings.spaces],
            written(measures["metric_before"][place]),
            written(measures["metric_after"][place]),
        )
        for place, name in enumerate(findings.names)
    ]


def written(number: float) -> str:
    """Write a number with four digits and a true minus sign.

    Example:
        >>> written(0.12345), written(12.0)
        ('0.1235', '12')
    """
    return NOTHING if number != number else f"{number:.4g}".replace("-", MINUS)


def overlap_figure(findings: UnitFindings) -> Figure | None:
    """Return the figure of overlaps; None if there are no two circuits."""
    if len(findings.names) < 2:
        return None
    table = [
        [None if row == column else _hundredfold(value) for column, value in enumerate(line)]
        for row, line in enumerate(findings.measures["overlap"])
    ]
    chance = _hundredfold(findings.measures["random_overlap"])
    mean = average([value for line in table for value in line])
    told = f"{_rounded(mean)} on average, by chance {_rounded(chance)}"
    drawn = heat_map(
        table,
        findings.names,
        findings.names,
        f"Overlap of the units of each two circuits, {told}",
        top=_top([*(value for line in table for value in line), chance]),
        unit="overlap (% of the union)",
        mark=None if chance is None else ("by chance", chance),
    )
    caption = (
        "Intersection over union of each two circuits: the units that both keep, as a share of those that "
        f"either keeps; the diagonal is left out. {told.capitalize()}: random circuits with as many units in "
        "each column; the triangle on the colour bar marks their overlap."
    )
    return Figure(drawn, caption)


def cluster_figure(findings: UnitFindings) -> Figure | None:
    """Return the figure of the clusters that circuits lie in; None without clusters."""
    inside, by_chance = findings.measures["inside"], findings.measures["random_inside"]
    if inside is None:
        return None
    table = [[_hundredfold(value) for value in line] for line in (by_chance, *inside)]
    drawn = heat_map(
        table,
        ["by chance", *findings.names],
        [f"cluster {cluster}" for cluster in range(len(by_chance))],
        "Share of each circuit's units in each cluster",
        top=_top([value for line in table for value in line]),
        unit="share of kept units (%)",
        apart=(1,),
    )
    caption = (
        "The share of each circuit's units in each cluster. The first row is that of random circuits with as "
        "many units in each column, mean of the circuits. A row with one bright cell is a task with a "
        "cluster of its own."
    )
    return Figure(drawn, caption)


def settings_told(findings: UnitFindings) -> dict[str, Any]:
    """Return how the circuits were chosen, by name; of values that differ each once."""
    told: dict[str, list[Any]] = {
        "method": [circuit.method for circuit in findings.circuits],
        "ablation": [circuit.ablation for circuit in findings.circuits],
        "tolerance": [circuit.tolerance for circuit in findings.circuits],
        "examples": [circuit.num_examples for circuit in findings.circuits],
        "forward passes": [circuit.num_passes for circuit in findings.circuits],
    }
    return {name: list(dict.fromkeys(values)) for name, values in told.items()}


def _hundredfold(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _rounded(value: float | None) -> str:
    return percent(None if value is None else value / 100.0)


def _top(values: list[float | None]) -> float:
    """A colour scale's end: the largest value."""
    return max((value for value in values if value is not None), default=0.0) or 1.0
