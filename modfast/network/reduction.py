"""How much smaller a network is for who studies one of its clusters alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from modfast.layers.bias import bias_of
from modfast.layers.layer import Layer, find_layers
from modfast.layers.partitioned import partitioned_layers
from modfast.partition import Partition

from .graph import find_network
from .units import Network, NetworkLayer


def search_space_reduction(
    model: nn.Module,
    partitions: Mapping[str, Partition],
    layers: Iterable[str] | str | None = None,
    example_inputs: Any = None,
) -> float:
    """The share of a network's weights that lie outside one cluster, mean over clusters.

    Who looks for a circuit in one cluster alone has so many fewer weights to search. With the neurons of all
    other clusters taken out, a weight is left if the neuron that it feeds and the one that it reads are left,
    and a bias if its neuron is. So the layer before a partitioned one loses rows, and the one after it
    columns. With ``n`` weights and biases, of which cluster c leaves ``left(c)``,

        reduction = 1 - (left(0) + ... + left(k - 1)) / (k n)

    It depends on the sizes of clusters, not on the weights: any network has it, modular or not. Whether a
    cluster does anything alone is what :func:`modfast.cluster_accuracy` says. A layer with k equal clusters
    of rows and columns has exactly ``1 - 1 / k**2`` of its weights outside one, the layers before and after
    it ``1 - 1 / k``, other layers 0.

    Args:
        model: as for :func:`modfast.network_graph`.
        partitions: layer name to :class:`Partition`, all with the same number k of clusters. Neurons that no
            partition names are left, those in no cluster are not. Where two layers give a neuron different
            clusters, it is in neither. A flattened channel is in each cluster that has one of its positions.
        layers: as for :func:`modfast.network_graph`.
        example_inputs: as for :func:`modfast.network_graph`; a model with a forward pass of its own needs it.

    Returns:
        A number in [0, 1]. Counted are the weights and biases of the network's layers, a weight or bias that
        several share once.

    Raises:
        ValueError: what :func:`modfast.network_graph` raises; a layer of ``partitions`` is unknown, not in
            the network or a grouped convolution, or its partition does not fit; there is none, or they have
            different k; it is not known which bias belongs to a layer.
        TypeError: as for :func:`modfast.network_graph`; a value of ``partitions`` is no :class:`Partition`.

    Source: "circuit discovery search-space reduction" in the public code of arXiv 2409.15747. It prints
    75.54 %, from (271,424 - 66,400) / 271,424: one of four equal clusters of ``fc2`` leaves 66,400 parameters
    of a network with a convolution (448) and three linear layers (4096, 64, 64, 10; no biases), but the
    total is that of one with four. This function gives 75.16 % for the one and 74.98 % for the other.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
        >>> search_space_reduction(model, {"2": Partition.blocks((4, 4), 2)})
        0.6
    """
    network = find_network(model, layers, example_inputs)
    chosen = {layer.name: partition.to("cpu") for layer, partition in partitioned_layers(model, partitions)}
    counts = {partition.num_clusters for partition in chosen.values()}
    if len(counts) != 1:
        raise ValueError(f"partitions must have one number of clusters, got {sorted(counts)}")
    for name in chosen:
        if name not in network.layers:
            names = ", ".join(map(repr, network.layers))
            raise ValueError(f"partitions: {name!r} must be a layer of the network, {names}")
        if network.layers[name].col_units.dim() > 1:
            raise ValueError(
                f"partitions: {name!r} must be no grouped convolution, in which a column stands for another "
                "channel in each group"
            )
    layers_of = {layer.name: layer for layer in find_layers(model)}
    counted = _counted(network, {name: layers_of[name] for name in network.layers})
    total = sum(each.layer.shape[0] * (each.layer.shape[1] * each.kernel + each.biased) for each in counted)
    (clusters,) = counts
    left = sum(_left(network, counted, chosen, cluster) for cluster in range(clusters))
    # Integers until the end: the one rounding is that of the division.
    return (clusters * total - left) / (clusters * total)


class _Counted(NamedTuple):
    """A layer, how many weights of its own each pair of a row and a column has, and if rows have biases."""

    layer: NetworkLayer
    kernel: int
    biased: bool


def _counted(network: Network, layers: Mapping[str, Layer]) -> list[_Counted]:
    counted = []
    biases: set[object] = set()
    for name, layer in network.layers.items():
        bias = bias_of(layers[name])
        key = None if bias is None else (id(bias.source.leaves()[-1]), bias.place)
        # A weight that is an earlier layer's counts there; the layer may have a bias of its own.
        kernel = math.prod(layers[name].shape[2:]) if layer.tied_to is None else 0
        counted.append(_Counted(layer, kernel, key is not None and key not in biases))
        biases.add(key)
    return counted


def _left(
    network: Network, counted: list[_Counted], partitions: Mapping[str, Partition], cluster: int
) -> int:
    """How many weights and biases are left where only one cluster's neurons are."""
    nodes = torch.ones(network.num_units, dtype=torch.bool, device="cpu")
    for name, partition in partitions.items():
        layer = network.layers[name]
        for units, labels in (
            (layer.row_units, partition.row_labels),
            (layer.col_units, partition.col_labels),
        ):
            # A unit with several rows or columns is in each cluster that has one of them.
            is_named, is_in = torch.zeros_like(nodes), torch.zeros_like(nodes)
            is_named[units] = True
            is_in[units[labels == cluster]] = True
            nodes &= is_in | ~is_named
    left = 0
    for layer, kernel, biased in counted:
        rows, cols = nodes[layer.row_units], nodes[layer.col_units]
        if layer.name in partitions:
            rows = rows & (partitions[layer.name].row_labels == cluster)
            cols = cols & (partitions[layer.name].col_labels == cluster)
        columns = cols.sum(-1)
        left += int((rows * columns).sum()) * kernel + int(rows.sum()) * biased
    return left
