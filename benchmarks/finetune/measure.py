"""Fine-tune the model once and measure it: one record for each arm and seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.campaign import rounded
from modfast import (
    EnmeshmentLoss,
    Network,
    Partition,
    cluster_dependence,
    live_units,
    read_network,
    spectral_cluster,
)
from modfast.layers.layer import find_layers
from modfast.machine import environment
from modfast.optim import AdamW

from .arms import KS, RANDOM_SETS, Arm, Settings
from .task import Batch, batch_of, held_out, info_nce, partner_first
from .texts import Texts

Partitions = Mapping[str, Partition]
Record = dict[str, Any]


def measure(model: nn.Module, texts: Texts, arm: Arm, seed: int, settings: Settings) -> Record:
    """Fine-tune a model and return its record.

    Args:
        model: as it was trained before; it is changed.
        texts: what it is trained and measured on.
        arm: how it is trained.
        seed: of the order of the pairs.
        settings: of all arms.
    """
    began = time.perf_counter()
    settings = replace(settings, learning_rate=settings.learning_rate / arm.slower)
    model.eval()  # without dropout, in training too: a seed is an order of pairs
    network = read_network(model, batch_of(texts.held_out[:1]))
    layers = network.select("mlp_input", "mlp_output")
    labels = labels_of(network, arm, layers)
    measured = measured_batches(texts, settings)
    history = fine_tune(model, network, texts, arm, labels, seed, settings, measured) if arm.trained else []
    trained = time.perf_counter()
    found = history[-1] if history else held_out(model, measured, settings.temperature)
    shared = {k: network.partitions(k, layers=layers) for k in KS}
    record = {
        "arm": arm.name,
        "seed": seed,
        "settings": asdict(settings) | {"weight": arm.weight, "k": arm.k, "clusters": arm.clusters},
        "texts": texts.description,
        "history": history,
        "held_out": {name: found[name] for name in ("loss", "accuracy", "losses")},
        "clusterability": {str(k): clusterability(model, shared[k]) for k in KS},
        "own": None if labels is None else own_clusters(model, network, layers, labels),
        "live": {str(k): live(model, shared[k]) for k in ((arm.k,) if arm.k else KS)},
        "dependence": dependence(model, network, arm, labels, measured[: settings.answers_batches]),
        "environment": environment(),
    }
    record["seconds"] = {"training": trained - began, "measuring": time.perf_counter() - trained}
    return rounded(record)  # type: ignore[no-any-return]


def measured_batches(texts: Texts, settings: Settings) -> list[dict[str, Tensor]]:
    """Return the held-out batches, the same for every arm and seed: pairs of all files in a fixed order.

    Raises:
        ValueError: there are too few pairs.
    """
    needed = settings.measured_pairs * settings.measured_batches
    if needed > len(texts.held_out):
        raise ValueError(f"texts must hold out at least {needed} pairs, got {len(texts.held_out)}")
    order = torch.randperm(len(texts.held_out), generator=torch.Generator().manual_seed(0))
    chosen = texts.held_out[order[:needed]]
    return [batch_of(part) for part in chosen.split(settings.measured_pairs)]


def labels_of(network: Network, arm: Arm, layers: Sequence[str]) -> Tensor | None:
    """Return the cluster of each unit; None for an arm without clusters.

    Raises:
        ValueError: the arm's clusters are of an unknown kind.
    """
    if arm.k is None:
        return None
    if arm.clusters == "blocks":
        return network.unit_labels(arm.k)[0]
    if arm.clusters == "spectral":
        return spectral_cluster(network.graph(layers), arm.k)
    raise ValueError(f"clusters must be 'blocks' or 'spectral', got {arm.clusters!r}")


def fine_tune(
    model: nn.Module,
    network: Network,
    texts: Texts,
    arm: Arm,
    labels: Tensor | None,
    seed: int,
    settings: Settings,
    measured: Sequence[Batch],
) -> list[Record]:
    """Train a model; return loss, clusterability and held-out loss, every so many steps.

    The embeddings stay as they are: half of the weights, which the loss does not concern.

    Raises:
        ValueError: there are too few pairs for so many steps.
    """
    needed = settings.steps * settings.pairs
    if needed > len(texts.train):
        raise ValueError(f"texts must hold at least {needed} pairs for training, got {len(texts.train)}")
    for name in network.select("embedding", "position_embedding"):
        model.get_submodule(name).requires_grad_(False)
    loss = None
    if labels is not None:
        layers = network.select("mlp_input", "mlp_output")
        loss = EnmeshmentLoss(model, network.partitions(labels, layers=layers))
    optimizer = AdamW(
        [each for each in model.parameters() if each.requires_grad],
        settings.learning_rate,
        enmeshment=loss,
        enmeshment_weight=arm.weight,
    )
    order = torch.randperm(len(texts.train), generator=torch.Generator().manual_seed(seed))[:needed]
    history, losses = [], []
    for step, rows in enumerate(order.split(settings.pairs), 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        optimizer.zero_grad()
        task = info_nce(model(**batch_of(texts.train[rows])), settings.temperature)
        task.backward()
        optimizer.step()
        losses.append(float(task.detach()))
        if step % settings.every == 0 or step == settings.steps:
            entry = {"step": step, "train_loss": math.fsum(losses) / len(losses)}
            entry |= held_out(model, measured, settings.temperature)
            if loss is not None:
                entry["clusterability"] = mean(loss.clusterability())
            history.append(entry)
            losses.clear()
    return history


def mean(values: Mapping[str, float]) -> float:
    return math.fsum(values.values()) / len(values)


def clusterability(model: nn.Module, partitions: Partitions) -> float:
    """Return the mean over the layers."""
    return mean(EnmeshmentLoss(model, partitions).clusterability())


def own_clusters(model: nn.Module, network: Network, layers: Sequence[str], labels: Tensor) -> dict[str, Any]:
    """Return what the clusters that a model was trained with are like.

    ``by_chance`` is the clusterability of weights without structure, in clusters of these sizes.
    """
    partitions = network.partitions(labels, layers=layers)
    k = int(labels.max()) + 1
    chance = {
        name: math.fsum(
            float((each.row_labels == c).double().mean() * (each.col_labels == c).double().mean())
            for c in range(k)
        )
        for name, each in partitions.items()
    }
    spaces = {"neurons": hidden_units(network), "stream": stream_units(network)}
    return {
        "clusterability": clusterability(model, partitions),
        "by_layer": EnmeshmentLoss(model, partitions).clusterability(),
        "by_chance": mean(chance),
        "sizes": {
            name: torch.bincount(labels[units], minlength=k).tolist() for name, units in spaces.items()
        },
        "live": live(model, partitions),
    }


def hidden_units(network: Network) -> Tensor:
    """Return the hidden neurons of all MLPs."""
    return torch.cat([network.layers[name].row_units for name in network.select("mlp_input")])


def stream_units(network: Network) -> Tensor:
    """Return the dimensions of the residual stream."""
    return network.layers[network.select("mlp_input")[0]].col_units


def live(model: nn.Module, partitions: Partitions) -> dict[str, float]:
    """Return whether layers still use their rows, columns and clusters: means over layers, and the least."""
    layers = {layer.name: layer for layer in find_layers(model)}
    found = [live_units(layers[name].weight().detach(), each) for name, each in partitions.items()]
    clusters = [float(each.effective_clusters or 0.0) for each in found]
    return {
        "rows": math.fsum(float(each.rows.double().mean()) for each in found) / len(found),
        "columns": math.fsum(float(each.columns.double().mean()) for each in found) / len(found),
        "effective_clusters": math.fsum(clusters) / len(clusters),
        "least_effective_clusters": min(clusters),
    }


def dependence(
    model: nn.Module,
    network: Network,
    arm: Arm,
    labels: Tensor | None,
    batches: Sequence[Batch],
) -> dict[str, dict[str, Any]]:
    """Return on how many clusters answers depend, by the number of clusters.

    What is set to zero are hidden neurons: a cluster of those of all MLPs at once.
    """
    spaces = [
        name for name, space in network.spaces.items() if bool((hidden_units(network) == space.start).any())
    ]
    found = {}
    for k in arm.dependence:
        made = cluster_dependence(
            model,
            batches,
            partner_first,
            network,
            k if labels is None else labels,
            n_random=RANDOM_SETS[k],
            spaces=spaces,
        )
        found[str(k)] = {
            "right": int(made.right.sum()),
            "answers": len(made.right),
            "mean": made.mean,
            "shares": made.shares.tolist(),
            "random_mean": made.random_mean,
            "random_means": [
                math.fsum(i * float(share) for i, share in enumerate(each)) for each in made.random_shares
            ],
            "random_shares": made.random_mean_shares.tolist(),
        }
    return found
