"""What the records of rivals say: differences to plain training, seed by seed; whether the goal is met."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from benchmarks.findings.analysis import Comparison, nearest_epoch, paired
from modfast.report.statistics import mean_interval

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain"

Record: TypeAlias = Mapping[str, Any]
Value: TypeAlias = Callable[[Record], float | None]


class Goal(NamedTuple):
    """What the recipe is asked for: half the size and half the overlap, at nearly the same accuracy."""

    size: float = 0.5
    overlap: float = 0.5
    accuracy: float = -0.005


GOAL = Goal()


@cache
def records(arm: str) -> dict[int, Record]:
    """Return the records of an arm by seed."""
    found = json.loads((RESULTS / f"{arm}.json").read_text(encoding="utf-8"))
    return {record["seed"]: record for record in found}


def has_records(arm: str) -> bool:
    """Whether an arm has been run."""
    return (RESULTS / f"{arm}.json").exists()


def pairs(arm: str, other: str = PLAIN) -> list[tuple[Record, Record]]:
    """Return the records of two arms that share a seed."""
    mine, theirs = records(arm), records(other)
    return [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]


# --- Values of a record.


def of(group: str, name: str) -> Value:
    """Return a measure of the network ("model"), or of its circuits by a criterion."""

    def value(record: Record) -> float | None:
        found: float | None = record["measures"].get(group, {}).get(name)
        return found

    return value


def live(name: str, layer: str = "fc2") -> Value:
    """Return a measure of :func:`modfast.live_units`."""

    def value(record: Record) -> float:
        return float(record["live"][layer][name])

    return value


def unit_circuits(criterion: str, name: str) -> Value:
    """Return a measure of the circuits of units by a criterion, "loss" or "balanced"."""

    def value(record: Record) -> float | None:
        found: float | None = record["units"]["circuits"][criterion][name]
        return found

    return value


def found(name: str) -> Value:
    """Return a measure of the clusters that are found in the trained weights."""

    def value(record: Record) -> float:
        return float(record["units"]["found"][name])

    return value


def needed(record: Record) -> float:
    """Return how many clusters an answer depends on in the mean, less that of random clusters."""
    units = record["units"]
    random = [_mean_count(shares) for shares in units["random_dependence"]]
    return _mean_count(units["dependence"]) - math.fsum(random) / len(random)


def _mean_count(shares: Sequence[float]) -> float:
    return math.fsum(count * share for count, share in enumerate(shares))


# --- Comparisons.


def mean_of(arm: str, value: Value) -> tuple[float, float | None]:
    """Return the mean over seeds and half the width of its 95 % interval."""
    values = [value(record) for record in records(arm).values()]
    known = [each for each in values if each is not None]
    if len(known) < len(values):
        raise ValueError(f"{arm}: a seed has no such measure")
    return mean_interval(known)


def compare(arm: str, value: Value, other: str = PLAIN) -> Comparison | None:
    """Compare a measure of two arms, seed by seed; None if a seed has none."""
    return paired([(value(mine), value(theirs)) for mine, theirs in pairs(arm, other)])


def at_equal_loss(arm: str, name: str) -> Comparison | None:
    """Compare circuits by loss with the plain network's after the epoch whose test loss is nearest."""
    return paired(
        [(of("loss", name)(mine), nearest_epoch(mine, theirs)[name]) for mine, theirs in pairs(arm)]
    )


def loss_gap(arm: str) -> Comparison | None:
    """Compare the test losses of what :func:`at_equal_loss` compares."""
    return paired(
        [
            (mine["history"][-1]["test_cross_entropy"], nearest_epoch(mine, theirs)["test_loss"])
            for mine, theirs in pairs(arm)
        ]
    )


def with_allowed_loss(arm: str, name: str) -> tuple[Comparison | None, int]:
    """Compare circuits that may have the same loss in all networks, and say how many pairs may have it."""
    value = of("fixed", name)
    both = [pair for pair in pairs(arm) if all("fixed" in record["measures"] for record in pair)]
    if len(both) < 2:
        return None, len(both)
    return paired([(value(mine), value(theirs)) for mine, theirs in both]), len(both)


def relative(comparison: Comparison) -> float:
    """Return the own mean as a share of the other."""
    return comparison.own / comparison.other


def meets_goal(arm: str, criterion: str = "loss", *, price: bool = True) -> bool:
    """Whether circuits are half as large and overlap half as much, at an accuracy within half a point.

    Without ``price`` the accuracy does not count.
    """
    size, overlap = (compare(arm, of(criterion, name)) for name in ("size", "overlap"))
    accuracy = compare(arm, of("model", "accuracy"))
    if size is None or overlap is None or accuracy is None:
        return False
    return (
        relative(size) <= GOAL.size
        and relative(overlap) <= GOAL.overlap
        and (not price or accuracy.difference >= GOAL.accuracy)
    )
