"""Clusters that training finds anew in its own weights, the same on all processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modfast.arrays import is_sharded
from modfast.layers.layer import find_layers
from modfast.network.units import Network
from modfast.partition import Partition
from modfast.spectral.clustering import spectral_cluster, spectral_cocluster
from modfast.train.distributed import Ranks

_Labels = tuple[list[int], list[int], int]


@torch.no_grad()
def found_partitions(
    model: nn.Module, partitions: Mapping[str, Partition], network: Network | None, seed: int
) -> dict[str, Partition]:
    """Find clusters in the weights of some layers as they are now, as many as each layer has.

    Processes have the same weights; the first one finds the clusters for all.

    Args:
        model: holds the layers.
        partitions: the layers by name, with their present clusters.
        network: says which rows and columns are the same unit; None finds each layer's clusters alone.
        seed: of the clustering.

    Raises:
        ValueError: a layer has no weight but zero, or, with a network, the layers have different numbers of
            clusters.
        TypeError: with a network, a weight is spread over processes (``DTensor``).
        RankError: one of these on the first of several processes.
    """
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    found = (
        _layer_by_layer(model, partitions, seed, Ranks(group))
        if network is None
        else _shared(model, partitions, network, seed, Ranks(group))
    )
    return {name: Partition(*labels) for name, labels in found.items()}


def number_shared(partitions: Mapping[str, Partition], network: Network) -> int:
    """Return how many clusters layers share that are to be clustered over a network.

    Raises:
        ValueError: they have different numbers, or the network lacks one of them.
    """
    counts = {partition.num_clusters for partition in partitions.values()}
    if len(counts) > 1:
        raise ValueError(
            f"partitions must have one number of clusters to be found over a network, got {sorted(counts)}"
        )
    network.part(list(partitions))
    (count,) = counts
    return count


def _layer_by_layer(
    model: nn.Module, partitions: Mapping[str, Partition], seed: int, ranks: Ranks
) -> dict[str, _Labels]:
    layers = {layer.name: layer for layer in find_layers(model)}
    found = {}
    # One layer after the other: of a sharded model no process holds more than one whole weight.
    for name, partition in partitions.items():
        weight: Any = layers[name].weight().detach()
        whole = weight.full_tensor() if is_sharded(weight) else weight
        found[name] = ranks.first(_labels_of_one(name, whole, partition.num_clusters, seed))
    return found


def _labels_of_one(name: str, weight: Tensor, num_clusters: int, seed: int) -> Callable[[], _Labels]:
    def labels() -> _Labels:
        return _checked(name, spectral_cocluster(weight, num_clusters, seed=seed), num_clusters)

    return labels


def _shared(
    model: nn.Module, partitions: Mapping[str, Partition], network: Network, seed: int, ranks: Ranks
) -> dict[str, _Labels]:
    count = number_shared(partitions, network)
    # The network may have been read from another copy of the model.
    own = copy.copy(network)
    own.model = model

    def labels() -> dict[str, _Labels]:
        found = {}
        # Layers that share no unit are graphs of their own, each with all clusters.
        for names in own.part(list(partitions)).apart():
            part = own.part(names)
            shared = part.partitions(spectral_cluster(part.graph(), count, seed=seed), layers=names)
            found.update({name: _checked(name, shared[name], count) for name in names})
        return found

    return ranks.first(labels)


def _checked(name: str, partition: Partition, num_clusters: int) -> _Labels:
    rows, cols = partition.row_labels, partition.col_labels
    if bool((rows < 0).all()) or bool((cols < 0).all()):
        # The loss would be a constant, and the layer's clusterability a number about nothing.
        raise ValueError(f"recluster_at: layer {name!r} has no clusters now, since all its weights are zero")
    return rows.tolist(), cols.tolist(), num_clusters
