"""The models whose circuits are to be found: read from where they were trained, and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from modfast.arguments import Distinct, Integer, NoneOr, Number, OneOf, check_fields
from modfast.circuit import CRITERIA
from modfast.circuits.checkpoint import fingerprint
from modfast.circuits.folder import CircuitFolder
from modfast.circuits.linear_tail import read_tail
from modfast.data.dataset import Dataset
from modfast.layers.layer import linear_layers, match_layers
from modfast.library import BACKEND
from modfast.machine import choose_device
from modfast.models import build_model
from modfast.partition import Partition, load_partitions
from modfast.results import KINDS, PARTITIONS, read_results, run_name
from modfast.train.checkpoint import CHECKPOINT, seed_generators

from .runs import read_run

# Enough to see whether circuits can be found in a model at all.
_FEW_IMAGES = 16


@dataclass(frozen=True)
class CircuitConfig:
    """How circuits are found.

    Attributes:
        criteria: each gives a circuit for each label; see :func:`modfast.find_circuit`.
        tolerance: by how much the loss may rise, in nats.
        labels: whose circuits; None takes every class that has a test image.
        images: at most so many test images of each class, the first ones; None takes all.
        layers: names or globs; None leaves the choice to :func:`modfast.find_circuits`.
        seed: of the other classes' images that ``"balanced"`` draws, and of the random circuits.
        device: "auto" takes a CUDA device if there is one that this build has kernels for.
        threads: of PyTorch on the CPU; None leaves them.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> CircuitConfig(labels=(0, 1)).criteria
        ('loss', 'balanced')
    """

    criteria: tuple[str, ...] = ("loss", "balanced")
    tolerance: float = 0.0
    labels: tuple[int, ...] | None = None
    images: int | None = None
    layers: tuple[str, ...] | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "criteria": Distinct(OneOf(CRITERIA)),
                "tolerance": Number(0, included=True),
                "labels": NoneOr(Distinct(Integer(0))),
                "images": NoneOr(Integer(1)),
                "seed": Integer(0, 2**31 - 1),
                "threads": NoneOr(Integer(1)),
            },
        )
        if self.layers is not None and not self.layers:
            raise ValueError(f"layers must be None or at least one name, got {self.layers!r}")


class TrainedModel(NamedTuple):
    """A model that was trained, and where its circuits are kept.

    Attributes:
        name: such as ``"plain-seed42"``.
        kind: ``"plain"`` or ``"modular"``.
        folder: where it was trained.
        results: its ``results.json``.
        model: in evaluation mode, on the device asked for.
        partitions: layer name to clusters, those of its ``partitions.npz``.
        kept: its circuits by criterion.
    """

    name: str
    kind: str
    folder: Path
    results: Mapping[str, Any]
    model: nn.Module
    partitions: dict[str, Partition]
    kept: dict[str, CircuitFolder]


def check_circuits(model: nn.Module, dataset: Dataset, config: CircuitConfig) -> list[int]:
    """The labels whose circuits are to be found, if the model, the images and the machine allow it.

    Raises:
        ValueError: a label is out of range or has no test image, a layer is unknown, or there is none, or no
            such device; or the model does not end in these layers as :func:`modfast.find_circuit` asks.
    """
    choose_device(config.device)
    if config.layers is not None:
        match_layers(model, config.layers)
    elif not linear_layers(model):
        raise ValueError("layers: the model has no linear layer to find circuits in")
    if BACKEND != "reference":  # which takes any model
        read_tail(model, dataset.normalize(dataset.test_images[:_FEW_IMAGES]), config.layers)
    occurring = occurring_labels(dataset)
    if config.labels is None:
        return occurring
    for label in config.labels:
        if not 0 <= label < dataset.num_classes:
            raise ValueError(f"labels must lie in [0, {dataset.num_classes}), got {label}")
        if label not in occurring:
            raise ValueError(f"labels: there is no test image of {label} ({dataset.classes[label]})")
    return sorted(config.labels)


def occurring_labels(dataset: Dataset) -> list[int]:
    """The labels that have a test image."""
    labels: list[int] = dataset.test_labels.unique().tolist()
    return labels


def trained_on(folder: str | os.PathLike[str]) -> str:
    """The data that a folder's models were trained on, as :func:`modfast.data.load_dataset` takes it.

    Raises:
        FileNotFoundError: no run has finished there.
        ValueError: it holds something else.
    """
    results = read_results(folder)
    if "clustering" in results:
        raise ValueError(f"{folder} holds clusters; circuits are found in what train or reproduce wrote")
    return str(results["config"]["data"])


def open_models(
    folder: str | os.PathLike[str], dataset: Dataset, config: CircuitConfig, process: int = 0
) -> list[TrainedModel]:
    """Every model of a folder: the one of a run, or the plain and modular ones of a comparison, seed by seed.

    Args:
        folder: what train or reproduce wrote.
        dataset: the images that they were trained on.
        config: how their circuits are to be found.
        process: the number of this process, of several that find circuits.

    Raises:
        FileNotFoundError: no run has finished there.
        ValueError: it holds something else, or was trained on other data; a model is not the one that was
            trained, or was trained on since.
        TrainingError: a checkpoint is damaged.
    """
    folder = Path(folder)
    trained_on(folder)
    results = read_results(folder)
    data_fingerprint, device = dataset.fingerprint(), choose_device(config.device)
    paths = [folder]
    if "history" not in results:
        paths = [folder / run_name(kind, seed) for seed in results["config"]["seeds"] for kind in KINDS]
    runs = []
    for path in paths:
        each, state = read_run(path)
        given = each["config"]
        if given["data_fingerprint"] != data_fingerprint:
            raise ValueError(
                f"data: {dataset.name} is not what {path} was trained on, {given['data']} "
                f"(fingerprint {data_fingerprint}, not {given['data_fingerprint']}): "
                "--data says where that is now"
            )
        model = _load_model(path, each, state, dataset).to(device)
        kind = "modular" if given["enmeshment_weight"] > 0 else "plain"
        settings = {"weights": fingerprint(model, {}, {})[:16], **circuit_settings(config, data_fingerprint)}
        kept = {
            criterion: CircuitFolder(path, settings | {"criterion": criterion}, process)
            for criterion in config.criteria
        }
        partitions = load_partitions(path / PARTITIONS)
        name = run_name(kind, given["seed"])
        runs.append(TrainedModel(name, kind, path, each, model, partitions, kept))
    return runs


def circuit_settings(config: CircuitConfig, data_fingerprint: str) -> dict[str, Any]:
    """What decides which circuits are found, besides the criterion and the model's weights."""
    return {
        "data_fingerprint": data_fingerprint,
        "images": config.images,
        "layers": None if config.layers is None else list(config.layers),
        "tolerance": config.tolerance,
        "seed": config.seed,
    }


def _load_model(
    folder: Path, results: Mapping[str, Any], state: Mapping[str, Any], dataset: Dataset
) -> nn.Module:
    name = results["config"]["model"]
    seed_generators(results["config"]["seed"])  # as for training: not all that is drawn need be a weight
    model = build_model(name, dataset.image_shape, dataset.num_classes)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder / CHECKPOINT} does not fit the model {name!r} ({error})") from error
    return model.eval()
