"""In which order a model runs its layers, as far as that is beyond doubt without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from torch import nn
from torch.nn.modules import (
    activation,
    batchnorm,
    dropout,
    instancenorm,
    normalization,
    padding,
    pooling,
    upsampling,
)

from modfast.layers.layer import Layer, find_layers, layer_names, listed_choices, match_layers, operation
from modfast.layers.names import named_modules, unwrapped

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

# Their outputs are their inputs' units in the same order, each by itself or beside the others.
_ROOMS = (activation, batchnorm, dropout, instancenorm, normalization, padding, pooling, upsampling)
_MIXING = (nn.MultiheadAttention, nn.GLU)

_ADVICE = "give example_inputs, so that it can be seen, or layers: their names, in the order of the chain"


class OrderedLayer(NamedTuple):
    """A layer in its place.

    Attributes:
        layer: which one.
        norm: the batch norm that scales its outputs, if any.
    """

    layer: Layer
    norm: BatchNorm | None


def sequence_order(model: nn.Module) -> list[OrderedLayer]:
    """The layers of an ``nn.Sequential``, or of sequences within it, or of a model that is a layer itself.

    Raises:
        ValueError: the model is something else, or holds something whose part in it is not known.
    """
    layers = {layer.module: layer for layer in find_layers(model) if joins_units(layer)}
    if not layers:
        raise ValueError(
            f"model must have an nn.Linear or a convolution, got a {type(model).__name__} without"
        )
    found: list[Layer] = []
    norms: list[list[BatchNorm]] = []
    for name, module in _parts(model):
        if module in layers:
            if layers[module] in found:
                raise ValueError(f"model: layer {name!r} is used twice, so that the layers are no chain")
            found.append(layers[module])
            norms.append([])
        elif isinstance(module, BatchNorm):
            if norms:
                norms[-1].append(module)
        elif not _passes_units(module):
            which = f"the {type(module).__name__}" + (f" ({name!r})" if name else "")
            raise ValueError(f"model: how {which} joins layers is not known: {_ADVICE}")
    return [OrderedLayer(layer, following_norm(layer, own)) for layer, own in zip(found, norms, strict=True)]


def named_order(model: nn.Module, names: Iterable[str] | str) -> list[Layer]:
    """The layers of these names, in this order, which is the caller's word.

    Raises:
        ValueError: a name matches nothing, or a glob several layers whose order is not known.
        TypeError: the names are in a set, which has no order.
    """
    chosen: list[Layer] = []
    for pattern in listed_choices(names, "layers", in_given_order=True):
        matched = match_layers(model, pattern)
        if len(matched) > 1 and not any(_is_run_of(sequence, matched) for sequence in _sequences(model)):
            raise ValueError(
                f"layers: {pattern!r} matches several layers ({layer_names(matched)}), in which order they "
                "run is not known: name them one by one"
            )
        chosen += [layer for layer in matched if layer not in chosen]
    if not chosen:
        raise ValueError(f"layers: nothing selected by {names!r}")
    return chosen


def norms_in_sequences(model: nn.Module, layers: Sequence[Layer]) -> list[OrderedLayer]:
    """The given layers, each with the batch norm that follows it in an ``nn.Sequential``.

    Raises:
        ValueError: it is not known whether a batch norm follows a layer.
    """
    return [OrderedLayer(layer, _norm_after(model, layer)) for layer in layers]


def joins_units(layer: Layer) -> bool:
    """Whether it is the weight of a linear layer or a convolution, which a network's graph is made of."""
    transposed = isinstance(
        operation(layer.module), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    )
    return layer.is_linear or (layer.is_convolution and not transposed)


def following_norm(layer: Layer, norms: Sequence[BatchNorm]) -> BatchNorm | None:
    """The one of the batch norms between a layer and the next that scales the layer's outputs, if any."""
    if len(norms) > 1:
        raise ValueError(
            f"model: {len(norms)} batch norms follow layer {layer.name!r} before the next; a graph can be "
            "scaled by one"
        )
    return next((norm for norm in norms if norm.num_features == layer.shape[0]), None)


def _is_plain_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What runs one after the other: a module, or the parts of a sequence, of sequences within it too."""
    module = unwrapped(module)
    if not _is_plain_sequence(module):
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _parts(child, f"{name}.{child_name}" if name else child_name)


def _sequences(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The parts of every sequence in a model."""
    for _, module in named_modules(model):
        if _is_plain_sequence(module):
            yield [part for _, part in _parts(module)]


def _is_run_of(sequence: Sequence[nn.Module], layers: Sequence[Layer]) -> bool:
    return all(layer.module in sequence for layer in layers)


def _passes_units(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    if isinstance(module, (nn.Identity, nn.ReLU)):
        return True
    rooms = tuple(room.__name__ for room in _ROOMS)
    return type(module).__module__ in rooms and not isinstance(module, _MIXING)


def _norm_after(model: nn.Module, layer: Layer) -> BatchNorm | None:
    """The batch norm after a layer: known within a sequence; elsewhere none must come into question."""
    for sequence in _sequences(model):
        if layer.module in sequence:
            after = sequence[sequence.index(layer.module) + 1 :]
            weighted = [i for i, module in enumerate(after) if not _passes_units(module)]
            before_next = after[: weighted[0]] if weighted else after
            return following_norm(layer, [each for each in before_next if isinstance(each, BatchNorm)])
    outputs = layer.shape[0]
    for name, module in named_modules(model):
        if isinstance(module, BatchNorm) and module.num_features == outputs:
            raise ValueError(
                f"layers: whether the batch norm {name!r} scales the outputs of layer {layer.name!r} is not "
                "known: give example_inputs as well, so that it can be seen"
            )
    return None
