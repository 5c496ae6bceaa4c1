"""The order in which a model runs its layers, where it is certain without running the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import nn

from modfast.layers.layer import Layer, find_layers, layer_names, listed_choices, match_layers, operation
from modfast.layers.names import named_modules, unwrapped

from .plain_modules import BatchNorm, is_plain_sequence, what_changes, what_moves

_ADVICE = "give example_inputs, so that it can be seen, or layers: their names, in the order of the chain"


class OrderedLayer(NamedTuple):
    """A layer in a chain.

    Attributes:
        layer: the layer.
        norm: the batch norm that scales its outputs, if any.
    """

    layer: Layer
    norm: BatchNorm | None


def sequence_order(model: nn.Module) -> list[OrderedLayer]:
    """The layers of an ``nn.Sequential``, or of sequences within it, or of a model that is a layer itself.

    Raises:
        ValueError: the model is something else, or holds a module whose effect on the units is not known.
    """
    layers = {layer.module: layer for layer in find_layers(model) if joins_units(layer)}
    if not layers:
        raise ValueError(
            f"model must have an nn.Linear or a convolution, got a {type(model).__name__} without"
        )
    chain: list[Layer] = []
    norms: list[list[BatchNorm]] = []
    axes_behind: int | None = None  # how many axes follow that of the units; None before the first layer
    for name, outer in _parts(model):
        module = unwrapped(outer)
        if module in layers:
            layer = layers[module]
            if layer in chain:
                raise ValueError(f"model: layer {name!r} is used twice, so that the layers are no chain")
            before, axes_behind = axes_behind, _axes_behind(layer)  # raises if the weight cannot be read
            problem = what_changes(outer) or _what_it_misses(layer, before)
            chain.append(layer)
            norms.append([])
        else:
            problem = what_moves(outer, axes_behind)
            if isinstance(module, BatchNorm) and norms:
                norms[-1].append(module)
            if isinstance(module, nn.Flatten) and axes_behind is not None:
                axes_behind = 0
        if problem is not None:
            which = f"the {type(module).__name__}" + (f" ({name!r})" if name else "")
            raise ValueError(f"model: how {which} joins layers is not known: {_ADVICE} (it {problem})")
    return [OrderedLayer(layer, following_norm(layer, own)) for layer, own in zip(chain, norms, strict=True)]


def named_order(model: nn.Module, names: Iterable[str] | str) -> list[Layer]:
    """The layers of these names, in the order that the caller gives.

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
    """Whether a layer is linear or a convolution, transposed ones excluded: the layers of network graphs."""
    transposed = isinstance(
        operation(layer.module), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    )
    return layer.is_linear or (layer.is_convolution and not transposed)


def following_norm(layer: Layer, norms: Sequence[BatchNorm]) -> BatchNorm | None:
    """The batch norm that scales a layer's outputs, if any, of those between the layer and the next."""
    if len(norms) > 1:
        raise ValueError(
            f"model: {len(norms)} batch norms follow layer {layer.name!r} before the next; a graph can be "
            "scaled by one"
        )
    return next((norm for norm in norms if norm.num_features == layer.shape[0]), None)


def _axes_behind(layer: Layer) -> int:
    """How many axes follow that of the units in a layer's inputs and outputs."""
    return len(layer.shape) - 2


def _what_it_misses(layer: Layer, axes_behind: int | None) -> str | None:
    """Why a layer may not read the units of the one before, in words; None if it does."""
    if axes_behind is None or axes_behind == _axes_behind(layer):
        return None
    if layer.is_convolution:
        return f"reads channels before {_axes_behind(layer)} other axes, not what the layer before puts out"
    return "reads the last axis, not the channels of the convolution before it: nn.Flatten must come between"


def _parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that run one after the other: a module itself, or the parts of a sequence, nested ones too.

    A wrapper around a sequence yields the parts of the sequence; any other wrapper is yielded as it is.
    """
    inner = unwrapped(module)
    if what_changes(module) is not None or not is_plain_sequence(inner):
        yield name, module
        return
    for child_name, child in inner._modules.items():
        if child is not None:
            yield from _parts(child, f"{name}.{child_name}" if name else child_name)


def _sequences(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The parts of every sequence in a model."""
    for _, module in named_modules(model):
        if is_plain_sequence(module):
            yield [part for _, part in _parts(module)]


def _is_run_of(sequence: Sequence[nn.Module], layers: Sequence[Layer]) -> bool:
    return all(layer.module in map(unwrapped, sequence) for layer in layers)


def _norm_after(model: nn.Module, layer: Layer) -> BatchNorm | None:
    """The batch norm after a layer in a sequence. Outside one, raises if any could scale the layer."""
    with_weights = {other.module for other in find_layers(model)}
    for sequence in _sequences(model):
        inner = [unwrapped(part) for part in sequence]
        if layer.module not in inner:
            continue
        norms: list[BatchNorm] = []
        place, axes_behind = inner.index(layer.module), _axes_behind(layer)
        known = what_changes(sequence[place]) is None
        for outer, module in zip(sequence[place + 1 :], inner[place + 1 :], strict=True):
            if module in with_weights:
                break
            known = known and what_moves(outer, axes_behind) is None
            if isinstance(module, nn.Flatten):
                axes_behind = 0
            if isinstance(module, BatchNorm):
                if not known:
                    _raise_unknown(layer, module, model)
                norms.append(module)
        return following_norm(layer, norms)
    for _, module in named_modules(model):
        if isinstance(module, BatchNorm):
            _raise_unknown(layer, module, model)
    return None


def _raise_unknown(layer: Layer, norm: BatchNorm, model: nn.Module) -> None:
    """Raises if a batch norm could be the one that scales a layer's outputs."""
    if norm.num_features == layer.shape[0]:
        name = next(name for name, module in named_modules(model) if module is norm)
        raise ValueError(
            f"layers: whether the batch norm {name!r} scales the outputs of layer {layer.name!r} is not "
            "known: give example_inputs as well, so that it can be seen"
        )
