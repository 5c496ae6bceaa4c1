"""Which bias is added to what a weight gives, so that a neuron can be switched off with it."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from .layer import Layer, operation
from .source import Source, computed_tensors
from .weight import source_of


class Bias(NamedTuple):
    """The bias of a layer's outputs.

    Attributes:
        source: where it comes from; of a stack of matrices the biases of all.
        place: which row of it belongs to the layer; None if all of it does.
    """

    source: Source
    place: int | None

    def replaced_in(self, stored: Tensor, keep: Tensor) -> Tensor:
        """The stored tensor with zeros where this bias is not to be kept, ``(out,)``."""
        if self.place is None:
            return stored.where(keep, 0.0)
        changed = stored.clone()
        changed[self.place] = stored[self.place].where(keep, 0.0)
        return changed


def bias_of(layer: Layer) -> Bias | None:
    """The bias of a layer, or of one matrix of a stack; None if it has none.

    It is known by its name: ``in_proj_bias`` belongs to ``in_proj_weight``, ``bias_hh_l0`` to
    ``weight_hh_l0``, ``up_proj_bias`` to ``up_proj``.

    Raises:
        ValueError: none has such a name and fits, but something that may be it is there.
        UnsupportedWeightError: it cannot be read.
    """
    inner = operation(layer.module)
    outputs = layer.shape[0]
    fitting = (outputs,) if layer.place is None else (layer.source.shape[0], outputs)
    own = _own_shapes(inner)
    name = _bias_name(layer.attribute)
    if own.get(name) == fitting:
        return Bias(source_of(layer.module, name), layer.place)
    of_others = {_bias_name(each) for each in own if each != layer.attribute}
    # What is called a bias may be that of several weights in one; what is not is no bias unless it fits.
    doubtful = [
        each
        for each, shape in own.items()
        if each not in of_others and (shape == fitting or ("bias" in each and math.prod(shape) > 1))
    ]
    if doubtful:
        which = f"layer {layer.name!r} ({type(inner).__name__})"
        raise ValueError(
            f"model: which bias belongs to the weight of {which}, to be switched off with its neurons, "
            f"is not known; it may be {' or '.join(map(repr, doubtful))}"
        )
    return None


def _bias_name(attribute: str) -> str:
    """The name that the bias of a weight of this name has, in PyTorch and elsewhere."""
    return attribute.replace("weight", "bias") if "weight" in attribute else f"{attribute}_bias"


def _own_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of what a module keeps or computes itself, but for that from which it computes."""
    computed = computed_tensors(module)
    pieces = {piece for names in computed.values() for piece in names}
    kept = {**module._parameters, **{name: b for name, b in module._buffers.items() if "bias" in name}}
    shapes = {
        name: tuple(each.shape)
        for name, each in kept.items()
        if each is not None and name not in pieces and not name.endswith("_mask")
    }
    return shapes | {name: tuple(source_of(module, name).shape) for name in computed}
