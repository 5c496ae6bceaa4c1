"""Train one network and measure it: one record for each arm and seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.common.campaign import rounded
from modfast import Circuit, circuit_overlap, find_circuit, find_circuits
from modfast.data.dataset import Dataset
from modfast.experiment.runs import evaluate
from modfast.machine import environment
from modfast.models import CNN, MLP, build_model
from modfast.report.circuits.summary import describe_circuits, pair_mean, run_measures
from modfast.train import Run, TrainConfig, train
from modfast.train.checkpoint import seed_generators

from .arms import Arm

CRITERIA = ("loss", "balanced")
FIXED = "fixed"
"""The name of the circuits whose allowed loss is the same for all networks."""


def measure(
    arm: Arm, seed: int, dataset: Dataset, device: str, threads: int | None, allowed: Sequence[float] | None
) -> dict[str, Any]:
    """Train and measure one network.

    Args:
        arm: how it is trained.
        seed: of its initial weights, and of the order of the images.
        dataset: the images.
        device: where it is trained; circuits are found on the CPU.
        threads: of PyTorch.
        allowed: for each class the loss that circuits of all arms may have, in nats; None finds none such.
    """
    began = time.perf_counter()
    run, snapshots = train_arm(arm, seed, dataset, device, threads)
    trained = time.perf_counter()
    record = measure_run(arm, run, dataset, allowed, snapshots)
    record["seconds"] = {"training": trained - began, "measuring": time.perf_counter() - trained}
    return rounded(record)


def train_arm(
    arm: Arm, seed: int, dataset: Dataset, device: str, threads: int | None, out: Path | None = None
) -> tuple[Run, dict[int, dict[str, Tensor]]]:
    """Train one network; return it, on the CPU, and its weights after the epochs that the arm names.

    Args:
        arm: as for :func:`measure`.
        seed: as for :func:`measure`.
        dataset: as for :func:`measure`.
        device: as for :func:`measure`.
        threads: as for :func:`measure`.
        out: a folder for checkpoints, from which a training that was stopped goes on; None keeps none.
            Weights after the epochs before that are not returned.
    """
    config = replace(arm.config, seed=seed, device=device, threads=threads)
    seed_generators(seed)
    model = _build(arm, dataset)
    snapshots: dict[int, dict[str, Tensor]] = {}

    def keep(record: Mapping[str, Any]) -> None:
        if arm.circuits_from is not None and record["epoch"] >= arm.circuits_from:
            state = model.state_dict()
            snapshots[record["epoch"]] = {name: value.detach().cpu().clone() for name, value in state.items()}

    with arm.training(model):
        partitions = None if arm.partitions is None else arm.partitions(model, dataset)
        run = train(
            model, dataset, config, partitions=partitions, out=out, resume=out is not None, on_epoch=keep
        )
    model.cpu()
    run.partitions = {name: each.to("cpu") for name, each in run.partitions.items()}
    return run, snapshots


def measure_run(
    arm: Arm,
    run: Run,
    dataset: Dataset,
    allowed: Sequence[float] | None,
    snapshots: Mapping[int, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Return the record of a trained network, but for the seconds that it took.

    Args:
        arm: how it was trained.
        run: the network, on the CPU.
        dataset: the images.
        allowed: as for :func:`measure`.
        snapshots: of :func:`train_arm`.
    """
    model = run.model
    results = evaluate(run, dataset)
    inputs, labels = dataset.normalize(dataset.test_images), dataset.test_labels
    by_criterion = {name: find_circuits(model, inputs, labels, criterion=name) for name in CRITERIA}
    if allowed is not None:
        by_criterion[FIXED] = _with_allowed_loss(model, inputs, labels, by_criterion["loss"], allowed)
    described = {
        name: describe_circuits(circuits, run.partitions, 0)
        for name, circuits in by_criterion.items()
        if circuits
    }
    measures = run_measures(results | {"history": run.history, "criteria": described}, sorted(run.partitions))
    names = ("size", "loss_before", "loss_after", "accuracy_after")
    return {
        "arm": arm.name,
        "seed": run.config.seed,
        "data": dataset.name.partition(":")[0],
        "data_fingerprint": dataset.fingerprint(),
        "config": _settings(run.config),
        "history": [_record(record) for record in run.history],
        "class_accuracy": results["class_accuracy"],
        "live": results["live"],
        "measures": measures,
        "by_class": {name: {each: described[name][each] for each in names} for name in described},
        "epochs": [
            {"epoch": epoch} | _after(model, state, inputs, labels) for epoch, state in snapshots.items()
        ],
        "allowed": allowed,
        "environment": environment(),
    }


def _build(arm: Arm, dataset: Dataset) -> nn.Module:
    if arm.hidden is None:
        return build_model(arm.model, dataset.image_shape, dataset.num_classes)
    kinds = {"cnn": CNN, "cnn4": partial(CNN, linear_layers=4), "mlp": MLP}
    return kinds[arm.model](dataset.image_shape, dataset.num_classes, hidden=arm.hidden)


def _with_allowed_loss(
    model: nn.Module, inputs: Tensor, labels: Tensor, circuits: Sequence[Circuit], allowed: Sequence[float]
) -> list[Circuit]:
    """Return circuits whose loss may be ``allowed``, whatever the network's is; none if that is higher."""
    found = []
    for circuit, most in zip(circuits, allowed, strict=True):
        tolerance = most - circuit.loss_before
        if tolerance < 0:
            return []
        own = inputs[labels == circuit.label]
        found.append(find_circuit(model, own, circuit.label, tolerance=tolerance))
    return found


def _after(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return what circuits by loss are like in the network of an earlier epoch."""
    model.load_state_dict(state)
    circuits = find_circuits(model, inputs, labels)
    return {
        "size": math.fsum(circuit.size for circuit in circuits) / len(circuits),
        "overlap": pair_mean(circuit_overlap(circuits)),
        "loss_before": math.fsum(circuit.loss_before for circuit in circuits) / len(circuits),
    }


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cross_entropy", "test_cross_entropy", "test_accuracy", "enmeshment", "clusterability", "found")
    return {name: record[name] for name in names if name in record}


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name != "seed"}
