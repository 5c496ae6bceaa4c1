"""Train one network and measure it: one record for each arm and seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.campaign import rounded
from modfast import (
    EnmeshmentLoss,
    Network,
    ablate_units,
    cluster_ablation,
    find_unit_circuit,
    live_units,
    read_network,
    spectral_cluster,
    unit_scores,
)
from modfast.files import atomic_write
from modfast.machine import environment
from modfast.metrics import accuracy, class_log_likelihood, class_log_odds
from modfast.tasks import ModularAddition, modular_addition

from .arms import CLUSTERS, SEEDS, Arm, blocks
from .waves import Waves, families, find_waves, logit_power, own_and_other_falls

SOLVED = 0.99
"""The held-out accuracy above which a network counts as one that generalises."""

DRAWS = 4
"""How often clusters and rankings are drawn at random to stand beside each measured number."""

ALLOWED = 0.05
"""The loss, in nats, that every network's circuit may have, if the network itself has no more."""

TOLERANCE = 0.01


def measure(arm: Arm, seed: int, weights: Path | None = None) -> dict[str, Any]:
    """Train and measure one network.

    Args:
        arm: how it is trained.
        seed: of its initial weights, of what is trained on and what is held out.
        weights: a file for the trained network. If it exists, it is measured as it is.
    """
    task, model, network = make(arm, seed)
    if weights is not None and weights.exists():
        trained = torch.load(weights, weights_only=True)
        model.load_state_dict(trained["model"])
        history, seconds = trained["history"], trained["seconds"]
    else:
        began = time.perf_counter()
        history = train(arm, seed, task, model, network)
        seconds = time.perf_counter() - began
        if weights is not None:
            weights.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(weights) as temporary:
                torch.save({"model": model.state_dict(), "history": history, "seconds": seconds}, temporary)
    began = time.perf_counter()
    record = measure_model(arm, seed, task, model, network, history)
    record["seconds"] = {"training": seconds, "measuring": time.perf_counter() - began}
    return rounded(record)


def make(arm: Arm, seed: int) -> tuple[ModularAddition, nn.Module, Network]:
    """Return the task, the network before it is trained, and its units."""
    kind = arm.kind
    task = modular_addition(kind.p, kind.train_share, seed)
    model = task.model(kind.name, seed=seed, **kind.sizes)
    return task, model, read_network(model, task.pairs[:2])


def train(
    arm: Arm, seed: int, task: ModularAddition, model: nn.Module, network: Network
) -> list[dict[str, float]]:
    """Train a network in place; return its history."""
    options: dict[str, Any] = {}
    if arm.layers:
        partitions = network.partitions(blocks(network, arm.kind), layers=arm.layers)
        options = {"enmeshment": EnmeshmentLoss(model, partitions), "enmeshment_weight": arm.weight}
    return task.train(model, arm.kind.steps, seed=seed, **arm.settings, **options)


def measure_model(
    arm: Arm,
    seed: int,
    task: ModularAddition,
    model: nn.Module,
    network: Network,
    history: list[dict[str, float]],
) -> dict[str, Any]:
    """Return the record of a trained network, but for the seconds that it took."""
    kind = arm.kind
    waves = find_waves(task, model, kind)
    units = network.layers[kind.neurons].col_units
    by_block = blocks(network, kind)
    by_graph = spectral_cluster(network.graph(list(kind.inside)), CLUSTERS)
    by_waves = torch.full_like(by_block, -1)
    live = waves.live.nonzero().flatten()
    if len(live) >= CLUSTERS:
        by_waves[units[live]] = spectral_cluster(waves.correlation[live][:, live], CLUSTERS)
    layers = {name: model.get_submodule(name).weight.detach() for name in kind.inside}
    partitions = {
        "blocks": network.partitions(by_block, layers=list(layers)),
        "spectral": network.partitions(by_graph, layers=list(layers)),
    }
    found = {
        name: {part: live_units(weight, each[part]) for part, weight in layers.items()}
        for name, each in partitions.items()
    }
    written = found["blocks"][kind.neurons]
    solved = [record["step"] for record in history if record["test_accuracy"] > SOLVED]
    record: dict[str, Any] = {
        "arm": arm.name,
        "seed": seed,
        "settings": {
            "p": kind.p,
            "train_share": kind.train_share,
            "steps": kind.steps,
            "sizes": kind.sizes,
            "layers": arm.layers,
            "weight": arm.weight,
            "clusters": CLUSTERS,
            **arm.settings,
        },
        "fingerprint": task.fingerprint,
        "history": {
            name: [each[name] for each in history] for name in ("step", "test_accuracy", "test_loss")
        },
        "solved": solved[0] if solved else None,
        "measures": {
            "test_accuracy": history[-1]["test_accuracy"],
            "test_loss": history[-1]["test_loss"],
            "loss": history[-1]["loss"],
            "keys": int(waves.key.sum()),
            "explained": float(waves.in_logits[waves.key].sum()),
            "purity": float(waves.shares[live].amax(1).median()) if len(live) else None,
            "live": len(live) / len(waves.live),
            "live_columns": float(written.columns.double().mean()),
            "effective_neurons": written.effective_columns,
            **_clusterability("blocks", found["blocks"]),
            **_clusterability("spectral", found["spectral"]),
        },
        "clusterability": {name: float(each.cluster_shares.sum()) for name, each in found["blocks"].items()},
        "clusterings": {
            name: _clustering(
                task, model, network, kind.writes, waves, units, labels, seed, ablated=name != "activations"
            )
            for name, labels in (("blocks", by_block), ("spectral", by_graph), ("activations", by_waves))
        },
        "circuits": _circuits(task, model, network, waves, units, by_block, seed),
        "neurons": {
            "frequency": (waves.frequency + 1).tolist(),
            "live": waves.live.int().tolist(),
            "spectral": by_graph[units].tolist(),
        },
        "keys": (waves.key.nonzero().flatten() + 1).tolist(),
        "in_logits": [round(share, 4) for share in waves.in_logits.tolist()],
        "environment": environment(),
    }
    if seed == SEEDS[0]:
        record["shares"] = [[round(share, 3) for share in neuron] for neuron in waves.shares.tolist()]
    return record


def _clusterability(name: str, found: Mapping[str, Any]) -> dict[str, float]:
    """Return the means over layers of the clusterability, and of how many clusters are in use."""
    return {
        f"clusterability:{name}": math.fsum(float(each.cluster_shares.sum()) for each in found.values())
        / len(found),
        f"clusters:{name}": math.fsum(each.effective_clusters for each in found.values()) / len(found),
    }


def _clustering(
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


def _circuits(
    task: ModularAddition,
    model: nn.Module,
    network: Network,
    waves: Waves,
    units: Tensor,
    labels: Tensor,
    seed: int,
) -> dict[str, Any]:
    """Return circuits of neurons and heads: with the same fall allowed to all, and with the same loss."""
    instead = {"ablation": "mean", "reference": task.batches}
    scores = unit_scores(model, task.batches, class_log_odds, network, steps=4, **instead)
    asked = ~scores.isnan()
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}

    def circuit(tolerance: float, method: str, ranking: Tensor) -> Any:
        return find_unit_circuit(
            model,
            task.batches,
            class_log_likelihood,
            network,
            tolerance=tolerance,
            method=method,
            scores=ranking,
            **instead,
        )

    tolerance: float | None = TOLERANCE
    for name in ("tolerance", "fixed"):
        if tolerance is None:
            continue
        greedy = circuit(tolerance, "greedy", scores)
        kept = greedy.kept & asked
        inside = kept[units]
        random = []
        for _ in range(DRAWS):
            ranking = torch.rand(len(scores), generator=generator, dtype=torch.float64)
            random.append(
                int((circuit(tolerance, "attribution", ranking.where(asked, torch.nan)).kept & asked).sum())
            )
        found[name] = {
            "size": int(kept.sum()) / int(asked.sum()),
            "neurons": int(inside.sum()),
            "of_live": int(inside.sum()) / max(int(waves.live.sum()), 1),
            "heads": int(kept.sum()) - int(inside.sum()),
            "attribution": int((circuit(tolerance, "attribution", scores).kept & asked).sum())
            / int(asked.sum()),
            "random": math.fsum(random) / DRAWS / int(asked.sum()),
            "loss_before": -greedy.metric_before,
            "loss_after": -greedy.metric_after,
            "frequencies": len(waves.frequency[inside].unique()),
            "clusters": len(labels[units][inside].unique()),
        }
        tolerance = ALLOWED + greedy.metric_before if -greedy.metric_before <= ALLOWED else None
    return found
