"""What ``results.json`` says of the neurons of a trained model and of the weights between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from modfast.layers.partitioned import partitioned_layers
from modfast.layers.running import device_of, moved
from modfast.network.reduction import search_space_reduction
from modfast.neurons import label_semanticity, live_units
from modfast.partition import Partition

_TOP = 50  # as published


def neuron_measures(
    model: nn.Module, data: tuple[Tensor, Tensor], num_classes: int, partitions: Mapping[str, Partition]
) -> dict[str, Any]:
    """Measure the partitioned layers of a trained model, for a file of results.

    Args:
        model: the model.
        data: images as the model takes them, and their labels.
        num_classes: how many classes there are.
        partitions: layer name to clusters.

    Returns:
        ``label_semanticity``: for each layer the mean over its live neurons, or None where there is none, or
        where the layer's outputs are not those of neurons. ``search_space_reduction``: None without
        partitions, or where it is not known how the model joins its layers. ``live``: for each layer the
        shares of its rows and columns that are live, the effective numbers, and each cluster's share.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> partitions = {"": Partition([0, 1], [0, 1], 2)}
        >>> found = neuron_measures(model, (torch.eye(2), torch.tensor([0, 1])), 2, partitions)
        >>> found["label_semanticity"], found["search_space_reduction"], found["live"][""]["clusters"]
        ({'': 1.0}, 0.75, 2.0)
    """
    return {
        "label_semanticity": {name: _mean_semanticity(model, data, num_classes, name) for name in partitions},
        "search_space_reduction": _reduction(model, data, partitions),
        "live": {
            layer.name: _live(layer.weight(), partition)
            for layer, partition in partitioned_layers(model, partitions)
        },
    }


def _mean_semanticity(
    model: nn.Module, data: tuple[Tensor, Tensor], num_classes: int, name: str
) -> float | None:
    top = min(_TOP, len(data[1]))
    try:
        shares = label_semanticity(model, data, name, top, num_classes=num_classes)
    except ValueError:  # a model of a user's own may regularise a stack of matrices, or run a layer twice
        return None
    (of_layer,) = shares.values()
    mean = float(of_layer.nanmean())
    return None if mean != mean else mean


def _reduction(
    model: nn.Module, data: tuple[Tensor, Tensor], partitions: Mapping[str, Partition]
) -> float | None:
    if not partitions:
        return None
    try:
        few_images = moved(data[0][:2], device_of(model))
        return search_space_reduction(model, partitions, example_inputs=few_images)
    except ValueError:  # a user's own model need not be a chain, nor its clusters be as many in each layer
        return None


def _live(weight: Tensor, partition: Partition) -> dict[str, Any]:
    found = live_units(weight, partition)
    return {
        "rows": float(found.rows.cpu().double().mean()),
        "columns": float(found.columns.cpu().double().mean()),
        "effective_rows": found.effective_rows,
        "effective_columns": found.effective_columns,
        "clusters": found.effective_clusters,
        "cluster_shares": None if found.cluster_shares is None else found.cluster_shares.tolist(),
    }
