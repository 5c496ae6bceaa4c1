"""Reads and checks the trained models whose circuits are to be found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import one_hot

from modfast.circuits.checkpoint import fingerprint
from modfast.circuits.folder import CircuitFolder
from modfast.circuits.jobs import require_walk_on
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
from .settings import CircuitConfig as CircuitConfig

# Enough to see whether circuits can be found in a model at all.
_FEW_IMAGES = 16


class OpenedModel(NamedTuple):
    """A trained model.

    Attributes:
        name: the name of its run, such as ``"plain-seed42"``.
        kind: ``"plain"`` or ``"modular"``.
        folder: the folder of its run.
        results: the contents of its ``results.json``.
        model: the network in evaluation mode, on the device asked for.
        partitions: layer name to clusters, from its ``partitions.npz``.
    """

    name: str
    kind: str
    folder: Path
    results: Mapping[str, Any]
    model: nn.Module
    partitions: dict[str, Partition]


class TrainedModel(NamedTuple):
    """A trained model as :class:`OpenedModel`, and the folders of its circuits.

    Attributes:
        name: the name of its run, such as ``"plain-seed42"``.
        kind: ``"plain"`` or ``"modular"``.
        folder: the folder of its run.
        results: the contents of its ``results.json``.
        model: the network in evaluation mode, on the device asked for.
        partitions: layer name to clusters, from its ``partitions.npz``.
        kept: the folder of its circuits, by criterion.
    """

    name: str
    kind: str
    folder: Path
    results: Mapping[str, Any]
    model: nn.Module
    partitions: dict[str, Partition]
    kept: dict[str, CircuitFolder]


def check_circuits(model: nn.Module, dataset: Dataset, config: CircuitConfig) -> list[int]:
    """Check model, images and machine, and return the labels whose circuits are to be found.

    Raises:
        ValueError: a label is out of range or has no test image; a layer is unknown, or the model has no
            linear layer; there is no such device; or the model does not end in these layers as
            :func:`modfast.find_circuit` requires.
    """
    device = choose_device(config.device)
    if config.layers is not None:
        match_layers(model, config.layers)
    elif not linear_layers(model):
        raise ValueError("layers: the model has no linear layer to find circuits in")
    if BACKEND != "reference":  # the reference takes any model
        tail = read_tail(model, dataset.normalize(dataset.test_images[:_FEW_IMAGES]), config.layers)
        require_walk_on(device, tail)
    return check_labels(dataset, config.labels)


def check_labels(dataset: Dataset, labels: Sequence[int] | None) -> list[int]:
    """Return the labels, ascending; all that have a test image for None.

    Raises:
        ValueError: one is out of range or has no test image.
    """
    occurring = occurring_labels(dataset)
    if labels is None:
        return occurring
    for label in labels:
        if not 0 <= label < dataset.num_classes:
            raise ValueError(f"labels must lie in [0, {dataset.num_classes}), got {label}")
        if label not in occurring:
            raise ValueError(f"labels: there is no test image of {label} ({dataset.classes[label]})")
    return sorted(labels)


def occurring_labels(dataset: Dataset) -> list[int]:
    """Return the labels that have a test image."""
    labels: list[int] = dataset.test_labels.unique().tolist()
    return labels


def first_images(dataset: Dataset, count: int | None) -> tuple[Tensor, Tensor]:
    """Return the test images as models read them, or the first ``count`` of each class, and their labels."""
    labels = dataset.test_labels
    if count is None:
        return dataset.normalize(dataset.test_images), labels
    own = one_hot(labels, dataset.num_classes)
    chosen = own.cumsum(0).gather(1, labels[:, None])[:, 0] <= count
    return dataset.normalize(dataset.test_images[chosen]), labels[chosen]


def trained_on(folder: str | os.PathLike[str]) -> str:
    """Return the data that a folder's models were trained on, as :func:`modfast.data.load_dataset` takes it.

    Raises:
        FileNotFoundError: no run has finished there.
        ValueError: the folder holds something else.
    """
    results = read_results(folder)
    if "clustering" in results or "network_clustering" in results:
        raise ValueError(f"{folder} holds clusters; circuits are found in what train or reproduce wrote")
    return str(results["config"]["data"])


def open_models(
    folder: str | os.PathLike[str], dataset: Dataset, config: CircuitConfig, process: int = 0
) -> list[TrainedModel]:
    """Open every model of a folder: a run's, or a comparison's plain and modular ones, seed by seed.

    Args:
        folder: the folder that ``modfast train`` or ``modfast reproduce`` wrote.
        dataset: the images that the models were trained on.
        config: how their circuits are to be found.
        process: the number of this process among those that find circuits.

    Raises:
        FileNotFoundError: no run has finished there.
        ValueError: the folder holds something else, or its models were trained on other data; a checkpoint
            does not fit its model, or has been trained further since the results.
        TrainingError: a checkpoint is damaged.
    """
    data_fingerprint = dataset.fingerprint()
    runs = []
    for opened in each_model(folder, dataset, config.device):
        weights = fingerprint(opened.model, {}, {})[:16]
        settings = {"weights": weights, **circuit_settings(config, data_fingerprint)}
        circuit_folders = {
            criterion: CircuitFolder(opened.folder, settings | {"criterion": criterion}, process)
            for criterion in config.criteria
        }
        runs.append(TrainedModel(*opened, circuit_folders))
    return runs


def each_model(folder: str | os.PathLike[str], dataset: Dataset, device: str) -> Iterator[OpenedModel]:
    """Open every model of a folder, as :func:`open_models` does.

    Args:
        folder: the folder that ``modfast train`` or ``modfast reproduce`` wrote.
        dataset: the images that the models were trained on.
        device: where the models are to be.

    Raises:
        FileNotFoundError, ValueError, TrainingError: as for :func:`open_models`.
    """
    folder = Path(folder)
    trained_on(folder)
    results = read_results(folder)
    data_fingerprint, place = dataset.fingerprint(), choose_device(device)
    paths = [folder]
    if "history" not in results:
        paths = [folder / run_name(kind, seed) for seed in results["config"]["seeds"] for kind in KINDS]
    for path in paths:
        run_results, state = read_run(path)
        trained = run_results["config"]
        if trained["data_fingerprint"] != data_fingerprint:
            raise ValueError(
                f"data: {dataset.name} is not what {path} was trained on, {trained['data']} "
                f"(fingerprint {data_fingerprint}, not {trained['data_fingerprint']}): "
                "--data says where that is now"
            )
        model = _load_model(path, run_results, state, dataset).to(place)
        kind = "modular" if trained["enmeshment_weight"] > 0 else "plain"
        partitions = load_partitions(path / PARTITIONS)
        yield OpenedModel(run_name(kind, trained["seed"]), kind, path, run_results, model, partitions)


def circuit_settings(config: CircuitConfig, data_fingerprint: str) -> dict[str, Any]:
    """Return the settings that decide the circuits, besides the criterion and the model's weights."""
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
    seed_generators(results["config"]["seed"])  # as for training: what is drawn need not be in the state_dict
    model = build_model(name, dataset.image_shape, dataset.num_classes)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder / CHECKPOINT} does not fit the model {name!r} ({error})") from error
    return model.eval()
