"""Find the layer that each partition belongs to, by any of the layer's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from modfast.partition import Partition

from .layer import Layer, find_layers, layer_names, named_layers
from .names import known_name, spellings


def partitioned_layers(
    model: nn.Module, partitions: Mapping[str, Partition]
) -> list[tuple[Layer, Partition]]:
    """The layers to which a mapping gives partitions by layer or parameter name, in the model's order.

    Raises:
        ValueError: a name is unknown, two names stand for one weight, or a partition does not fit.
        TypeError: ``partitions`` is no mapping, or a value is no :class:`Partition`.
    """
    if not isinstance(partitions, Mapping):
        raise TypeError(
            f"partitions must be a mapping of layer names to Partition, got {type(partitions).__name__}"
        )
    layers = find_layers(model)
    chosen: dict[str, Partition] = {}
    for name, partition in partitions.items():
        if not isinstance(partition, Partition):
            raise TypeError(f"partitions[{name!r}] must be a Partition, got {type(partition).__name__}")
        matched = named_layers(layers, name)
        if not matched:
            raise ValueError(
                f"partitions: {name!r} is no layer with a weight matrix; there are: {layer_names(layers)}"
            )
        for layer in matched:
            if layer.name in chosen:
                raise ValueError(f"partitions: {name!r} is named twice")
            check_fit(layer, partition)
            chosen[layer.name] = partition
    return [(layer, chosen[layer.name]) for layer in layers if layer.name in chosen]


class PartitionsByName(dict[str, Partition]):
    """Partitions by the canonical names of their layers, which can be looked up by other names as well.

    ``[name]``, ``get`` and ``in`` take any name of a layer, or that of a stack if all its matrices have the
    same partition.
    """

    def __missing__(self, name: object) -> Partition:
        canonical = known_name(self.keys(), name)
        if canonical is not None:
            return self[canonical]
        for spelling in spellings(name) if isinstance(name, str) else []:
            stack = [self[key] for key in self if key.rpartition("[")[0] == spelling]
            if stack and all(partition == stack[0] for partition in stack):
                return stack[0]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return self.get(name) is not None

    def get(self, name: Any, default: Any = None) -> Any:
        """The partition of this name, or the default."""
        try:
            return self[name]
        except KeyError:
            return default

    def __reduce__(self) -> tuple[type[PartitionsByName], tuple[dict[str, Partition]]]:
        return PartitionsByName, (dict(self),)


# Like Partition itself, it may be part of a checkpoint that torch.load(weights_only=True) loads.
torch.serialization.add_safe_globals([PartitionsByName])


def check_fit(layer: Layer, partition: Partition) -> None:
    """Raises ``ValueError`` unless the partition fits the layer's ``(out, in)``."""
    shape = layer.shape[:2]
    if shape != partition.shape:
        raise ValueError(
            f"partitions: layer {layer.name!r} has (out, in) {shape}, its partition {partition.shape}"
        )
