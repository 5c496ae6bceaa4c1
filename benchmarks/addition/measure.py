"""Train one network and measure it: one record for each arm and seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.campaign import rounded
from modfast import EnmeshmentLoss, Network, live_units, read_network, spectral_cluster
from modfast.files import atomic_write
from modfast.machine import environment
from modfast.tasks import ModularAddition, modular_addition

from .ablated import ablated_clusters, circuit_of
from .arms import CLUSTERS, SEEDS, Arm, blocks
from .waves import find_waves

SOLVED = 0.99
"""The held-out accuracy above which a network counts as one that generalises."""


def measure(arm: Arm, seed: int, weights: Path | None = None) -> dict[str, Any]:
    """Train and measure one network.

    Args:
        arm: how it is trained.
        seed: of its initial weights, of what is trained on and what is held out.
        weights: a file for the trained network. If it exists, it is measured as it is.

    Raises:
        ValueError: the file's network was trained by other settings, or it does not say by which.
    """
    made_by = {"seed": seed, **settings_of(arm)}
    task, model, network = make(arm, seed)
    if weights is not None and weights.exists():
        trained = torch.load(weights, weights_only=True)
        if trained.get("settings") != made_by:
            raise ValueError(f"{weights} was trained by {trained.get('settings')}, not {made_by}: remove it")
        model.load_state_dict(trained["model"])
        history, seconds = trained["history"], trained["seconds"]
    else:
        checkpoint = None if weights is None else weights.with_suffix(".checkpoint")
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        history, seconds = train(arm, seed, task, model, network, checkpoint)
        if weights is not None and checkpoint is not None:
            with atomic_write(weights) as temporary:
                torch.save(
                    {
                        "model": model.state_dict(),
                        "history": history,
                        "seconds": seconds,
                        "settings": made_by,
                    },
                    temporary,
                )
            checkpoint.unlink()
    began = time.process_time()
    record = measure_model(arm, seed, task, model, network, history)
    record["seconds"] = {"training": seconds, "measuring": time.process_time() - began}
    return rounded(record)


def settings_of(arm: Arm) -> dict[str, Any]:
    """Return what decides how an arm is trained, as its records hold it."""
    kind = arm.kind
    return {
        "p": kind.p,
        "train_share": kind.train_share,
        "steps": kind.steps,
        "sizes": kind.sizes,
        "layers": arm.layers,
        "weight": arm.weight,
        "clusters": CLUSTERS,
        **arm.settings,
    }


def make(arm: Arm, seed: int) -> tuple[ModularAddition, nn.Module, Network]:
    """Return the task, the network before it is trained, and its units."""
    kind = arm.kind
    task = modular_addition(kind.p, kind.train_share, seed)
    model = task.model(kind.name, seed=seed, **kind.sizes)
    return task, model, read_network(model, task.pairs[:2])


def train(
    arm: Arm,
    seed: int,
    task: ModularAddition,
    model: nn.Module,
    network: Network,
    checkpoint: Path | None = None,
) -> tuple[list[dict[str, float]], float]:
    """Train a network in place.

    Args:
        arm: how.
        seed: of what each step draws.
        task: what to learn.
        model: the network.
        network: its units.
        checkpoint: a file from which a run that was stopped goes on.

    Returns:
        The history, and the processor seconds that all steps take at the pace of those that were made now.
    """
    options: dict[str, Any] = {}
    if arm.layers:
        partitions = network.partitions(blocks(network, arm.kind), layers=arm.layers)
        options = {"enmeshment": EnmeshmentLoss(model, partitions), "enmeshment_weight": arm.weight}
    made = 0

    def count(_: int, __: int) -> None:
        nonlocal made
        made += 1

    began = time.process_time()
    history = task.train(
        model, arm.kind.steps, seed=seed, checkpoint=checkpoint, progress=count, **arm.settings, **options
    )
    return history, (time.process_time() - began) * arm.kind.steps / max(made, 1)


def measure_model(
    arm: Arm,
    seed: int,
    task: ModularAddition,
    model: nn.Module,
    network: Network,
    history: list[dict[str, float]],
) -> dict[str, Any]:
    """Return the record of a trained network, but for the seconds that it took."""
    kind = arm.kind
    waves = find_waves(task, model, kind)
    units = network.layers[kind.neurons].col_units
    by_block = blocks(network, kind)
    by_graph = spectral_cluster(network.graph(list(kind.inside)), CLUSTERS)
    by_waves = torch.full_like(by_block, -1)
    live = waves.live.nonzero().flatten()
    if len(live) >= CLUSTERS:
        by_waves[units[live]] = spectral_cluster(waves.correlation[live][:, live], CLUSTERS)
    layers = {name: model.get_submodule(name).weight.detach() for name in kind.inside}
    partitions = {
        "blocks": network.partitions(by_block, layers=list(layers)),
        "spectral": network.partitions(by_graph, layers=list(layers)),
    }
    found = {
        name: {part: live_units(weight, each[part]) for part, weight in layers.items()}
        for name, each in partitions.items()
    }
    written = found["blocks"][kind.neurons]
    solved = [record["step"] for record in history if record["test_accuracy"] > SOLVED]
    record: dict[str, Any] = {
        "arm": arm.name,
        "seed": seed,
        "settings": settings_of(arm),
        "fingerprint": task.fingerprint,
        "history": {
            name: [each[name] for each in history] for name in ("step", "test_accuracy", "test_loss")
        },
        "solved": solved[0] if solved else None,
        "measures": {
            "test_accuracy": history[-1]["test_accuracy"],
            "test_loss": history[-1]["test_loss"],
            "loss": history[-1]["loss"],
            "keys": int(waves.key.sum()),
            "explained": float(waves.in_logits[waves.key].sum()),
            "purity": float(waves.shares[live].amax(1).median()) if len(live) else None,
            "live": len(live) / len(waves.live),
            "live_columns": float(written.columns.double().mean()),
            "effective_neurons": written.effective_columns,
            **_clusterability("blocks", found["blocks"]),
            **_clusterability("spectral", found["spectral"]),
        },
        "clusterability": {name: float(each.cluster_shares.sum()) for name, each in found["blocks"].items()},
        "clusterings": {
            name: ablated_clusters(
                task, model, network, kind.writes, waves, units, labels, seed, ablated=name != "activations"
            )
            for name, labels in (("blocks", by_block), ("spectral", by_graph), ("activations", by_waves))
        },
        "circuit": circuit_of(task, model, network, waves, units, by_block, seed),
        "neurons": {
            "frequency": (waves.frequency + 1).tolist(),
            "live": waves.live.int().tolist(),
            "spectral": by_graph[units].tolist(),
        },
        "keys": (waves.key.nonzero().flatten() + 1).tolist(),
        "in_logits": [round(share, 4) for share in waves.in_logits.tolist()],
        "environment": environment(),
    }
    if seed == SEEDS[0]:
        record["shares"] = [[round(share, 3) for share in neuron] for neuron in waves.shares.tolist()]
    return record


def _clusterability(name: str, found: Mapping[str, Any]) -> dict[str, float]:
    """Return the means over layers of the clusterability, and of how many clusters are in use."""
    return {
        f"clusterability:{name}": math.fsum(float(each.cluster_shares.sum()) for each in found.values())
        / len(found),
        f"clusters:{name}": math.fsum(each.effective_clusters for each in found.values()) / len(found),
    }
