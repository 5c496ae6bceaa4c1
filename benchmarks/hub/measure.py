"""What is measured of a trained model: clusterability, and on how many clusters an answer depends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import modfast
from modfast import Network, Partition

BATCH = 8
SLICES = 4


def clusterability(model: nn.Module, partitions: Mapping[str, Partition]) -> dict[str, Any]:
    """Return the clusterability of each layer, and the mean over layers."""
    by_layer = modfast.EnmeshmentLoss(model, partitions).clusterability()
    return {"mean": sum(by_layer.values()) / len(by_layer), "by_layer": by_layer}


def hidden_labels(network: Network, partitions: Mapping[str, Partition]) -> Tensor:
    """Return the cluster of each hidden neuron of the MLPs as trained, -1 for all other units."""
    labels = torch.full((network.num_units,), -1)
    for name in network.select("mlp_input"):
        labels[network.layers[name].row_units] = partitions[name].row_labels.cpu()
    return labels


def published_slices(network: Network, layer: str, width: int) -> Tensor:
    """Return the four slices that the authors' code zeroes, as labels: the first neurons of one layer.

    They are ``width`` neurons each, 256 in that code, whatever the model's number of hidden neurons. In
    GPT-2's 3,072, whose trained clusters have 768, three of the four lie inside the first cluster.

    Raises:
        ValueError: the layer has fewer neurons.
    """
    neurons = network.layers[layer].row_units
    if len(neurons) < SLICES * width:
        raise ValueError(
            f"slice_width must be at most {len(neurons) // SLICES} for the {len(neurons)} neurons of "
            f"{layer}, got {width}"
        )
    labels = torch.full((network.num_units,), -1)
    labels[neurons[: SLICES * width]] = torch.arange(SLICES).repeat_interleave(width)
    return labels


def dependence(
    model: nn.Module,
    windows: Tensor,
    network: Network,
    partitions: Mapping[str, Partition],
    *,
    layer: str,
    slice_width: int,
    random_sets: int,
    all_layers: bool,
) -> dict[str, Any]:
    """Return on how many clusters the last token of a window depends, beside random clusters.

    Args:
        model: on its device.
        windows: ``(n, length)``, of the validation split.
        network: of the model.
        partitions: the clusters as trained.
        layer: the layer that the authors' form looks at: a weight that feeds hidden neurons.
        slice_width: of the authors' slices.
        random_sets: of random clusters.
        all_layers: whether clusters are shared, so that one can be off in all layers at once.

    Returns:
        Three measures by name. ``"clusters of one layer"`` has the right borders, and ``"as published, slices
        of one layer"`` those of the public code. ``"clusters of all layers"`` is None where layers do not
        share clusters.
    """
    batches = batches_of(windows.to(next(model.parameters()).device))
    labels = hidden_labels(network, partitions)
    of_layer = torch.full_like(labels, -1)
    units = network.layers[layer].row_units
    of_layer[units] = labels[units]

    def measured(labels: Tensor) -> dict[str, Any]:
        found = modfast.cluster_dependence(
            model,
            batches,
            last_token,
            network,
            labels,
            n_random=random_sets,
            spaces=_named(network, labels),
        )
        low, high = found.random_interval.tolist()
        return {
            "texts": len(found.right),
            "right": int(found.right.sum()),
            "cluster_sizes": labels[labels >= 0].bincount().tolist(),
            "mean": found.mean,
            "random_mean": found.random_mean,
            "shares": found.shares.tolist(),
            "random_shares": found.random_mean_shares.tolist(),
            "random_interval": [low, high],
            # The authors leave out answers that depend on none.
            "shares_of_dependent": of_dependent(found.shares),
            "random_shares_of_dependent": of_dependent(found.random_mean_shares),
        }

    with torch.no_grad():
        some_right = any(bool(last_token(model(**batch), batch).any()) for batch in batches)
    names = ("clusters of all layers", "clusters of one layer", "as published, slices of one layer")
    if not some_right:  # then there is nothing that could depend
        return {"layer": layer, **dict.fromkeys(names)}
    return {
        "layer": layer,
        names[0]: measured(labels) if all_layers else None,
        names[1]: measured(of_layer),
        names[2]: measured(published_slices(network, layer, slice_width)),
    }


def batches_of(windows: Tensor) -> list[dict[str, Any]]:
    """Return what the model is called with. Logits are of 50,000 tokens each: only the last two are made."""
    return [{"input_ids": part, "use_cache": False, "logits_to_keep": 2} for part in windows.split(BATCH)]


def last_token(output: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return 1 for each text whose last token is the one that the model finds most probable, else 0."""
    return (output.logits[:, -2].argmax(-1) == batch["input_ids"][:, -1]).double()


def of_dependent(shares: Tensor) -> list[float] | None:
    """Return the shares of 1, 2, ... clusters among answers that depend on any; None without such."""
    some = float(shares[1:].sum())
    return [float(share) / some for share in shares[1:]] if some > 0 else None


def _named(network: Network, labels: Tensor) -> Iterable[str]:
    """The spaces that have clusters: only their units are ablated."""
    return [name for name, units in network.spaces.items() if bool((labels[units] >= 0).any())]
