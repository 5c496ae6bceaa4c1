"""The layers of a network as a chain, each feeding the next, where that is certain without running it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from modfast.layers.layer import Layer, operation
from modfast.layers.names import unwrapped

from .batch_norms import BatchNorm
from .layer_order import OrderedLayer, joins_units, named_order, norms_in_sequences, sequence_order
from .units import INPUT, Network, NetworkLayer


def read_chain(model: nn.Module, layers: Iterable[str] | str | None) -> Network:
    """Read a chain of layers, in which each reads the units that the one before writes.

    Args:
        model: an ``nn.Sequential``, if no layers are given.
        layers: the names of the layers in their order, which is not checked against the model's forward pass.

    Raises:
        ValueError: it is not certain in which order the layers run, or whether a batch norm follows one; a
            layer does not fit the one before it, is of another kind, or has no weight.
        TypeError: the layers are in a set; a weight is spread over processes (``DTensor``).
    """
    if layers is None:
        ordered = sequence_order(model)
    else:
        # The names do not show which of the layers a batch norm follows.
        ordered = norms_in_sequences(model, named_order(model, layers))
    found: dict[str, NetworkLayer] = {}
    spaces: dict[str, slice] = {}
    written: slice | None = None
    previous: Layer | None = None
    for link in ordered:
        layer = link.layer
        if not joins_units(layer):
            raise ValueError(
                f"layers: {layer.name!r} is of a {type(layer.module).__name__}; a chain is made of "
                "nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d and transformers' Conv1D: for other layers give "
                "example_inputs"
            )
        out, columns = layer.oriented(layer.whole()).shape[:2]
        if layer.oriented(layer.whole()).numel() == 0:
            raise ValueError(f"layers: {layer.name!r} must have a weight, got shape {tuple(layer.shape)}")
        groups = operation(layer.module).groups if layer.is_convolution else 1
        inputs = _units_read(previous, layer, columns * groups)
        if written is None:
            written = spaces[INPUT] = slice(0, inputs)
        read = torch.arange(written.start, written.stop, device="cpu")
        read = read.repeat_interleave(columns * groups // inputs)
        if groups > 1:
            read = read.view(groups, 1, columns).expand(-1, out // groups, -1).flatten(0, 1)
        written = spaces[layer.name] = slice(written.stop, written.stop + out)
        found[layer.name] = NetworkLayer(
            layer.name,
            "convolution" if layer.is_convolution else "linear",
            (out, columns),
            torch.arange(written.start, written.stop, device="cpu"),
            read,
            norms=_norms_of(model, link),
            groups=groups,
        )
        previous = layer
    return Network(model, found, spaces, 0 if written is None else written.stop)


def _units_read(previous: Layer | None, layer: Layer, size: int) -> int:
    """How many units a layer of ``size`` inputs reads."""
    if previous is None:
        return size
    outputs = previous.shape[0]
    # A convolution's channels come first, so a flattened channel's positions are adjacent. A linear layer's
    # features come last: flattened, they would be interleaved.
    flattened = previous.is_convolution and not layer.is_convolution
    if size != outputs and not (flattened and size % outputs == 0):
        raise ValueError(
            f"layers: {layer.name!r} takes {size} inputs, which does not fit the {outputs} outputs of "
            f"{previous.name!r} before it"
        )
    return outputs


def _norms_of(model: nn.Module, link: OrderedLayer) -> tuple[BatchNorm, ...]:
    if link.norm is None:
        return ()
    prefix = next(name for name, module in unwrapped(model).named_modules() if module is link.norm)
    weight, variance = (
        None if getattr(link.norm, attribute) is None else f"{prefix}.{attribute}" if prefix else attribute
        for attribute in ("weight", "running_var")
    )
    return (BatchNorm(weight, variance, link.norm.eps),)
