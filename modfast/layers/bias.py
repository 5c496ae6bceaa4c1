"""Find the bias that belongs to a weight, so that a neuron is switched off together with its bias."""

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
        source: where the bias comes from; for a stack of matrices it holds the biases of all.
        place: the row of the source's tensor that belongs to the layer; None if all of it does.
    """

    source: Source
    place: int | None

    def replaced_in(self, stored: Tensor, keep: Tensor) -> Tensor:
        """A copy of the stored tensor with this bias set to zero where ``keep``, ``(out,)``, is False."""
        if self.place is None:
            return stored.where(keep, 0.0)
        changed = stored.clone()
        changed[self.place] = stored[self.place].where(keep, 0.0)
        return changed


def bias_of(layer: Layer) -> Bias | None:
    """The bias of a layer, or of one matrix of a stack; None if it has none.

    It is identified by its name: ``in_proj_bias`` belongs to ``in_proj_weight``, ``bias_hh_l0`` to
    ``weight_hh_l0``, ``up_proj_bias`` to ``up_proj``.

    Raises:
        ValueError: no tensor of that name fits, but the module has another one that may be the bias.
        UnsupportedWeightError: the bias cannot be read.
    """
    inner = operation(layer.module)
    outputs = layer.shape[0]
    fitting = (outputs,) if layer.place is None else (layer.source.shape[0], outputs)
    own = _own_shapes(inner)
    name = _bias_name(layer.attribute)
    if own.get(name) == fitting:
        return Bias(source_of(layer.module, name), layer.place)
    of_others = {_bias_name(other) for other in own if other != layer.attribute}
    # One tensor called a bias may hold those of several weights; one of another name must fit to be a bias.
    doubtful = [
        other
        for other, shape in own.items()
        if other not in of_others and (shape == fitting or ("bias" in other and math.prod(shape) > 1))
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
    """The shapes of a module's parameters, bias buffers and computed tensors, but not of their pieces."""
    computed = computed_tensors(module)
    pieces = {piece for names in computed.values() for piece in names}
    stored = {**module._parameters, **{name: b for name, b in module._buffers.items() if "bias" in name}}
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in stored.items()
        if tensor is not None and name not in pieces and not name.endswith("_mask")
    }
    return shapes | {name: tuple(source_of(module, name).shape) for name in computed}
