"""What the records say: each arm beside the plain networks of the same seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modfast.report.statistics import mean_interval, paired_interval

RESULTS = Path(__file__).parent / "results"

Record = Mapping[str, Any]
Measure = Callable[[Record], float | None]
"""Reads a number from a record; None if the network has none, such as the circuit of what it cannot do."""


class Comparison(NamedTuple):
    """A measure of an arm, and of the plain networks of the same seeds.

    Attributes:
        own: the mean of the arm.
        other: the mean of the plain networks.
        difference: the mean of the differences, seed by seed.
        interval: half the width of its 95 % interval; None for a single pair.
        pairs: how many there are.
    """

    own: float
    other: float
    difference: float
    interval: float | None
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out 0, else 0."""
        if self.interval is None or abs(self.difference) <= self.interval:
            return 0
        return 1 if self.difference > 0 else -1


@cache
def records(arm: str) -> list[Record]:
    """Return the records of an arm, by seed."""
    found: list[Record] = json.loads((RESULTS / f"{arm}.json").read_text(encoding="utf-8"))
    return found


def has_records(arm: str) -> bool:
    """Whether an arm has been run with any seed."""
    return (RESULTS / f"{arm}.json").exists()


def pairs(arm: str, against: str = "plain") -> list[tuple[Record, Record]]:
    """Return the records of an arm, each with the plain one of its seed."""
    if not has_records(against):
        return []
    others = {record["seed"]: record for record in records(against)}
    return [(record, others[record["seed"]]) for record in records(arm) if record["seed"] in others]


def mean(arm: str, measure: Measure) -> tuple[float, float | None] | None:
    """Return the mean of a measure and half the width of its interval; None if no network has it."""
    values = [value for record in records(arm) if (value := measure(record)) is not None]
    return mean_interval(values) if values else None


def compare(arm: str, measure: Measure) -> Comparison | None:
    """Compare an arm with plain networks; None if there is no pair in which both have the measure."""
    return compared([(measure(own), measure(other)) for own, other in pairs(arm)])


def compared(values: Sequence[tuple[float | None, float | None]]) -> Comparison | None:
    """Compare values pair by pair, those with None left out."""
    known = [(own, other) for own, other in values if own is not None and other is not None]
    if not known:
        return None
    own, other = ([pair[side] for pair in known] for side in (0, 1))
    difference, interval = paired_interval(own, other)
    return Comparison(_average(own), _average(other), difference, interval, len(known))


def at_equal_loss(arm: str, name: str) -> tuple[Comparison, Comparison] | None:
    """Compare the circuit of a behaviour with that of the plain network when its loss was nearest.

    That is its last state or an earlier one.

    Returns:
        The loss, and the size of the circuit.
    """
    losses, sizes = [], []
    for own, other in pairs(arm):
        nearest = nearest_state(own, other)
        losses.append((own["model"]["loss"], nearest["loss"]))
        sizes.append((circuit("relative", name, "size")(own), _size(nearest, name)))
    loss, size = compared(losses), compared(sizes)
    return None if loss is None or size is None else (loss, size)


def mean_size_at_equal_loss(arm: str, names: Sequence[str]) -> Comparison | None:
    """Compare the mean size of the circuits of several behaviours in the same way."""
    measure = mean_of([circuit("relative", name, "size") for name in names])
    values = []
    for own, other in pairs(arm):
        theirs = [_size(nearest_state(own, other), name) for name in names]
        known = [size for size in theirs if size is not None]
        values.append((measure(own), _average(known) if len(known) == len(names) else None))
    return compared(values)


def nearest_state(own: Record, other: Record) -> dict[str, Any]:
    """Return the state of a plain network whose loss was nearest to that of another network."""
    return min(states(other), key=lambda state: abs(state["loss"] - own["model"]["loss"]))


def _size(state: Mapping[str, Any], name: str) -> float | None:
    return state["circuits"][name]["size"] if name in state["circuits"] else None


def states(record: Record) -> list[dict[str, Any]]:
    """Return the losses and circuits of a plain network at its snapshots and at the end."""
    last = {
        "loss": record["model"]["loss"],
        "circuits": record["circuits"]["relative"]["by_behaviour"],
        "overlap": record["circuits"]["relative"]["overlap"],
    }
    return [*record["snapshots"], last]


# --- Measures.


def at(*path: str) -> Measure:
    """Return the measure at a place of the record."""

    def measure(record: Record) -> float | None:
        value: Any = record
        for name in path:
            if value is None:
                return None
            value = value[name]
        return None if value is None or math.isnan(value) else float(value)

    return measure


def circuit(kind: str, name: str, *path: str) -> Measure:
    """Return a measure of the circuit of a behaviour; None for a network without it."""

    def measure(record: Record) -> float | None:
        found = record["circuits"][kind]["by_behaviour"]
        return at(*path)(found[name]) if name in found else None

    return measure


def less(one: Measure, other: Measure) -> Measure:
    """Return the difference of two measures, such as of a number and the one by chance."""

    def measure(record: Record) -> float | None:
        values = one(record), other(record)
        return None if values[0] is None or values[1] is None else values[0] - values[1]

    return measure


def mean_of(measures: Sequence[Measure]) -> Measure:
    """Return the mean of several measures; None unless a network has all of them."""

    def measure(record: Record) -> float | None:
        values = [each(record) for each in measures]
        known = [value for value in values if value is not None]
        return _average(known) if len(known) == len(values) else None

    return measure


def beyond_chance(labels: str, task: str) -> Measure:
    """Return on how many clusters more an answer depends than on random clusters of the same sizes."""
    return less(
        at("dependence", labels, task, "mean"),
        at("dependence", labels, task, "random_mean"),
    )


def hours() -> float:
    """Return the time that all networks took."""
    return (
        sum(
            sum(record["seconds"].values())
            for path in RESULTS.glob("*.json")
            for record in records(path.stem)
        )
        / 3600
    )


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
