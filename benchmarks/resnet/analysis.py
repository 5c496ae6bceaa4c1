"""What the records say: means over seeds, and differences to plain networks, seed by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from modfast.report.statistics import mean_interval, paired_interval

from .arms import ARMS, CLUSTERS, SEEDS

RESULTS = Path(__file__).parent / "results"

Record = Mapping[str, Any]

RULES = ("own", "same", "logit")
"""How much loss a circuit may have, and of which answer; see `circuits.find_class_circuits`."""


class Estimate(NamedTuple):
    """A mean over seeds, or over differences seed by seed.

    Attributes:
        mean: the mean.
        interval: half the width of its 95 % interval; None for a single seed.
        seeds: how many there are.
    """

    mean: float
    interval: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of 0; 0 if it holds 0, or there is none."""
        if self.interval is None or abs(self.mean) <= self.interval:
            return 0
        return 1 if self.mean > 0 else -1


@cache
def records(arm: str) -> list[Record]:
    """Return the records of an arm, by seed.

    Raises:
        ValueError: a seed is not among those of the experiment, or comes twice.
    """
    found: list[Record] = json.loads((RESULTS / f"{arm}.json").read_text(encoding="utf-8"))
    seeds = [record["seed"] for record in found]
    if seeds != sorted(set(seeds) & set(SEEDS)):
        raise ValueError(f"{arm}.json holds the seeds {seeds}, which must be some of {list(SEEDS)}, in order")
    return found


def arms() -> list[str]:
    """Return the arms that have been run, the plain one first."""
    return [name for name in ARMS if (RESULTS / f"{name}.json").exists()]


def mean(arm: str, measure: str) -> Estimate | None:
    """Return the mean of a measure over the seeds that have it; None if none has."""
    values = [value for record in records(arm) if (value := MEASURES[measure](record)) is not None]
    return Estimate(*mean_interval(values), len(values)) if values else None


def difference(arm: str, measure: str, against: str = "plain") -> Estimate | None:
    """Return the mean difference to another arm over the seeds at which both have the measure."""
    others = {record["seed"]: record for record in records(against)}
    pairs = [
        (MEASURES[measure](record), MEASURES[measure](others[record["seed"]]))
        for record in records(arm)
        if record["seed"] in others
    ]
    known = [(own, other) for own, other in pairs if own is not None and other is not None]
    if not known:
        return None
    return Estimate(*paired_interval(*map(list, zip(*known, strict=True))), len(known))


# --- Measures: each a function of a record; None where a network has no such thing.


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _of_layers(name: str, which: str | None = None) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        layers = record["layers"].values()
        return _average([layer[name] if which is None else layer[name][which] for layer in layers])

    return measure


def _of_circuits(rule: str, *path: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        found = record["circuits"][rule]["measures"]
        for name in path:
            if found is None:
                return None
            found = found[name]
        value: float | None = found
        return value

    return measure


def _by_class(rule: str, name: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        circuits = record["circuits"][rule]["by_class"]
        known = [circuit[name] for circuit in circuits if circuit is not None]
        return _average(known) if len(known) == len(circuits) else None

    return measure


def _of_clusters(which: str, *path: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        found = record["clusters"][which]
        for name in path:
            found = found[name]
        value: float | None = found
        return value

    return measure


def cluster_of(label: int, classes: int) -> int:
    """Return the cluster of a class among the blocks of the last layer's rows, sized as tensor_split does."""
    more, least = classes % CLUSTERS, classes // CLUSTERS
    ends = accumulate(least + (cluster < more) for cluster in range(CLUSTERS))
    return next(cluster for cluster, end in enumerate(ends) if label < end)


def _by_own_cluster(mode: str, own: bool) -> Callable[[Record], float]:
    """Return how often a class is told from others with its own cluster off (or alone), or another one."""

    def measure(record: Record) -> float:
        answers = record["clusters"]["own"][mode]
        return _average(
            [
                share
                for cluster, row in enumerate(answers)
                for label, share in enumerate(row)
                if (cluster_of(label, len(row)) == cluster) == own
            ]
        )

    return measure


def _dependence_beyond_random(record: Record) -> float:
    """Return on how many more clusters a right answer depends than on random ones of the same sizes."""
    found: Mapping[str, float] = record["clusters"]["own"]["dependence"]
    return found["mean"] - found["random_mean"]


def _balance(record: Record) -> float:
    """Return how many equal clusters would be as even as those found afterwards."""
    sizes = [size for size in record["found_sizes"] if size]
    return math.exp(-math.fsum(size / sum(sizes) * math.log(size / sum(sizes)) for size in sizes))


MEASURES: dict[str, Callable[[Record], float | None]] = {
    "accuracy": lambda record: record["history"][-1]["test_accuracy"],
    "test_loss": lambda record: record["history"][-1]["test_cross_entropy"],
    "clusterability": _of_layers("clusterability", "own"),
    "with_norm": _of_layers("with_norm", "own"),
    "crossing": lambda record: 1 - _of_layers("with_norm", "own")(record),
    "found": _of_layers("clusterability", "found"),
    "found_with_norm": _of_layers("with_norm", "found"),
    "found_least": lambda record: min(each["with_norm"]["found"] for each in record["layers"].values()),
    "after_first_epoch": lambda record: 1 - record["history"][0]["enmeshment"],
    "chance": _of_layers("chance"),
    "balance": _balance,
    "largest": lambda record: max(record["found_sizes"]) / sum(record["found_sizes"]),
    **{
        name: _of_layers(name)
        for name in ("live_rows", "live_columns", "effective_rows", "effective_columns")
    },
    "effective_clusters": _of_layers("effective_clusters"),
    "least_clusters": lambda record: min(each["effective_clusters"] for each in record["layers"].values()),
    **{
        f"{rule}:{name}": _of_circuits(rule, name)
        for rule in RULES
        for name in ("size", "overlap", "random_overlap")
    },
    **{
        f"{rule}:{name}:{which}": _of_circuits(rule, "clusters", which, name)
        for rule in RULES
        for which in ("own", "found")
        for name in ("inside", "random_inside", "information", "random_information")
    },
    **{
        f"{rule}:{name}": _by_class(rule, name)
        for rule in RULES
        for name in ("loss_before", "loss_after", "held_out")
    },
    **{
        f"specialisation_{mode}:{which}": _of_clusters(which, f"specialisation_{mode}")
        for mode in ("only", "without")
        for which in ("own", "random")
    },
    **{f"dependence:{which}": _of_clusters(which, "dependence", "mean") for which in ("own", "found")},
    **{
        f"accuracy_{mode}": lambda record, mode=mode: _average(record["clusters"]["own"][f"accuracy_{mode}"])
        for mode in ("only", "without")
    },
    **{
        f"{mode}:{whose}": _by_own_cluster(mode, whose == "own_cluster")
        for mode in ("only", "without")
        for whose in ("own_cluster", "other_cluster")
    },
    "dependence:random": _of_clusters("own", "dependence", "random_mean"),
    "dependence:beyond": _dependence_beyond_random,
}
"""By name. Means over layers, classes or pairs of classes come first, those over seeds afterwards."""
