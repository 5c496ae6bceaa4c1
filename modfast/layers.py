"""The weight matrices of a model, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils.parametrize import ParametrizationList

from .partition import Partition


class Layer(NamedTuple):
    """A weight of at least two dimensions, as one of a model's layers.

    The weight is looked up each time, since FSDP, parametrisations and ``.to`` may replace it.

    Attributes:
        name: the layer's name, or the parameter's where it is not called ``weight``.
        module: the submodule that holds it.
        attribute: its name there.
        stored_transposed: whether it is kept as (in, out, ...).
    """

    name: str
    module: nn.Module
    attribute: str
    stored_transposed: bool

    def stored(self) -> Tensor:
        """The weight as it is kept now."""
        # Not every weight is a parameter; nn.Module's own look-up takes longer for one that is.
        parameter = self.module._parameters.get(self.attribute)
        weight: Tensor = getattr(self.module, self.attribute) if parameter is None else parameter
        return weight

    @property
    def is_computed(self) -> bool:
        """Whether the weight is no parameter, but made from others at each look-up."""
        return self.module._parameters.get(self.attribute) is None

    @property
    def identity(self) -> object:
        """The same for two layers that share one parameter; a computed weight is its module's own."""
        return (id(self.module), self.attribute) if self.is_computed else id(self.stored())

    def oriented(self, stored: Tensor) -> Tensor:
        """The ``(out, in, *kernel)`` view of a tensor laid out as the stored weight, and back."""
        return stored.transpose(0, 1) if self.stored_transposed else stored

    @property
    def parameter_name(self) -> str:
        """The weight's name in the model's ``state_dict``."""
        return self.sibling("weight") if self.attribute == "weight" else self.name

    def sibling(self, attribute: str) -> str:
        """The name of another parameter of the same layer."""
        return f"{self.name}.{attribute}" if self.name else attribute


def _is_stored_transposed(module: nn.Module) -> bool:
    """Whether a weight is kept as (in, out, ...): transposed convolutions and transformers' Conv1D."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return True
    # By name, so that transformers need not be installed.
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def find_layers(model: nn.Module) -> list[Layer]:
    """Every weight of ``model`` with at least two dimensions, in the model's order."""
    layers = []
    for prefix, module in model.named_modules():
        # The first holds what a weight is computed from, not what a layer multiplies by; the second shows
        # neither.
        if isinstance(module, (ParametrizationList, ScriptModule)):
            continue
        # A parametrised weight is computed, not a parameter, yet it is what the layer multiplies by.
        parametrised = getattr(module, "parametrizations", {})
        for attribute in dict.fromkeys([*module._parameters, *parametrised]):
            weight = getattr(module, attribute)
            if weight is None or weight.dim() < 2:
                continue
            is_weight = attribute == "weight"
            name = prefix if is_weight else f"{prefix}.{attribute}" if prefix else attribute
            layers.append(Layer(name, module, attribute, is_weight and _is_stored_transposed(module)))
    return layers


def linear_layers(model: nn.Module) -> list[Layer]:
    """The weight of every ``nn.Linear``, tied ones once."""
    found: dict[object, Layer] = {}
    for layer in find_layers(model):
        if isinstance(layer.module, nn.Linear) and layer.attribute == "weight":
            found.setdefault(layer.identity, layer)
    return list(found.values())


def match_names(names: Sequence[tuple[str, str]], pattern: str, argument: str) -> list[int]:
    """The indices of the layers whose name, or whose weight's (the second of a pair), ``pattern`` matches.

    Raises:
        ValueError: it matches none.
    """
    # A name may hold brackets, so it is compared before it is read as a glob.
    matched = [i for i, pair in enumerate(names) if pattern in pair]
    matched = matched or [
        i for i, pair in enumerate(names) if any(fnmatchcase(name, pattern) for name in pair)
    ]
    if not matched:
        known = ", ".join(repr(name) for name, _ in names) or "none"
        raise ValueError(f"{argument}: {pattern!r} matches no layer with a weight matrix; there are: {known}")
    return matched


def match_layers(
    model: nn.Module, patterns: Sequence[str] | str, *, in_given_order: bool = False
) -> list[Layer]:
    """The layers that any of the names or globs matches, in the model's order or that of the patterns.

    Raises:
        ValueError: a pattern matches none.
    """
    layers = find_layers(model)
    names = [(layer.name, layer.parameter_name) for layer in layers]
    chosen = [
        index
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        for index in match_names(names, pattern, "layers")
    ]
    return [layers[index] for index in (dict.fromkeys(chosen) if in_given_order else sorted(set(chosen)))]


def find_layer(model: nn.Module, name: str, argument: str) -> Layer:
    """The layer of this name, or whose weight has it.

    Raises:
        ValueError: there is none; the message names ``argument``.
    """
    layers = find_layers(model)
    for layer in layers:
        if name in (layer.name, layer.parameter_name):
            return layer
    raise ValueError(f"{argument}: {name!r} is no layer with a weight matrix; there are: {_names(layers)}")


def _names(layers: Sequence[Layer]) -> str:
    return ", ".join(repr(layer.name) for layer in layers) or "none"


def partitioned_layers(
    model: nn.Module, partitions: Mapping[str, Partition]
) -> list[tuple[Layer, Partition]]:
    """The layers that a mapping of layer or parameter names to partitions names, in the model's order.

    Raises:
        ValueError: a name is unknown, two names are one weight, or a partition does not fit.
        TypeError: a value is no :class:`Partition`.
    """
    layers = find_layers(model)
    chosen: dict[int, Partition] = {}
    for name, partition in partitions.items():
        if not isinstance(partition, Partition):
            raise TypeError(f"partitions[{name!r}] must be a Partition, got {type(partition).__name__}")
        matched = [i for i, layer in enumerate(layers) if name in (layer.name, layer.parameter_name)]
        if not matched:
            raise ValueError(
                f"partitions: {name!r} is no layer with a weight matrix; there are: {_names(layers)}"
            )
        if matched[0] in chosen:
            raise ValueError(f"partitions: {name!r} is named twice")
        check_fit(layers[matched[0]], partition)
        chosen[matched[0]] = partition
    return [(layers[index], chosen[index]) for index in sorted(chosen)]


def check_fit(layer: Layer, partition: Partition) -> None:
    """Raises ``ValueError`` unless the partition fits the layer's ``(out, in)``."""
    shape = tuple(layer.oriented(layer.stored()).shape[:2])
    if shape != partition.shape:
        raise ValueError(
            f"partitions: layer {layer.name!r} has (out, in) {shape}, its partition {partition.shape}"
        )
