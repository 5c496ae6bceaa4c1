"""What ablating the neurons of a network does: those of a cluster, and all but those of a circuit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from modfast import Network, UnitCircuit, ablate_units, cluster_ablation, find_unit_circuit, unit_scores
from modfast.metrics import accuracy, class_log_likelihood, class_log_odds
from modfast.tasks import ModularAddition
from modfast.tasks.training import evaluate

from .waves import Waves, families, logit_power, own_and_other_falls

DRAWS = 4
"""How often clusters and rankings are drawn at random to stand beside each measured number."""

ALLOWED = 0.05
"""The loss, in nats, that the circuit of every network may have, if the network itself has no more."""


def ablated_clusters(
    task: ModularAddition,
    model: nn.Module,
    network: Network,
    space: str,
    waves: Waves,
    units: Tensor,
    labels: Tensor,
    seed: int,
    *,
    ablated: bool,
) -> dict[str, Any]:
    """Return what clusters say of frequencies, and what ablating their neurons does, beside random ones."""
    if not bool((labels[units] >= 0).any()):
        return {}
    clusters = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(DRAWS):
        other = labels.clone()
        members = units[labels[units] >= 0]
        other[members] = labels[members[torch.randperm(len(members), generator=generator)]]
        drawn.append(other)
    instead = {"spaces": space, "ablation": "mean", "reference": task.batches}
    result: dict[str, Any] = dict(families(waves, labels[units], clusters, seed))
    result["sizes"] = torch.bincount(labels[units][labels[units] >= 0], minlength=clusters).tolist()
    if not ablated:
        return result
    for mode in ("only", "without"):
        values = [
            cluster_ablation(model, task.batches, accuracy, network, each, mode, **instead)
            for each in (labels, *drawn)
        ]
        result[mode] = values[0].tolist()
        result[f"random_{mode}"] = float(torch.stack(values[1:]).mean())
    falls = [_falls(task, model, network, units, each, clusters) for each in (labels, *drawn)]
    result["falls"] = [[round(fall, 3) for fall in each[waves.key].tolist()] for each in falls[0]]
    result["own"] = own_and_other_falls(waves, labels[units], falls[0])
    others = [
        own_and_other_falls(waves, each[units], fall) for each, fall in zip(drawn, falls[1:], strict=True)
    ]
    known = [each for each in others if each is not None]
    result["random_own"] = (
        [math.fsum(each[side] for each in known) / len(known) for side in (0, 1)] if known else None
    )
    return result


def _falls(
    task: ModularAddition, model: nn.Module, network: Network, units: Tensor, labels: Tensor, clusters: int
) -> Tensor:
    """Return by which share each frequency's amplitude falls in the logits without each cluster's neurons."""
    before = logit_power(task.logits(model))
    falls = []
    for cluster in range(clusters):
        with ablate_units(model, network, units[labels[units] == cluster], "mean", task.batches):
            after = logit_power(task.logits(model))
        falls.append(1 - (after / before).clamp(min=0).sqrt())
    return torch.stack(falls)


def circuit_of(
    task: ModularAddition,
    model: nn.Module,
    network: Network,
    waves: Waves,
    units: Tensor,
    labels: Tensor,
    seed: int,
) -> dict[str, Any]:
    """Return what the circuit of neurons and heads is like that has the loss that is allowed to all.

    Empty if the network has more loss itself.
    """
    instead = {"ablation": "mean", "reference": task.batches}
    loss, _ = evaluate(model, task.batches)
    if loss > ALLOWED:
        return {}
    scores = unit_scores(model, task.batches, class_log_odds, network, steps=4, **instead)
    asked = ~scores.isnan()

    def circuit(method: str, ranking: Tensor) -> UnitCircuit:
        return find_unit_circuit(
            model,
            task.batches,
            class_log_likelihood,
            network,
            tolerance=ALLOWED - loss,
            method=method,
            scores=ranking,
            **instead,
        )

    generator = torch.Generator().manual_seed(seed)
    random = []
    for _ in range(DRAWS):
        ranking = torch.rand(len(scores), generator=generator, dtype=torch.float64)
        random.append(int((circuit("attribution", ranking.where(asked, torch.nan)).kept & asked).sum()))
    greedy = circuit("greedy", scores)
    kept = greedy.kept & asked
    inside = kept[units]
    return {
        "size": int(kept.sum()) / int(asked.sum()),
        "random": math.fsum(random) / DRAWS / int(asked.sum()),
        "neurons": int(inside.sum()),
        "of_live": int(inside.sum()) / max(int(waves.live.sum()), 1),
        "heads": int(kept.sum()) - int(inside.sum()),
        "loss_before": -greedy.metric_before,
        "loss_after": -greedy.metric_after,
        "frequencies": len(waves.frequency[inside].unique()),
        "clusters": len(labels[units][inside].unique()),
    }
