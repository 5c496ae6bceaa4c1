"""Choose the layers of an enmeshment loss, and the partition of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from modfast.layers.layer import Choices, Layer, choose_layers, find_layers, layer_names, linear_layers
from modfast.layers.partitioned import partitioned_layers
from modfast.partition import Partition


def chosen_layers(
    module: nn.Module,
    partitions: int | Mapping[str, Partition],
    layers: Choices | None,
    exclude: Choices | None,
) -> list[tuple[Layer, Partition]]:
    """The layers that the arguments of :class:`modfast.EnmeshmentLoss` choose, each with its partition.

    Raises:
        ValueError, TypeError: as that class does.
    """
    partition_of = dict(partitioned_layers(module, partitions)) if isinstance(partitions, Mapping) else None
    chosen = _choose(module, None if partition_of is None else list(partition_of), layers, exclude)
    if not chosen:
        raise ValueError(_nothing_selected(module, partitions, layers, exclude))
    seen: dict[object, str] = {}
    for layer in chosen:
        if layer.identity in seen:
            raise ValueError(f"layers: {layer.name!r} and {seen[layer.identity]!r} are one tied weight")
        seen[layer.identity] = layer.name
    return [(layer, _partition_of(layer, partitions, partition_of)) for layer in chosen]


def _choose(
    module: nn.Module,
    partitioned: Sequence[Layer] | None,
    layers: Choices | None,
    exclude: Choices | None,
) -> list[Layer]:
    """The chosen layers; ``partitioned`` are those to which a mapping gives a partition, if there is one."""
    known = find_layers(module)
    if layers is not None:
        chosen = choose_layers(known, layers, "layers")
    else:
        chosen = linear_layers(module) if partitioned is None else list(partitioned)
    left_out = [] if exclude is None else choose_layers(known, exclude, "exclude")
    return [layer for layer in chosen if layer not in left_out]


def _nothing_selected(module: nn.Module, partitions: object, layers: object, exclude: object) -> str:
    known = f"there are: {layer_names(find_layers(module))}"
    if exclude is not None:
        return f"exclude: nothing is left of the layers without {exclude!r}; {known}"
    if layers is not None:
        return f"layers: nothing selected by {layers!r}; {known}"
    if isinstance(partitions, Mapping):
        return f"partitions: nothing selected by {partitions!r}; {known}"
    return (
        "layers: nothing selected; by default every linear layer is whose weight is no embedding's, and "
        f"there is none; {known}"
    )


def _partition_of(
    layer: Layer, partitions: int | Mapping[str, Partition], partition_of: Mapping[Layer, Partition] | None
) -> Partition:
    if partition_of is None:
        shape = layer.shape
        try:
            return Partition.blocks(shape, partitions)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"partitions: layer {layer.name!r}: {error}") from error
    if layer not in partition_of:
        raise ValueError(f"partitions: no partition for layer {layer.name!r}")
    return partition_of[layer]


def placed_partition(layer: Layer, partition: Partition) -> Partition:
    """The partition on the device of the layer's weight."""
    with torch.no_grad():
        stored = layer.stored()
    # A model on the meta device is materialised later, on a device not known yet.
    return partition if stored.is_meta else partition.to(stored.device)
