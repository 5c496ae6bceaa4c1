"""A trained network as units: the circuits of its classes, and how much depends on clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from modfast import (
    Network,
    Partition,
    accuracy,
    class_log_likelihood,
    cluster_dependence,
    clusterability,
    find_unit_circuit,
    live_units,
    normalized_cut,
    read_network,
    spectral_cluster,
    spectral_cocluster,
)
from modfast.data.dataset import Dataset
from modfast.metrics import class_log_odds
from modfast.report.unit_circuits.measures import describe_unit_circuits

from .arms import CLUSTERS, LAYERS

IMAGES = 300
"""Images of each class that a unit circuit is found on; balanced ones see as many of the other classes."""

EXAMPLES = 2000
"""Images for the dependence on clusters."""

DRAWS = 10
"""Sets of random clusters that the dependence is compared with."""


def unit_measures(model: nn.Module, partitions: Mapping[str, Partition], dataset: Dataset) -> dict[str, Any]:
    """Measure a trained CNN by its units: the channels, and the neurons of ``fc1`` and ``fc2``.

    Args:
        model: of the kind "cnn", on the CPU.
        partitions: the clusters of its layers, ``fc2`` among them.
        dataset: the images; only test images are used.
    """
    images, labels = dataset.normalize(dataset.test_images), dataset.test_labels
    network = read_network(model, images[:2])
    clusters = _clusters_of_units(network, partitions["fc2"])
    found = {}
    for name, circuits in (
        ("loss", [_circuit(model, network, images, labels, label) for label in range(dataset.num_classes)]),
        (
            "balanced",
            [_balanced(model, network, images, labels, label) for label in range(dataset.num_classes)],
        ),
    ):
        described = describe_unit_circuits(circuits, clusters, 0)
        found[name] = {
            "size": _mean(described["size"]),
            "overlap": _mean_of_pairs(described["overlap"]),
            "random_overlap": described["random_overlap"],
            "largest_share": _mean_of_known(described["largest_share"]),
            "random_largest_share": described["random_largest_share"],
        }
    dependence = cluster_dependence(
        model,
        list(zip(images[:EXAMPLES].split(500), labels[:EXAMPLES].split(500), strict=True)),
        accuracy,
        network,
        clusters,
        n_random=DRAWS,
    )
    return {
        "circuits": found,
        "dependence": dependence.shares.tolist(),
        "random_dependence": dependence.random_shares.tolist(),
        "found": _found_clusters(model, network),
    }


def _circuit(model: nn.Module, network: Network, images: Tensor, labels: Tensor, label: int) -> Any:
    """Find the units with which the class's own images are no less likely to be it."""
    own = images[labels == label][:IMAGES]
    batch = (own, torch.full((len(own),), label))
    return find_unit_circuit(model, batch, class_log_likelihood, network, name=str(label))


def _balanced(model: nn.Module, network: Network, images: Tensor, labels: Tensor, label: int) -> Any:
    """Find the units that tell the class from others as well as before, on as many images of others."""
    own, others = images[labels == label][:IMAGES], images[labels != label]
    # A fixed draw, the same for all networks.
    chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(label))[: len(own)]
    batch = (
        torch.cat([own, others[chosen]]),
        torch.cat([torch.ones(len(own)), torch.zeros(len(chosen))]),
    )
    return find_unit_circuit(model, batch, partial(_one_or_another, label), network, name=str(label))


def _one_or_another(label: int, output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The log-likelihood of "this class" or "another", whichever is right."""
    _, targets = batch
    odds = class_log_odds(output, (None, torch.full((len(output),), label)))
    return torch.where(targets.bool(), logsigmoid(odds), logsigmoid(-odds))


def _clusters_of_units(network: Network, partition: Partition) -> Tensor:
    """The clusters of the neurons that ``fc2`` joins; -1 for all other units."""
    labels = torch.full((network.num_units,), -1)
    layer = network.layers["fc2"]
    labels[layer.row_units] = partition.row_labels
    labels[layer.col_units] = partition.col_labels
    return labels


def _found_clusters(model: nn.Module, network: Network) -> dict[str, Any]:
    """Clusters found in the weights afterwards: they serve networks without clusters of their own, too."""
    weight = network.model.get_submodule("fc2").weight.detach()
    partition = spectral_cocluster(weight, CLUSTERS)
    graph = network.graph(LAYERS)
    return {
        "fc2": float(clusterability(weight, partition)),
        "fc2_clusters": live_units(weight, partition).effective_clusters,
        "cut": float(normalized_cut(graph, spectral_cluster(graph, CLUSTERS))),
    }


def _mean_of_pairs(overlap: Sequence[Sequence[float | None]]) -> float | None:
    """The mean over pairs of circuits; two circuits without any unit have no overlap."""
    return _mean_of_known([value for row, values in enumerate(overlap) for value in values[:row]])


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean, None without any; a circuit without a neuron in any cluster has no largest share."""
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
