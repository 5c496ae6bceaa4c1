"""The layers of a network as a chain, each feeding the next, and the graph made of them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modfast.layers.layer import Layer, operation
from modfast.partition import Partition

from .layer_order import joins_units, named_order, norms_in_sequences, sequence_order
from .plain_modules import BatchNorm
from .seen_order import seen_norms, seen_order

# No layer's name can be this: the names of modules hold no dot.
_INPUT = ".input"


class Link(NamedTuple):
    """A layer of the chain, whose weights are the edges from the nodes that it reads to those that it feeds.

    Attributes:
        layer: the layer.
        weight: its weight, detached, ``(out, in / groups, *kernel)``.
        inputs: how many nodes it reads. After a flatten each node has several adjacent columns of the weight.
        groups: the number of groups of a convolution; else 1.
        norm: the batch norm that scales its rows, if any.
    """

    layer: Layer
    weight: Tensor
    inputs: int
    groups: int
    norm: BatchNorm | None


def find_chain(
    model: nn.Module, layers: Iterable[str] | str | None, example_inputs: Any = None
) -> list[Link]:
    """The layers of :func:`network_graph`, checked to fit each other."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if layers is not None:
        named = named_order(model, layers)
        # The names do not show which of the layers a batch norm follows.
        if example_inputs is None:
            ordered = norms_in_sequences(model, named)
        else:
            ordered = seen_norms(model, example_inputs, named)
    elif example_inputs is not None:
        ordered = seen_order(model, example_inputs)
    else:
        ordered = sequence_order(model)
    chain: list[Link] = []
    with torch.no_grad():
        for layer, norm in ordered:
            chain.append(_link(layer, norm, chain[-1] if chain else None))
    return chain


def _link(layer: Layer, norm: BatchNorm | None, previous: Link | None) -> Link:
    if not joins_units(layer):
        raise ValueError(
            f"layers: {layer.name!r} is of a {type(layer.module).__name__}; a network's graph is made of "
            "nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d and transformers' Conv1D"
        )
    weight = layer.oriented(layer.whole()).detach()
    if weight.numel() == 0:
        raise ValueError(f"layers: {layer.name!r} must have a weight, got shape {tuple(weight.shape)}")
    groups = operation(layer.module).groups if layer.is_convolution else 1
    return Link(layer, weight, _nodes_read(previous, layer, weight.shape[1] * groups), groups, norm)


def graph_of(chain: Sequence[Link]) -> Tensor:
    """The graph of a network's layers, as a sparse CSR matrix."""
    take_warnings()
    blocks = [_block(link).to(chain[0].weight.device) for link in chain]
    sizes = [link.inputs for link in chain] + [len(blocks[-1])]
    starts = [0, *accumulate(sizes)]
    # A layer's nodes have edges to the nodes before and after them, so its rows are two blocks side by side,
    # with the columns in order. The block before the first layer and that after the last are empty.
    empty = blocks[0].new_empty
    columns, values, counts = [], [], [empty(1, dtype=torch.int64).zero_()]
    for place, (before, after) in enumerate(pairwise([empty(sizes[0], 0), *blocks, empty(0, sizes[-1])])):
        rows = torch.cat([before, after.T], dim=1)
        is_edge = rows != 0
        column = torch.arange(rows.shape[1], device=rows.device) + starts[max(place - 1, 0)]
        column[before.shape[1] :] += sizes[place]
        columns.append(column.expand_as(rows)[is_edge])
        values.append(rows[is_edge])
        counts.append(is_edge.sum(1))
    return torch.sparse_csr_tensor(
        torch.cat(counts).cumsum(0),
        torch.cat(columns),
        torch.cat(values),
        (starts[-1], starts[-1]),
        device=chain[0].weight.device,
        check_invariants=False,
    )


@functools.cache
def take_warnings() -> None:
    """Swallow the warnings that PyTorch gives once per process: CSR tensors are in beta and not checked."""
    # They are of no use to users, who did not choose how a graph is stored. Threads share the filters of
    # warnings, so the first graph must be made before any thread is started.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu", check_invariants=False)


def _block(link: Link) -> Tensor:
    """The edge weights between the nodes that a layer feeds and those it reads: ``(out, inputs)``, >= 0."""
    magnitudes = link.weight.abs()
    magnitudes = magnitudes.to(torch.promote_types(magnitudes.dtype, torch.float32))
    # The positions of a kernel, and those of a flattened channel, are adjacent within their channel.
    block = magnitudes.reshape(len(magnitudes), link.inputs // link.groups, -1).sum(2)
    if link.groups > 1:
        block = torch.block_diag(*block.chunk(link.groups))
    if link.norm is not None:
        block = _scale(link.norm, block)[:, None] * block
    if not block.isfinite().all():
        raise ValueError(
            f"model: the weights of layer {link.layer.name!r} (with its batch norm) must be finite"
        )
    return block


def _scale(norm: BatchNorm, like: Tensor) -> Tensor:
    """The magnitude of the factor by which a batch norm in evaluation mode multiplies each feature."""
    scale = like.new_ones(len(like)) if norm.weight is None else norm.weight.detach().to(like).abs()
    if norm.running_var is None:
        return scale
    return scale / (norm.running_var.to(like) + norm.eps).sqrt()


def _nodes_read(previous: Link | None, layer: Layer, size: int) -> int:
    """How many nodes a layer of ``size`` inputs reads."""
    if previous is None:
        return size
    outputs = len(previous.weight)
    # A convolution's channels come first, so a flattened channel's positions are adjacent. A linear layer's
    # features come last: flattened, they would be interleaved.
    flattened = previous.layer.is_convolution and not layer.is_convolution
    if size != outputs and not (flattened and size % outputs == 0):
        raise ValueError(
            f"layers: {layer.name!r} takes {size} inputs, which does not fit the {outputs} outputs of "
            f"{previous.layer.name!r} before it"
        )
    return outputs


def nodes_of(chain: Sequence[Link]) -> dict[str, slice]:
    """The nodes of the graph that are the inputs, and those that are each layer's outputs."""
    names = [_INPUT, *(link.layer.name for link in chain)]
    ends = accumulate([chain[0].inputs, *(len(link.weight) for link in chain)])
    return {name: slice(start, stop) for name, (start, stop) in zip(names, pairwise([0, *ends]), strict=True)}


def partitions_of(chain: Sequence[Link], labels: Tensor, num_clusters: int) -> dict[str, Partition]:
    """The partition of each layer's weight by the clusters of the graph's nodes, but for grouped layers."""
    partitions = {}
    for link, (before, after) in zip(chain, pairwise(nodes_of(chain).values()), strict=True):
        if link.groups == 1:
            positions = link.weight.shape[1] // link.inputs
            partitions[link.layer.name] = Partition(
                labels[after], labels[before].repeat_interleave(positions), num_clusters
            )
    return partitions
