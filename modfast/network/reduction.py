"""How much smaller a network is for who studies one of its clusters alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modfast.layers.bias import bias_of
from modfast.layers.partitioned import partitioned_layers
from modfast.partition import Partition

from .chain import Link, find_chain


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
        model: a chain of layers, as for :func:`modfast.network_graph`.
        partitions: layer name to :class:`Partition`, all with the same number k of clusters. Neurons that no
            partition names are left, those in no cluster are not. Where two layers give a neuron different
            clusters, it is in neither. A flattened channel is in each cluster that has one of its positions.
        layers: as for :func:`modfast.network_graph`.
        example_inputs: as for :func:`modfast.network_graph`; a model with a forward pass of its own needs it.

    Returns:
        A number in [0, 1]. Counted are the weights and biases of the layers in the chain.

    Raises:
        ValueError: what :func:`modfast.network_graph` raises; a layer of ``partitions`` is unknown, not in
            the chain or a grouped convolution, or its partition does not fit; there is none, or they have
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
    chain = find_chain(model, layers, example_inputs)
    chosen = {layer.name: partition for layer, partition in partitioned_layers(model, partitions)}
    counts = {partition.num_clusters for partition in chosen.values()}
    if len(counts) != 1:
        raise ValueError(f"partitions must have one number of clusters, got {sorted(counts)}")
    names = [link.layer.name for link in chain]
    for name in chosen:
        if name not in names:
            raise ValueError(
                f"partitions: {name!r} must be a layer of the chain, {', '.join(map(repr, names))}"
            )
    for link in chain:
        if link.groups > 1 and link.layer.name in chosen:
            raise ValueError(
                f"partitions: {link.layer.name!r} must be no grouped convolution, in which a column stands "
                f"for another channel in each of the {link.groups} groups"
            )
    on_the_cpu = [chosen[name].to("cpu") if name in chosen else None for name in names]
    has_bias = [bias_of(link.layer) is not None for link in chain]
    total = sum(
        link.weight.numel() + len(link.weight) * biased for link, biased in zip(chain, has_bias, strict=True)
    )
    (clusters,) = counts
    left = sum(_left(chain, on_the_cpu, has_bias, cluster) for cluster in range(clusters))
    # Integers until the end: the one rounding is that of the division.
    return (clusters * total - left) / (clusters * total)


def _left(
    chain: Sequence[Link], partitions: Sequence[Partition | None], has_bias: Sequence[bool], cluster: int
) -> int:
    """How many weights and biases are left where only one cluster's neurons are."""
    sizes = [chain[0].inputs, *(len(link.weight) for link in chain)]
    nodes = [torch.ones(size, dtype=torch.bool, device="cpu") for size in sizes]
    for place, (link, partition) in enumerate(zip(chain, partitions, strict=True)):
        if partition is not None:
            nodes[place] &= (partition.col_labels == cluster).view(link.inputs, -1).any(1)
            nodes[place + 1] &= partition.row_labels == cluster
    left = 0
    for place, (link, partition, biased) in enumerate(zip(chain, partitions, has_bias, strict=True)):
        rows = nodes[place + 1]
        columns = nodes[place].repeat_interleave(link.weight.shape[1] * link.groups // link.inputs)
        if partition is not None:
            columns = columns & (partition.col_labels == cluster)
        left += _pairs(rows, columns, link.groups) * link.weight[0, 0].numel() + int(rows.sum()) * biased
    return left


def _pairs(rows: Tensor, columns: Tensor, groups: int) -> int:
    """How many pairs of a row and a column there are in which both are left, and of one group."""
    return int((rows.view(groups, -1).sum(1) * columns.view(groups, -1).sum(1)).sum())
