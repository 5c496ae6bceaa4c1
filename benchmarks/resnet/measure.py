"""Train one network and measure it: one record for each arm and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.findings.arms import Arm
from modfast import (
    Network,
    Partition,
    UnitCircuit,
    accuracy,
    class_accuracy,
    cluster_ablation,
    cluster_dependence,
    clusterability,
    live_units,
    spectral_cluster,
)
from modfast.data.dataset import Dataset
from modfast.machine import environment
from modfast.report.circuits.summary import specialisation

from .arms import CLUSTERS, CONVOLUTIONS, HEAD, channels
from .circuits import describe, find_class_circuits, images_of, is_right, reference_of

EACH = 150
"""Test images of a class, and of others, that a circuit is chosen by; and as many that it is tested on."""

ABLATED = 200
"""Test images of each class for clusters on and off."""

_RANDOM_CLUSTERS = 3


def measure(
    arm: Arm,
    seed: int,
    model: nn.Module,
    history: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    *,
    each: int = EACH,
    ablated: int = ABLATED,
) -> dict[str, Any]:
    """Return the record of a trained network, but for the seconds that it took.

    Args:
        arm: how it was trained.
        seed: of its training.
        model: the network, on the CPU.
        history: the records of its epochs.
        dataset: the images.
        each: images of a class, and of others, for each circuit.
        ablated: images of each class for clusters on and off.
    """
    model.eval()
    network = channels(model, dataset)
    own, _ = network.unit_labels(CLUSTERS)
    layers = [*CONVOLUTIONS, HEAD]
    found = spectral_cluster(network.graph(layers), CLUSTERS)
    labels = {"own": own, "found": found}
    return {
        "arm": arm.name,
        "seed": seed,
        "data_fingerprint": dataset.fingerprint(),
        "config": {name: value for name, value in asdict(arm.config).items() if name != "seed"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "spaces": {name: space.stop - space.start for name, space in network.spaces.items()},
        "history": [_epoch(record) for record in history],
        "class_accuracy": class_accuracy(model, _batches(dataset)).tolist(),
        "layers": {name: _layer(network, name, labels) for name in layers},
        "found_sizes": torch.bincount(found[found >= 0], minlength=CLUSTERS).tolist(),
        "circuits": _circuits(model, network, dataset, labels, each),
        "clusters": _clusters(model, network, dataset, labels, each, ablated),
        "environment": environment(),
    }


def _epoch(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cross_entropy", "train_accuracy", "test_cross_entropy", "test_accuracy", "enmeshment")
    return {name: record[name] for name in names}


def _batches(dataset: Dataset) -> list[tuple[Tensor, Tensor]]:
    parts = zip(dataset.test_images.split(1000), dataset.test_labels.split(1000), strict=True)
    return [(dataset.normalize(images), classes) for images, classes in parts]


# --- Weights.


def _layer(network: Network, name: str, labels: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the clusterability of a weight, as it is and with its batch norm, and what is in use."""
    weight = network.model.get_submodule(name).weight.detach()
    folded = with_norm(network, name)
    partitions = {which: network.partitions(of_unit, [name])[name] for which, of_unit in labels.items()}
    live = live_units(folded, partitions["own"])
    return {
        "clusterability": {which: _inside(weight, each) for which, each in partitions.items()},
        "with_norm": {which: _inside(folded, each) for which, each in partitions.items()},
        "chance": _chance(partitions["own"]),
        "live_rows": float(live.rows.double().mean()),
        "live_columns": float(live.columns.double().mean()),
        "effective_rows": live.effective_rows / len(live.rows),
        "effective_columns": live.effective_columns / len(live.columns),
        "effective_clusters": live.effective_clusters,
    }


def with_norm(network: Network, name: str) -> Tensor:
    """Return a layer's weight, each row multiplied by the factor of the batch norm that follows."""
    model = network.model
    weight: Tensor = model.get_submodule(name).weight.detach()
    norms = network.layers[name].norms
    if norms is None:
        raise ValueError(f"name must be a layer with one batch norm at most, got {name!r}")
    for norm in norms:
        scale = norm.scale(model, weight.flatten(1))
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return weight


def _inside(weight: Tensor, partition: Partition) -> float:
    return float(clusterability(weight, partition))


def _chance(partition: Partition) -> float:
    """Return the clusterability of a weight whose squares are all equal."""
    shape = partition.shape
    return float(clusterability(torch.ones(shape), partition))


# --- Circuits.


def _circuits(
    model: nn.Module, network: Network, dataset: Dataset, labels: Mapping[str, Tensor], each: int
) -> dict[str, Any]:
    described = {}
    for rule, found in find_class_circuits(model, network, dataset, each).items():
        known = [one.circuit for one in found if one is not None]
        described[rule] = {
            "by_class": [
                None if one is None else _circuit(one.circuit) | {"held_out": one.held_out} for one in found
            ],
            # Means over fewer classes would not be comparable.
            "measures": describe(known, dict(labels)) if len(known) == len(found) else None,
        }
    return described


def _circuit(circuit: UnitCircuit) -> dict[str, Any]:
    return {
        "size": circuit.size,
        "sizes": circuit.sizes,
        "loss_before": -circuit.metric_before,
        "loss_after": -circuit.metric_after,
    }


# --- Clusters on and off.


def _clusters(
    model: nn.Module,
    network: Network,
    dataset: Dataset,
    labels: Mapping[str, Tensor],
    each: int,
    ablated: int,
) -> dict[str, Any]:
    instead: dict[str, Any] = {"ablation": "mean", "reference": reference_of(dataset)}
    rows = torch.cat(
        [(dataset.test_labels == label).nonzero().flatten()[:ablated] for label in range(dataset.num_classes)]
    )
    images = dataset.normalize(dataset.test_images[rows]), dataset.test_labels[rows]
    described: dict[str, Any] = {}
    for which, of_unit in labels.items():
        shuffles = _RANDOM_CLUSTERS if which == "own" else 0
        task = model, images, accuracy, network, of_unit
        dependence = cluster_dependence(*task, n_random=shuffles, **instead)
        described[which] = {
            "accuracy_only": cluster_ablation(*task, "only", **instead).tolist(),
            "accuracy_without": cluster_ablation(*task, "without", **instead).tolist(),
            "dependence": {
                "mean": dependence.mean,
                "shares": dependence.shares.tolist(),
                "random_mean": dependence.random_mean if shuffles else None,
            },
        }
    drawn = {"own": labels["own"], "random": shuffled(network, labels["own"])}
    for which, of_unit in drawn.items():
        answers = {
            mode: _by_class(model, network, dataset, of_unit, each, mode, instead)
            for mode in ("only", "without")
        }
        described.setdefault(which, {}).update(answers)
        described[which] |= {
            f"specialisation_{mode}": specialisation(answers[mode], mode) for mode in answers
        }
    return described


def _by_class(
    model: nn.Module,
    network: Network,
    dataset: Dataset,
    labels: Tensor,
    each: int,
    mode: str,
    instead: Mapping[str, Any],
) -> list[list[float]]:
    """Return how often "this class or another?" is answered right, clusters x classes."""
    columns = [
        cluster_ablation(
            model,
            images_of(dataset, label, each).tested_on,
            is_right(label),
            network,
            labels,
            mode,
            **instead,
        )
        for label in range(dataset.num_classes)
    ]
    answers: list[list[float]] = torch.stack(columns, dim=1).tolist()
    return answers


def shuffled(network: Network, labels: Tensor) -> Tensor:
    """Return random clusters of the same sizes in each space."""
    generator = np.random.default_rng(0)
    drawn = labels.clone()
    for space in network.spaces.values():
        order = torch.from_numpy(generator.permutation(space.stop - space.start))
        drawn[space] = labels[space][order]
    return drawn
