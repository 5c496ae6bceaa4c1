"""What the records say: means over seeds, differences to plain training seed by seed, and claims."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modfast.report.statistics import effect_size, holm, mean_interval, paired_interval, paired_p_value

from .arms import ARMS, CLUSTERS, SEEDS

RESULTS = Path(__file__).parent / "results"

Record = Mapping[str, Any]
Value = Callable[[Record], float | None]


class Comparison(NamedTuple):
    """A measure of an arm and of the plain one, in the seeds in which both have it.

    Attributes:
        own: the mean of the arm.
        other: the mean of the plain one.
        difference: the mean of the differences, seed by seed.
        interval: half the width of its 95 % interval; None for a single pair.
        effect: Cohen's d_z; None without scatter.
        p_value: of the paired t-test, not corrected; None for a single pair.
        pairs: how many there are.
    """

    own: float
    other: float
    difference: float
    interval: float | None
    effect: float | None
    p_value: float | None
    pairs: int

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and abs(self.difference) > self.interval


@cache
def records(arm: str) -> list[Record]:
    """Return the records of an arm, by seed.

    Raises:
        ValueError: their seeds are not the first of :data:`SEEDS`.
    """
    found: list[Record] = json.loads((RESULTS / f"{arm}.json").read_text(encoding="utf-8"))
    seeds = [record["seed"] for record in found]
    if seeds != list(SEEDS[: len(seeds)]):
        raise ValueError(f"{arm}.json must hold the first of the seeds {list(SEEDS)}, got {seeds}")
    return found


def seeds() -> list[int]:
    """Return the seeds that were run, the same in all arms.

    Raises:
        ValueError: arms have different ones.
    """
    found = {name: [record["seed"] for record in records(name)] for name in ARMS}
    first = next(iter(found.values()))
    if any(each != first for each in found.values()):
        raise ValueError(f"all arms must have the same seeds, got {found}")
    return first


# --- Measures of a record.


def at(*path: str) -> Value:
    """Return the measure at this place of a record; None where there is none."""

    def value(record: Record) -> float | None:
        found: Any = record
        for name in path:
            found = None if found is None else found.get(name)
        return None if found is None else float(found)

    return value


def excess(clustering: str) -> Value:
    """Return the information of clusters about frequencies, less that of permuted clusters; in bits."""
    return _less(at("clusterings", clustering, "information"), at("clusterings", clustering, "permuted"))


def aligned(clustering: str) -> Value:
    """Return the share of what clusters could tell of frequencies beyond chance that they tell."""

    def value(record: Record) -> float | None:
        found = record["clusterings"][clustering]
        if not found or found["most"] - found["permuted"] <= 0:
            return None
        return float((found["information"] - found["permuted"]) / (found["most"] - found["permuted"]))

    return value


def selectivity(clustering: str, kind: str = "own") -> Value:
    """Return by how much more a cluster's ablation lowers its own frequencies than others; as a share."""

    def value(record: Record) -> float | None:
        found = record["clusterings"][clustering].get(kind)
        return None if found is None else float(found[0] - found[1])

    return value


def falls(clustering: str, side: int, kind: str = "own") -> Value:
    """Return by how much a cluster's ablation lowers its own frequencies (side 0), or others (1)."""

    def value(record: Record) -> float | None:
        found = record["clusterings"][clustering].get(kind)
        return None if found is None else float(found[side])

    return value


def mean_accuracy(clustering: str, mode: str) -> Value:
    """Return the mean accuracy over clusters, with one alone ("only") or without one ("without")."""

    def value(record: Record) -> float | None:
        found = record["clusterings"][clustering].get(mode)
        return None if found is None else math.fsum(found) / len(found)

    return value


def _less(one: Value, other: Value) -> Value:
    def value(record: Record) -> float | None:
        left, right = one(record), other(record)
        return None if left is None or right is None else left - right

    return value


def beyond_random_selectivity(clustering: str) -> Value:
    """Return :func:`selectivity`, less that of random clusters of the same sizes."""
    return _less(selectivity(clustering), selectivity(clustering, "random_own"))


def blocks_of(neurons: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the block of each neuron, as :func:`benchmarks.addition.arms.blocks` cuts them."""
    sizes = [len(part) for part in np.array_split(np.arange(neurons), CLUSTERS)]
    return np.repeat(np.arange(CLUSTERS), sizes)


def finds_blocks(record: Record) -> bool:
    """Whether spectral clusters of the network's graph hold the same neurons as the blocks."""
    spectral = record["neurons"]["spectral"]
    pairs = set(zip(spectral, blocks_of(len(spectral)).tolist(), strict=True))
    return len(pairs) == CLUSTERS == len(set(spectral))


# --- Over seeds.


def mean_of(arm: str, value: Value) -> tuple[float, float | None, int] | None:
    """Return the mean over seeds that have the measure, half its 95 % interval, and how many these are."""
    known = [found for found in map(value, records(arm)) if found is not None]
    return (*mean_interval(known), len(known)) if known else None


def compare(arm: str, value: Value, other: Value | None = None) -> Comparison | None:
    """Compare a measure with that of the plain arm, seed by seed, where both have it.

    Args:
        arm: one that is compared with another.
        value: the measure.
        other: the measure of the plain arm, if it is not the same.

    Returns:
        None if there is no such seed.
    """
    against = ARMS[arm].against
    if against is None:
        raise ValueError(f"{arm} is compared with no other arm")
    both = [
        (value(mine), (other or value)(theirs))
        for mine, theirs in zip(records(arm), records(against), strict=True)
    ]
    known = [(mine, theirs) for mine, theirs in both if mine is not None and theirs is not None]
    if not known:
        return None
    own, plain = [mine for mine, _ in known], [theirs for _, theirs in known]
    return Comparison(
        math.fsum(own) / len(own),
        math.fsum(plain) / len(plain),
        *paired_interval(own, plain),
        effect_size(own, plain),
        paired_p_value(own, plain),
        len(known),
    )


def solved(arm: str) -> int:
    """Return how many networks came above 99 % on the held-out pairs at some step."""
    return sum(record["solved"] is not None for record in records(arm))


def above_permuted(arm: str, clustering: str) -> int:
    """Return in how many networks the information lies above the 95 % range of permuted clusters."""
    found = [record["clusterings"][clustering] for record in records(arm)]
    return sum(bool(each) and each["information"] > each["permuted_high"] for each in found)


# --- Claims.


class Claim(NamedTuple):
    """A claim about one arm.

    Attributes:
        arm: the arm.
        statement: the claim in words.
        sign: 1 if the measure is to be larger than in plain networks, -1 if smaller.
        comparison: what was measured; None if no pair has the measure.
        p_adjusted: the p-value, corrected for all claims by Holm's method; None if there is none.
    """

    arm: str
    statement: str
    sign: int
    comparison: Comparison | None
    p_adjusted: float | None

    @property
    def verdict(self) -> str:
        """Supported or contradicted at 5 %, or undecided."""
        if self.comparison is None or self.p_adjusted is None or self.p_adjusted > 0.05:
            return "undecided"
        return "supported" if self.comparison.difference * self.sign > 0 else "contradicted"


CLAIMS: dict[str, tuple[str, Value, Value | None, int]] = {
    "families": ("A neuron's cluster tells its frequency", excess("blocks"), None, 1),
    "more": (
        "It tells more than a spectral cluster found in the plain network",
        excess("blocks"),
        excess("spectral"),
        1,
    ),
    "selective": (
        "Without a cluster the logits lose its own frequencies",
        beyond_random_selectivity("blocks"),
        None,
        1,
    ),
    "sooner": ("The network generalises sooner", at("solved"), None, -1),
    "smaller": ("Circuits with the same loss have fewer units", at("circuit", "size"), None, -1),
    "frequencies": ("The logits have more key frequencies", at("measures", "keys"), None, 1),
}
"""By name the statement, the measure, that of the plain network if it is not the same, and the sign."""


def claims(arms: Sequence[str]) -> dict[tuple[str, str], Claim]:
    """Return the claims about these arms by arm and name, all of them corrected together."""
    found = [
        (arm, name, statement, sign, compare(arm, value, other))
        for arm in arms
        for name, (statement, value, other, sign) in CLAIMS.items()
    ]
    adjusted = holm([None if each[-1] is None else each[-1].p_value for each in found])
    return {
        (arm, name): Claim(arm, statement, sign, comparison, p_value)
        for (arm, name, statement, sign, comparison), p_value in zip(found, adjusted, strict=True)
    }
