"""The circuits of a network's behaviours, and on how many clusters its answers depend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modfast import (
    ablate_units,
    accuracy,
    circuit_overlap,
    cluster_dependence,
    cluster_information,
    faithfulness_curve,
    find_unit_circuit,
    random_circuits,
    unit_scores,
)
from modfast.batches import inputs_of
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.network.units import Network

from .arms import CLUSTERS, Size
from .behaviours import NAMES, Batch, examples, is_right, right_less_wrong, texts_alone

TOLERANCE = 0.1
"""A circuit may lose this share of the metric."""

DEMANDED = {"induction": 5.0, "brackets": 0.6, "indentation": 1.2}
"""What the circuits of all networks alike must reach, where a network itself does: in logits."""

_FOUND_BY, _JUDGED_BY = 1, 2  # seeds of the examples
_STEPS = 8
_RANDOM = 20
RANDOM_CLUSTERS = 3


class Circuits:
    """The circuits of a network's behaviours.

    Args:
        model: the network.
        network: its units.
        size: says how many examples there are.
        reference: windows of text. Where answers in text are asked for, ablated units have their mean over
            these; for a behaviour, their mean over its own texts, in which both answers are as often right.
    """

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        size: Size,
        reference: Sequence[Batch],
        *,
        fixed: bool = True,
    ) -> None:
        self.model, self.network = model, network
        self.found_by, self.judged_by = (examples(size.examples, seed) for seed in (_FOUND_BY, _JUDGED_BY))
        self.references = {name: texts_alone(batches) for name, batches in self.found_by.items()}
        self.references["text"] = [inputs for inputs, _ in reference]
        self.scores: dict[str, Tensor] = {}
        self.relative: dict[str, UnitCircuit] = {}
        self.fixed: dict[str, UnitCircuit] = {}
        for name in NAMES:
            self._find(name, fixed)

    def _find(self, name: str, fixed: bool) -> None:
        batches = self.found_by[name]
        metric = self._value(batches, right_less_wrong)
        if metric <= 0:
            return
        instead: dict[str, Any] = {"ablation": "mean", "reference": self.references[name]}
        task = (self.model, batches, right_less_wrong, self.network)
        self.scores[name] = unit_scores(*task, steps=_STEPS, **instead)
        wanted = {"scores": self.scores[name], "name": name, **instead}
        self.relative[name] = find_unit_circuit(*task, tolerance=TOLERANCE * metric, **wanted)
        if fixed and metric > DEMANDED[name]:
            self.fixed[name] = find_unit_circuit(*task, tolerance=metric - DEMANDED[name], **wanted)

    def _value(self, batches: Sequence[Any], metric: Any) -> float:
        with torch.no_grad():
            values = torch.cat([metric(self.model(inputs_of(batch)), batch) for batch in batches])
        return float(values.double().mean())

    def abilities(self) -> dict[str, dict[str, float]]:
        """Return for each behaviour the metric and the shares of right answers, on the judging examples."""
        metrics = {"metric": right_less_wrong, "right": is_right}
        return {
            name: {what: self._value(self.judged_by[name], metric) for what, metric in metrics.items()}
            for name in NAMES
        }

    def dependence(self, labels: Tensor, held_out: Sequence[Batch]) -> dict[str, Any]:
        """Return on how many clusters right answers depend: the last bytes of windows, and behaviours."""
        tasks: dict[str, tuple[Any, Any]] = {"text": ([inputs for inputs, _ in held_out], accuracy)}
        tasks |= {name: (self.judged_by[name], is_right) for name in NAMES}
        described: dict[str, Any] = {}
        for name, (batches, metric) in tasks.items():
            if not self._value(batches, metric):
                described[name] = None
                continue
            found = cluster_dependence(
                self.model,
                batches,
                metric,
                self.network,
                labels,
                n_random=RANDOM_CLUSTERS,
                ablation="mean",
                reference=self.references[name],
            )
            described[name] = {
                "answers": len(found.needed),
                "mean": found.mean,
                "random_mean": found.random_mean,
                "shares": found.shares.tolist(),
                "random_shares": found.random_mean_shares.tolist(),
                "by_cluster": found.needed.double().mean(0).tolist(),
            }
        return described

    def describe(self, labels: dict[str, Tensor]) -> dict[str, Any]:
        """Return what the circuits are like, one by one and together, beside random ones of equal sizes."""
        return {
            kind: {
                "by_behaviour": {name: self._one(found[name], labels) for name in found},
                "overlap": overlaps(list(found.values())),
                "information": {
                    name: information(list(found.values()), each) for name, each in labels.items()
                },
            }
            for kind, found in (("relative", self.relative), ("fixed", self.fixed))
        }

    def _one(self, circuit: UnitCircuit, labels: dict[str, Tensor]) -> dict[str, Any]:
        reference = self.references[circuit.name]
        with ablate_units(self.model, self.network, ~circuit.kept, "mean", reference):
            alone = {
                "metric_on_others": self._value(self.judged_by[circuit.name], right_less_wrong),
                "right_on_others": self._value(self.judged_by[circuit.name], is_right),
            }
        return {
            "size": circuit.size,
            "units": circuit.num_units,
            "sizes": circuit.sizes,
            "metric_before": circuit.metric_before,
            "metric_after": circuit.metric_after,
            **alone,
            "counts": {name: counts(circuit, each) for name, each in labels.items()},
            "best_cluster": {name: best_cluster(circuit, each) for name, each in labels.items()},
        }

    def curve(self, name: str) -> dict[str, Any] | None:
        """Return the areas of the faithfulness curve of a behaviour, beside those of random rankings."""
        if name not in self.scores:
            return None
        found = faithfulness_curve(
            self.model,
            self.found_by[name],
            right_less_wrong,
            self.network,
            self.scores[name],
            ablation="mean",
            reference=self.references[name],
            n_random=2,
        )
        return {
            "behaviour": name,
            "shares": found.shares.tolist(),
            "faithfulness": found.faithfulness.tolist(),
            "random_faithfulness": found.random_faithfulness.mean(0).tolist(),
            "cpr": found.cpr,
            "random_cpr": float(found.random_cpr.mean()),
            "cmd": found.cmd,
            "random_cmd": float(found.random_cmd.mean()),
        }


def overlaps(circuits: Sequence[UnitCircuit]) -> dict[str, Any] | None:
    """Return the mean overlap of two circuits, and that of random ones with as many units in each space."""
    if len(circuits) < 2:
        return None
    others = [_pair_mean(random_circuits(circuits, seed)) for seed in range(_RANDOM)]
    own = circuit_overlap(circuits)
    return {
        "mean": _pair_mean(circuits),
        "random": math.fsum(others) / len(others),
        "pairs": {
            f"{one.name}, {other.name}": float(own[i, j])
            for i, one in enumerate(circuits)
            for j, other in enumerate(circuits)
            if i < j
        },
    }


def _pair_mean(circuits: Sequence[UnitCircuit]) -> float:
    pairs = circuit_overlap(circuits)[tuple(torch.triu_indices(len(circuits), len(circuits), 1))]
    return float(pairs.nan_to_num(0.0).mean())


def information(circuits: Sequence[UnitCircuit], labels: Tensor) -> dict[str, float] | None:
    """Return the bits that a unit's cluster says of its circuit, and those for random circuits."""
    if len(circuits) < 2:
        return None
    others = [cluster_information(random_circuits(circuits, seed), labels) for seed in range(_RANDOM)]
    return {"bits": cluster_information(circuits, labels), "random": math.fsum(others) / len(others)}


def counts(circuit: UnitCircuit, labels: Tensor) -> dict[str, list[int]]:
    """Return how many of a circuit's units lie in each cluster, for each space."""
    kept = circuit.kept & circuit.asked
    return {
        name: [int((kept[space] & (labels[space] == cluster)).sum()) for cluster in range(CLUSTERS)]
        for name, space in circuit.spaces.items()
        if bool(circuit.asked[space].any())
    }


def best_cluster(circuit: UnitCircuit, labels: Tensor) -> dict[str, float] | None:
    """Return the share of a circuit's units in the cluster that has most of them, and that by chance."""
    if not circuit.num_units:
        return None
    others = [
        _largest_share(each, labels) for seed in range(_RANDOM) for each in random_circuits([circuit], seed)
    ]
    return {"share": _largest_share(circuit, labels), "random": math.fsum(others) / len(others)}


def _largest_share(circuit: UnitCircuit, labels: Tensor) -> float:
    kept = circuit.kept & circuit.asked & (labels >= 0)
    return float(labels[kept].bincount(minlength=CLUSTERS).max() / kept.sum())
