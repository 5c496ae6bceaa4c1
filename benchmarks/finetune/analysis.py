"""What the records say: differences to plain fine-tuning, seed by seed, and to random clusters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modfast.report.statistics import mean_interval

from .arms import ARMS

RESULTS = Path(__file__).parent / "results"

Record = Mapping[str, Any]
Measure = Callable[[Record], float]


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95 % interval (None for one seed), and the number of seeds."""

    mean: float
    interval: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """Of a difference: "higher" or "lower" if the interval leaves 0 out, "undecided" if it holds 0."""
        if self.interval is None:
            return "one seed"
        if abs(self.mean) <= self.interval:
            return "undecided"
        return "higher" if self.mean > 0 else "lower"


@cache
def records(arm: str) -> list[Record]:
    """Return the records of an arm, by seed.

    Raises:
        ValueError: they are not the first of the arm's seeds.
    """
    found: list[Record] = json.loads((RESULTS / f"{arm}.json").read_text(encoding="utf-8"))
    seeds = tuple(record["seed"] for record in found)
    if seeds != ARMS[arm].seeds[: len(seeds)]:
        raise ValueError(f"{arm}.json holds the seeds {seeds}, not the first of {ARMS[arm].seeds}")
    return found


def shown() -> list[str]:
    """Return the arms that have been run: the untouched model, plain ones, then by clusters."""
    there = [name for name in ARMS if (RESULTS / f"{name}.json").exists()]
    return sorted(there, key=_place)


def _place(name: str) -> tuple[int, int]:
    arm = ARMS[name]
    if arm.k is None:
        return ("untouched", "plain", "plain-slow").index(name), 0
    return (3 if arm.clusters == "blocks" else 4), arm.k


def estimate(arm: str, measure: Measure) -> Estimate:
    """Return the mean of a measure over the seeds of an arm."""
    return _estimate([measure(record) for record in records(arm)])


def difference(arm: str, other: str, measure: Measure) -> Estimate:
    """Return by how much a measure is higher than that of another arm, seed by seed.

    An arm with one record, such as the untouched model, is compared with every seed of the other.

    Raises:
        ValueError: the two have no seed in common.
    """
    own, others = ({r["seed"]: measure(r) for r in records(name)} for name in (arm, other))
    if not ARMS[other].trained:
        (fixed,) = others.values()
        return _estimate([value - fixed for value in own.values()])
    common = sorted(set(own) & set(others))
    if not common:
        raise ValueError(f"{arm} and {other} have no seed in common: {sorted(own)} and {sorted(others)}")
    return _estimate([own[seed] - others[seed] for seed in common])


def over_batches(arm: str, other: str) -> Estimate:
    """Return by how much the held-out loss of the first seed is higher than the other arm's, batch by batch.

    What one pair of models can show: its interval is over texts, not over seeds.
    """
    own, others = (records(name)[0]["held_out"]["losses"] for name in (arm, other))
    return _estimate([mine - theirs for mine, theirs in zip(own, others, strict=True)])


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(*mean_interval(values), len(values))


# --- Measures of a record.


def loss(record: Record) -> float:
    return float(record["held_out"]["loss"])


def accuracy(record: Record) -> float:
    return float(record["held_out"]["accuracy"])


def in_blocks(k: int) -> Measure:
    """Return the measure: clusterability in so many contiguous blocks."""
    return lambda record: float(record["clusterability"][str(k)])


def own(name: str) -> Measure:
    """Return the measure: something of the clusters that an arm was trained with."""
    return lambda record: float(record["own"][name])


def own_live(name: str) -> Measure:
    """Return the measure: what is live in the clusters that an arm was trained with."""
    return lambda record: float(record["own"]["live"][name])


# --- Dependence.


def has_dependence(arm: str, k: int) -> bool:
    return arm in shown() and any(str(k) in record["dependence"] for record in records(arm))


def depends(arm: str, k: int) -> list[Record]:
    """Return what was measured of dependence, for the seeds that have it."""
    key = str(k)
    return [record["dependence"][key] for record in records(arm) if key in record["dependence"]]


def needed(arm: str, k: int) -> Estimate:
    """Return on how many clusters a right answer depends, on average."""
    return _estimate([each["mean"] for each in depends(arm, k)])


def beyond_random(arm: str, k: int) -> Estimate:
    """Return on how many more clusters than random ones of the same sizes a right answer depends."""
    return _estimate([each["mean"] - each["random_mean"] for each in depends(arm, k)])


def answers_error(found: Record) -> float:
    """Return the standard error of the mean number of clusters that one model's right answers depend on."""
    squares = math.fsum(count * count * share for count, share in enumerate(found["shares"]))
    return math.sqrt(max(0.0, squares - found["mean"] ** 2) / found["right"])


def random_range(arm: str, k: int) -> tuple[float, float]:
    """Return the least and the largest mean of the sets of random clusters, all seeds together."""
    means = [value for each in depends(arm, k) for value in each["random_means"]]
    return min(means), max(means)


def needed_change(arm: str, k: int, other: str = "plain") -> Estimate:
    """Return on how many more clusters answers depend than in the other arm, in the same clusters."""
    key = str(k)
    pairs = {
        name: {r["seed"]: r["dependence"][key]["mean"] for r in records(name) if key in r["dependence"]}
        for name in (arm, other)
    }
    common = sorted(set(pairs[arm]) & set(pairs[other]))
    return _estimate([pairs[arm][seed] - pairs[other][seed] for seed in common])


def shares(arm: str, k: int, which: str = "shares") -> list[float]:
    """Return the share of right answers that depend on 0, 1, ... clusters, mean over seeds.

    Args:
        arm: the arm.
        k: the number of clusters.
        which: "shares", or "random_shares" for random clusters of the same sizes.
    """
    found = [each[which] for each in depends(arm, k)]
    return [math.fsum(column) / len(found) for column in zip(*found, strict=True)]


def one_of_needed(found: Sequence[float]) -> float | None:
    """Return the share of answers with one cluster among those with any: what the authors' shares are of."""
    any_needed = math.fsum(found[1:])
    return found[1] / any_needed if any_needed > 0 else None


def one_needed(arm: str, k: int) -> list[tuple[int, float, float]]:
    """Return the seed, and :func:`one_of_needed` of the clusters and of random ones, where there are both."""
    found = []
    for record in records(arm):
        each = record["dependence"].get(str(k))
        if each is not None:
            own_share, random = (one_of_needed(each[which]) for which in ("shares", "random_shares"))
            if own_share is not None and random is not None:
                found.append((record["seed"], own_share, random))
    return found


def one_needed_change(arm: str, other: str, k: int) -> Estimate:
    """Return by how much the share of :func:`one_of_needed` is higher than in the other arm, seed by seed."""
    theirs = {seed: share for seed, share, _ in one_needed(other, k)}
    return _estimate([share - theirs[seed] for seed, share, _ in one_needed(arm, k) if seed in theirs])


def one_needed_beyond_random(arm: str, k: int) -> Estimate:
    """Return by how much the share of :func:`one_of_needed` is higher than that of random clusters."""
    return _estimate([share - random for _, share, random in one_needed(arm, k)])


def hours() -> tuple[float, float]:
    """Return the hours of training and of measuring."""
    totals = [
        math.fsum(record["seconds"][what] for arm in shown() for record in records(arm)) / 3600
        for what in ("training", "measuring")
    ]
    return totals[0], totals[1]
