"""Measure one network: its loss, clusters, what answers depend on, and the circuits of three behaviours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.campaign import rounded
from modfast import clusterability, live_units, spectral_cluster
from modfast.machine import environment
from modfast.network.units import Network
from modfast.tasks import NextToken

from .arms import ATTENTION, CLUSTERS, MLPS, Arm, Size
from .behaviours import Batch
from .circuits import RANDOM_CLUSTERS, Circuits, overlaps
from .data import describe
from .training import network_of, train

_EVERY = 4  # one batch of held-out text of so many, for what asks many passes
_KINDS = {"mlps": MLPS, "attention": ATTENTION}


def measure(arm: Arm, size: Size, seed: int, task: NextToken, checkpoint: Path | None) -> dict[str, Any]:
    """Train a network, or take it from its checkpoint, and return its record.

    Args:
        arm: how it is trained.
        size: how large, how long.
        seed: of its weights and of what it sees.
        task: the text.
        checkpoint: as for :func:`benchmarks.gpt.training.train`.
    """
    trained = train(arm, size, seed, task, checkpoint)
    began = time.perf_counter()
    model, network = trained.model.eval(), trained.network
    held_out = task.windows("test", 64, size.windows)
    labels = {"blocks": network.unit_labels(CLUSTERS)[0], "found": found_clusters(network)}
    circuits = Circuits(model, network, size, held_out[:2])
    record = {
        "arm": arm.name,
        "seed": seed,
        "weight": arm.weight,
        "size": asdict(size),
        "text": describe(task),
        "model": text_measures(model, held_out),
        "behaviours": circuits.abilities(),
        "clusters": {name: cluster_measures(network, given) for name, given in labels.items()},
        "live": live(network),
        "dependence": {
            name: circuits.dependence(given, held_out[::_EVERY]) for name, given in labels.items()
        },
        "circuits": circuits.describe(labels),
        "curve": circuits.curve("induction"),
        "snapshots": snapshots(trained.model, trained.snapshots, size, held_out),
        "environment": environment(),
        "seconds": {"training": trained.seconds, "measuring": time.perf_counter() - began},
    }
    return rounded(record)


def text_measures(model: nn.Module, held_out: Sequence[Batch]) -> dict[str, float]:
    """Return the loss in nats for each byte, and the share of bytes that are right."""
    loss = right = count = 0.0
    with torch.no_grad():
        for inputs, targets in held_out:
            logits = model(inputs).flatten(0, 1)
            loss += nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").item()
            right += (logits.argmax(1) == targets.flatten()).sum().item()
            count += targets.numel()
    return {"loss": loss / count, "accuracy": right / count}


def found_clusters(network: Network) -> Tensor:
    """Return the clusters that spectral clustering finds in a network's blocks, -1 for units outside them."""
    graph = network.graph(network.select(*MLPS, *ATTENTION)).to_dense()
    joined = graph.sum(1) > 0
    labels = torch.full((network.num_units,), -1)
    labels[joined] = spectral_cluster(graph[joined][:, joined], CLUSTERS).cpu()
    return labels


def cluster_measures(network: Network, labels: Tensor) -> dict[str, Any]:
    """Return clusterability by kind of layer, beside random clusters of the same sizes in each space."""
    measures: dict[str, Any] = {"sizes": [int((labels == cluster).sum()) for cluster in range(CLUSTERS)]}
    generator = torch.Generator().manual_seed(0)
    for kind, roles in _KINDS.items():
        names = network.select(*roles)
        measures[kind] = _mean_clusterability(network, labels, names)
        others = [
            _mean_clusterability(network, _shuffled(network, labels, generator), names)
            for _ in range(RANDOM_CLUSTERS)
        ]
        measures[f"{kind}_random"] = sum(others) / len(others)
    return measures


def _mean_clusterability(network: Network, labels: Tensor, names: Sequence[str]) -> float:
    partitions = network.partitions(labels, layers=names)
    values = [
        float(clusterability(network.model.get_submodule(name).weight.detach(), partition))
        for name, partition in partitions.items()
    ]
    return sum(values) / len(values)


def _shuffled(network: Network, labels: Tensor, generator: torch.Generator) -> Tensor:
    shuffled = labels.clone()
    for space in network.spaces.values():
        within = labels[space]
        shuffled[space] = within[torch.randperm(len(within), generator=generator)]
    return shuffled


def live(network: Network) -> dict[str, float]:
    """Return how much of the MLPs is in use: shares of neurons, and clusters, mean over their inputs."""
    partitions = network.partitions(CLUSTERS, layers=network.select("mlp_input"))
    found = [
        live_units(network.model.get_submodule(name).weight.detach(), partition)
        for name, partition in partitions.items()
    ]
    return {
        "neurons": sum(float(each.rows.double().mean()) for each in found) / len(found),
        "stream": sum(float(each.columns.double().mean()) for each in found) / len(found),
        "clusters": sum(each.effective_clusters for each in found) / len(found),
    }


def snapshots(
    model: nn.Module, states: dict[int, dict[str, Tensor]], size: Size, held_out: Sequence[Batch]
) -> list[dict[str, Any]]:
    """Return what circuits are like in the network as it was at earlier steps; it is left as it is."""
    last = {name: value.clone() for name, value in model.state_dict().items()}
    described = []
    for step, state in states.items():
        model.load_state_dict(state)
        circuits = Circuits(model, network_of(model), size, held_out[:2], fixed=False)
        described.append(
            {
                "step": step,
                "loss": text_measures(model, held_out)["loss"],
                "circuits": {
                    name: {"size": each.size, "metric_before": each.metric_before}
                    for name, each in circuits.relative.items()
                },
                "overlap": overlaps(list(circuits.relative.values())),
            }
        )
    model.load_state_dict(last)
    return described
