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


def beyond_random(criterion: str, name: str) -> Value:
    """Return a measure of the circuits of units, less that of random circuits with as many units.

    "overlap" and "largest_share" depend on how large circuits are, and the latter on how many clusters are.
    """

    def value(record: Record) -> float | None:
        circuits = record["units"]["circuits"][criterion]
        own, random = circuits[name], circuits[f"random_{name}"]
        return None if own is None or random is None else float(own - random)

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
    """Compare a measure of two arms, seed by seed; None if a seed has none, or they share but one seed."""
    return _paired([(value(mine), value(theirs)) for mine, theirs in pairs(arm, other)])


def _paired(values: Sequence[tuple[float | None, float | None]]) -> Comparison | None:
    return paired(values) if len(values) > 1 else None


def at_equal_loss(arm: str, name: str) -> Comparison | None:
    """Compare circuits by loss with the plain network's after the epoch whose test loss is nearest."""
    return _paired(
        [(of("loss", name)(mine), nearest_epoch(mine, theirs)[name]) for mine, theirs in pairs(arm)]
    )


def loss_gap(arm: str) -> Comparison | None:
    """Compare the test losses of what :func:`at_equal_loss` compares."""
    return _paired(
        [
            (mine["history"][-1]["test_cross_entropy"], nearest_epoch(mine, theirs)["test_loss"])
            for mine, theirs in pairs(arm)
        ]
    )


def nearest_epochs(arm: str) -> float:
    """Return the mean of the epochs after which :func:`at_equal_loss` takes the plain networks."""
    epochs = [nearest_epoch(mine, theirs)["epoch"] for mine, theirs in pairs(arm)]
    return math.fsum(epochs) / len(epochs)


def while_plain_trains(name: str) -> list[tuple[int, float]]:
    """Return the epochs that plain networks were measured after, and the mean over seeds of ``name``.

    Args:
        name: "size" or "overlap" of circuits by loss, or "test_loss".
    """
    by_epoch: dict[int, list[float]] = {}
    for record in records(PLAIN).values():
        for each in record["epochs"]:
            epoch = each["epoch"]
            loss = record["history"][epoch - 1]["test_cross_entropy"]
            by_epoch.setdefault(epoch, []).append(loss if name == "test_loss" else each[name])
    return [(epoch, math.fsum(values) / len(values)) for epoch, values in sorted(by_epoch.items())]


def with_allowed_loss(arm: str, name: str) -> tuple[Comparison | None, int]:
    """Compare circuits that may have the same loss in all networks, and say how many pairs may have it."""
    value = of("fixed", name)
    both = [pair for pair in pairs(arm) if all("fixed" in record["measures"] for record in pair)]
    return _paired([(value(mine), value(theirs)) for mine, theirs in both]), len(both)


def relative(comparison: Comparison) -> float:
    """Return the own mean as a share of the other."""
    return comparison.own / comparison.other


def meets_goal(arm: str, criterion: str = "loss", *, price: bool = True) -> bool:
    """Whether circuits are half as large and overlap half as much, at an accuracy within half a point.

    In the mean over seeds; :func:`surely_meets_goal` also asks how sure that is. Without ``price`` the
    accuracy does not count. By "fixed" only the pairs count that may have the allowed loss.
    """
    return _goal(arm, criterion, 0.0, price)


def surely_meets_goal(arm: str, criterion: str = "loss") -> bool:
    """Whether all of the 95 % intervals lie where the goal is met, each for itself."""
    return _goal(arm, criterion, 1.0, True)


def _goal(arm: str, criterion: str, share_of_interval: float, price: bool) -> bool:
    known = [pair for pair in pairs(arm) if all(criterion in record["measures"] for record in pair)]
    for name, most in (("size", GOAL.size), ("overlap", GOAL.overlap)):
        value = of(criterion, name)
        values = [(value(mine), value(theirs)) for mine, theirs in known]
        above = _paired([(mine, None if theirs is None else most * theirs) for mine, theirs in values])
        if above is None or above.difference + share_of_interval * above.interval > 0:
            return False
    accuracy = compare(arm, of("model", "accuracy"))
    if accuracy is None:
        return False
    return not price or accuracy.difference - share_of_interval * accuracy.interval >= GOAL.accuracy
