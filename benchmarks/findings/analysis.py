"""What the records say: differences to the compared arm, seed by seed, and the claims of the papers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modfast.report.statistics import (
    detectable_effect,
    effect_size,
    holm,
    mean_interval,
    paired_interval,
    paired_p_value,
)

from .arms import ARMS, SEEDS

RESULTS = Path(__file__).parent / "results"

Record = Mapping[str, Any]


class Comparison(NamedTuple):
    """A measure of an arm and of the arm that it is compared with.

    Attributes:
        own: the mean of the arm.
        other: the mean of the arm that it is compared with.
        difference: the mean of the differences, seed by seed.
        interval: half the width of its 95 % interval.
        effect: Cohen's d_z; None without scatter.
        p_value: of the paired t-test, not corrected.
        seeds: how many pairs there are.
    """

    own: float
    other: float
    difference: float
    interval: float
    effect: float | None
    p_value: float
    seeds: int


@cache
def records(arm: str) -> list[Record]:
    """Return the records of an arm, by seed.

    Raises:
        ValueError: they are not of the seeds that all arms have.
    """
    found: list[Record] = json.loads((RESULTS / f"{arm}.json").read_text(encoding="utf-8"))
    seeds = [record["seed"] for record in found]
    if seeds != list(SEEDS):
        raise ValueError(f"{arm}.json holds the seeds {seeds}, not {list(SEEDS)}")
    return found


def has_records(arm: str) -> bool:
    """Whether an arm has been run."""
    return (RESULTS / f"{arm}.json").exists()


def measure(record: Record, group: str, name: str) -> float | None:
    """Return a measure of a record: ``group`` is "model" or a criterion; None if there is none."""
    value: float | None = record["measures"].get(group, {}).get(name)
    return value


def mean(arm: str, group: str, name: str) -> float:
    """Return the mean of a measure over seeds."""
    values = [measure(record, group, name) for record in records(arm)]
    return math.fsum(_known(values)) / len(values)


def mean_of(arm: str, group: str, name: str) -> tuple[float, float | None]:
    """Return the mean of a measure over seeds, and half the width of its 95 % interval."""
    return mean_interval(_known([measure(record, group, name) for record in records(arm)]))


def compare(arm: str, group: str, name: str, against: str | None = None) -> Comparison | None:
    """Compare a measure with that of the arm's partner, seed by seed; None if a seed has none."""
    other = against or ARMS[arm].against
    if other is None:
        raise ValueError(f"{arm} is compared with no other arm")
    pairs = zip(records(arm), records(other), strict=True)
    return paired([(measure(mine, group, name), measure(theirs, group, name)) for mine, theirs in pairs])


def paired(pairs: Sequence[tuple[float | None, float | None]]) -> Comparison | None:
    """Compare pairs of values, the own one first, seed by seed; None if a value is missing."""
    known = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    if len(known) < len(pairs):
        return None
    own, other = [mine for mine, _ in known], [theirs for _, theirs in known]
    difference, interval = paired_interval(own, other)
    p_value = paired_p_value(own, other)
    assert interval is not None  # there are several seeds
    assert p_value is not None
    means = math.fsum(own) / len(own), math.fsum(other) / len(other)
    return Comparison(*means, difference, interval, effect_size(own, other), p_value, len(known))


def _known(values: Sequence[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise ValueError("a seed has no such measure")
    return known


# --- Fair comparisons: a circuit is smaller where its network is worse, for more loss is allowed.


def at_equal_loss(arm: str, name: str, plain: str = "plain") -> Comparison | None:
    """Compare circuits by loss with those of the plain network at the epoch whose test loss is nearest.

    Args:
        arm: the arm.
        name: "size" or "overlap".
        plain: an arm whose circuits were found after every epoch.
    """
    pairs = []
    for mine, theirs in zip(records(arm), records(plain), strict=True):
        pairs.append((measure(mine, "loss", name), nearest_epoch(mine, theirs)[name]))
    return paired(pairs)


def nearest_epoch(mine: Record, theirs: Record) -> Mapping[str, Any]:
    """Return the other network's circuits after the epoch whose test loss is nearest to mine at the end.

    Its ``test_loss`` is that loss.
    """
    goal = mine["history"][-1]["test_cross_entropy"]
    epochs = [
        found | {"test_loss": theirs["history"][found["epoch"] - 1]["test_cross_entropy"]}
        for found in theirs["epochs"]
    ]
    return min(epochs, key=lambda found: abs(found["test_loss"] - goal))


def loss_gap(arm: str, plain: str = "plain") -> Comparison | None:
    """Compare the test losses of what :func:`at_equal_loss` compares."""
    pairs = []
    for mine, theirs in zip(records(arm), records(plain), strict=True):
        pairs.append((mine["history"][-1]["test_cross_entropy"], nearest_epoch(mine, theirs)["test_loss"]))
    return paired(pairs)


# --- Claims.


class Claim(NamedTuple):
    """A claim of the papers, about one arm.

    Attributes:
        arm: the arm.
        statement: the claim in words.
        versions: which versions of the papers make it, and which deny it.
        group: "model" or a criterion.
        measure: the measure.
        sign: 1 if it is to be larger than that of the other arm, -1 if smaller.
        comparison: what was measured.
        p_adjusted: the p-value, corrected for all claims of the page by Holm's method.
    """

    arm: str
    statement: str
    versions: str
    group: str
    measure: str
    sign: int
    comparison: Comparison
    p_adjusted: float

    @property
    def verdict(self) -> str:
        """Supported or contradicted at 5 %, or undecided."""
        if self.p_adjusted > 0.05:
            return "undecided"
        return "supported" if self.comparison.difference * self.sign > 0 else "contradicted"


_EARLIER = "2409.15747, 2502.02470 v1 and v2"
_SPECIALISED = f"{_EARLIER}; v3 denies it"
CLAIMS = (
    ("Circuits are smaller", "2409.15747, 2502.02470 v1 to v3", "loss", "size", -1),
    ("Circuits of two classes overlap less", _EARLIER, "loss", "overlap", -1),
    ("Circuits are smaller", "2409.15747, 2502.02470 v1 to v3", "balanced", "size", -1),
    ("Circuits of two classes overlap less", _EARLIER, "balanced", "overlap", -1),
    (
        "Single clusters alone differ more in what they get right",
        _SPECIALISED,
        "model",
        "specialisation_only",
        1,
    ),
    ("Classes depend more on single clusters", _SPECIALISED, "model", "specialisation_without", 1),
)
"""Statement, versions, group, measure and sign of each claim."""


def claims(arms: Sequence[str]) -> list[Claim]:
    """Return the claims about these arms, all of them corrected together."""
    found = []
    for arm in arms:
        for statement, versions, group, name, sign in CLAIMS:
            comparison = compare(arm, group, name)
            if comparison is not None:
                found.append((arm, statement, versions, group, name, sign, comparison))
    adjusted = holm([parts[-1].p_value for parts in found])
    return [Claim(*parts, 1.0 if p is None else p) for parts, p in zip(found, adjusted, strict=True)]


def detectable(comparisons: int) -> float:
    """Return the d_z that so many seeds find with a chance of 80 %."""
    return detectable_effect(len(SEEDS), comparisons)


# --- By class, and what still carries weight.


def relative_by_class(arm: str, group: str = "loss") -> list[tuple[float, float | None]]:
    """Return by how much the circuit of each class is larger, relative to the other arm's, over seeds."""
    other = ARMS[arm].against
    assert other is not None
    by_class = []
    for label in range(len(records(arm)[0]["by_class"][group]["size"])):
        changes = []
        for mine, theirs in zip(records(arm), records(other), strict=True):
            own, reference = (each["by_class"][group]["size"][label] for each in (mine, theirs))
            changes.append((own - reference) / reference)
        by_class.append(mean_interval(changes))
    return by_class


def live(arm: str, name: str, layer: str = "fc2") -> tuple[float, float | None]:
    """Return the mean over seeds of what `live_units` says of a layer."""
    return mean_interval([record["live"][layer][name] for record in records(arm)])


def within_allowed(arm: str) -> list[tuple[Record, Record]]:
    """Return the pairs in which both networks may have the loss that is allowed to all, in every class."""
    other = ARMS[arm].against
    assert other is not None
    pairs = zip(records(arm), records(other), strict=True)
    return [pair for pair in pairs if all("fixed" in record["measures"] for record in pair)]


def with_allowed_loss(arm: str, name: str) -> Comparison:
    """Compare circuits whose allowed loss is the same for both networks, in the pairs that may have it."""
    pairs = within_allowed(arm)
    found = paired([(measure(mine, "fixed", name), measure(theirs, "fixed", name)) for mine, theirs in pairs])
    if found is None:
        raise ValueError(f"{arm}: a circuit with the allowed loss has no {name}")
    return found


def after_epoch(arm: str, epoch: int, name: str) -> float:
    """Return the mean over seeds of a measure of circuits by loss after an epoch of an arm."""
    values = [found[name] for record in records(arm) for found in record["epochs"] if found["epoch"] == epoch]
    if not values:
        raise ValueError(f"{arm} has no circuits after epoch {epoch}")
    return math.fsum(values) / len(values)
