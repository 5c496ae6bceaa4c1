"""The layers of a network as a chain, each tied to the next: what a network's graph is made of."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modfast.layers.layer import Layer, operation

from .layer_order import joins_units, named_order, norms_in_sequences, sequence_order
from .plain_modules import BatchNorm
from .seen_order import seen_norms, seen_order

# No layer's name can be this: the names of modules hold no dot.
_INPUT = ".input"


class Link(NamedTuple):
    """A layer as what ties the nodes that it reads to those that it feeds.

    Attributes:
        layer: which one.
        weight: detached, ``(out, in / groups, *kernel)``.
        inputs: how many nodes it reads. After a flatten each of them stands for several columns in a row.
        groups: of a grouped convolution; else 1.
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
        # Which of them a batch norm follows is not in their names.
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
    """The graph of a network's layers, in CSR."""
    _take_warnings()
    blocks = [_block(link).to(chain[0].weight.device) for link in chain]
    sizes = [link.inputs for link in chain] + [len(blocks[-1])]
    starts = [0, *accumulate(sizes)]
    # Every layer's nodes are tied to the nodes before them and to those after: with nothing before the first
    # and nothing after the last, the rows of the graph are two blocks side by side, the columns in order.
    nothing = blocks[0].new_empty
    columns, values, counts = [], [], [nothing(1, dtype=torch.int64).zero_()]
    for place, (before, after) in enumerate(pairwise([nothing(sizes[0], 0), *blocks, nothing(0, sizes[-1])])):
        rows = torch.cat([before, after.T], dim=1)
        tied = rows != 0
        column = torch.arange(rows.shape[1], device=rows.device) + starts[max(place - 1, 0)]
        column[before.shape[1] :] += sizes[place]
        columns.append(column.expand_as(rows)[tied])
        values.append(rows[tied])
        counts.append(tied.sum(1))
    return torch.sparse_csr_tensor(
        torch.cat(counts).cumsum(0),
        torch.cat(columns),
        torch.cat(values),
        (starts[-1], starts[-1]),
        device=chain[0].weight.device,
        check_invariants=False,
    )


@functools.cache
def _take_warnings() -> None:
    """Takes what PyTorch says once in a process of CSR tensors, that they are in beta and not checked."""
    # It says nothing to users who did not choose how a graph is stored. Threads share the filters of
    # warnings, so the first graph is to be made before any are started.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu", check_invariants=False)


def _block(link: Link) -> Tensor:
    """What ties the nodes that a layer feeds to those that it reads: ``(out, inputs)``, not negative."""
    strengths = link.weight.abs()
    strengths = strengths.to(torch.promote_types(strengths.dtype, torch.float32))
    # Both a kernel's positions and those of a flattened channel follow their channel.
    block = strengths.reshape(len(strengths), link.inputs // link.groups, -1).sum(2)
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
    """By how much a batch norm in evaluation mode multiplies each of its features."""
    scale = like.new_ones(len(like)) if norm.weight is None else norm.weight.detach().to(like).abs()
    if norm.running_var is None:
        return scale
    return scale / (norm.running_var.to(like) + norm.eps).sqrt()


def _nodes_read(previous: Link | None, layer: Layer, size: int) -> int:
    """How many nodes a layer of ``size`` inputs reads."""
    if previous is None:
        return size
    outputs = len(previous.weight)
    # Channels come first, so a flattened channel's positions lie together. What a linear layer gives has its
    # features last: flattened, they would be interleaved.
    flattened = previous.layer.is_convolution and not layer.is_convolution
    if size != outputs and not (flattened and size % outputs == 0):
        raise ValueError(
            f"layers: {layer.name!r} takes {size} inputs, which does not fit the {outputs} outputs of "
            f"{previous.layer.name!r} before it"
        )
    return outputs


def nodes_of(chain: Sequence[Link]) -> dict[str, slice]:
    """Where in the graph the inputs and each layer's outputs lie."""
    names = [_INPUT, *(link.layer.name for link in chain)]
    ends = accumulate([chain[0].inputs, *(len(link.weight) for link in chain)])
    return {name: slice(start, stop) for name, (start, stop) in zip(names, pairwise([0, *ends]), strict=True)}
