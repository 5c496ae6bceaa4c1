"""The files of a whole network's clustering: what ``modfast cluster --network`` writes, reads and draws."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modfast.files import read_arrays, write_arrays
from modfast.layers.layer import find_layers
from modfast.layers.names import unwrapped
from modfast.machine import command_line
from modfast.network.units import Network
from modfast.partition import Partition, load_partitions, save_partitions
from modfast.report.pictures.networks import draw_curve, draw_layers
from modfast.results import PARTITIONS, PICTURE, RESULTS, read_results, results_with
from modfast.run_folder import Plan, Planned, RunFile, RunFolder
from modfast.train.checkpoint import TrainingError
from modfast.train.config import Record
from modfast.weights.read import find_checkpoint
from modfast.weights.whole_models import whole_model

from .cluster_files import fingerprint
from .eigengap import ClusterConfig

LABELS = "labels.npz"
CURVE, LAYERS = "curve.png", "layers.png"
_FORMAT = "modfast unit labels 1"


def network_plan() -> Plan:
    """Return the files that the clustering of a network writes."""
    return {
        RESULTS: results_with("network_clustering"),
        LABELS: Planned(_read_labels, drawn_from=RESULTS),
        PARTITIONS: Planned(load_partitions, drawn_from=RESULTS),
        **dict.fromkeys([CURVE, LAYERS], PICTURE),
    }


def network_settings(
    network: Network, config: ClusterConfig, source: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the settings that ``results.json`` records."""
    model = None if source is None else source["model"]
    checkpoint = None if model is None else find_checkpoint(model)
    sizes = None if source is None else source["sizes"]
    return {
        **asdict(config),
        "num_clusters": list(config.num_clusters),
        "layers": None if config.layers is None else list(config.layers),
        "model": model if checkpoint is None else str(checkpoint.resolve()),
        "sizes": None if sizes is None else [list(sizes[0]), sizes[1]],
        "example": None if source is None else source["example"],
        "weights": _fingerprints(network.model, network.layers),
        "norms": _of_norms(network),
        "units": _of_units(network),
        "command": command_line(),
    }


@torch.no_grad()
def _fingerprints(model: nn.Module, names: Container[str]) -> dict[str, str]:
    return {layer.name: fingerprint(layer.weight()) for layer in find_layers(model) if layer.name in names}


@torch.no_grad()
def _of_norms(network: Network) -> dict[str, str]:
    """Fingerprints of the batch norms that multiply the rows of layers, which are part of the graph."""
    model, found = unwrapped(network.model), {}
    for name, layer in network.layers.items():
        like = torch.empty(len(layer.row_units), 0, dtype=torch.float64, device="cpu")
        scales = [norm.scale(model, like) for norm in layer.norms or ()]
        if scales:
            found[name] = fingerprint(torch.stack(scales))
    return found


def _of_units(network: Network) -> str:
    """A fingerprint of which row and column is which unit: another example may show other units."""
    sides = [side.flatten() for each in network.layers.values() for side in (each.row_units, each.col_units)]
    return fingerprint(torch.cat(sides))


def finished_parts(folder: Path, wanted: Mapping[str, Any]) -> Record:
    """Return what needs not be computed again: the network's clusters, and those of shuffled networks.

    Raises:
        ValueError: they belong to other weights, units or settings, or the labels are damaged.
        FileNotFoundError: the file with the labels is missing.
    """
    saved = read_results(folder)
    if "network_clustering" not in saved:
        raise ValueError(f"{folder} holds no clustering of a network to resume")
    for part, what in (
        ("weights", "weights"),
        ("norms", "batch norms"),
        ("units", "units, by another example"),
    ):
        if saved["config"].get(part) != wanted[part]:
            raise ValueError(f"{folder} was made with other {what}: cluster these into another folder")
    for part in ("num_clusters", "affinity", "n_init", "shuffles", "tol", "seed"):
        if saved["config"][part] != wanted[part]:
            raise ValueError(
                f"{folder} was made with another {part}: {saved['config'][part]!r}, not {wanted[part]!r}"
            )
    load_labels(folder)  # a check: the end of the work needs them
    record: Record = saved["network_clustering"]
    return record


def save_labels(path: RunFile, labels: Mapping[int, Tensor]) -> None:
    """Write the cluster of each unit, for each number of clusters."""
    arrays = {f"labels_{k}": of_units.to(torch.int32).numpy() for k, of_units in labels.items()}
    write_arrays(path, _FORMAT, list(labels), arrays)


def load_labels(folder: str | os.PathLike[str]) -> dict[int, Tensor]:
    """Return the cluster of each unit by number of clusters, from the folder of a clustering.

    Raises:
        FileNotFoundError: there is no ``labels.npz``.
        ValueError: it is damaged.
    """
    return _read_labels(Path(folder) / LABELS)


def _read_labels(path: Path) -> dict[int, Tensor]:
    with read_arrays(path, _FORMAT, "file of unit labels") as (counts, arrays):
        return {int(k): torch.from_numpy(arrays[f"labels_{k}"].astype("int64")) for k in counts}


def save_network_partitions(folder: RunFolder, partitions: Mapping[str, Partition]) -> None:
    """Write the chosen clusters of each layer."""
    save_partitions(folder.file(PARTITIONS), partitions)


def draw_network(folder: RunFolder, results: Mapping[str, Any], model: nn.Module | None) -> list[Path]:
    """Draw the curve over the numbers of clusters, and the layers if there is a model; return the paths."""
    record = results["network_clustering"]
    pictures: dict[str, Any] = {CURVE: lambda path: draw_curve(path, record)}
    if model is not None:
        weights = {layer.name: layer for layer in find_layers(model)}

        def weight(name: str) -> Tensor:
            return weights[name].weight().detach()

        partitions = load_partitions(folder.path / PARTITIONS)
        pictures[LAYERS] = lambda path: draw_layers(path, record, weight, partitions)
    return folder.draw(pictures)


def redraw_network(folder: str | os.PathLike[str]) -> str | None:
    """Draw the pictures again, with the model made again from where it was.

    Args:
        folder: the folder of the clustering. If it is a path, pictures that might be a user's own are left
            alone.

    Returns:
        The reason why the layers could not be drawn again, or None.

    Raises:
        ValueError, FileNotFoundError: as :func:`modfast.results.read_results` does.
    """
    folder = RunFolder.of(folder, "report")
    results = read_results(folder)
    config, record = results["config"], results["network_clustering"]
    if not results["finished"]:
        return f"{folder} is not finished: --resume continues, and draws its pictures"
    model, reason = None, "it is not known where the model is from"
    if config["model"] is not None:
        try:
            model = whole_model(config["model"], sizes=config["sizes"], seed=config["seed"])
        except (ValueError, OSError, ImportError, TrainingError) as error:
            reason = str(error)
    if model is not None and _fingerprints(model, record["layers"]) != config["weights"]:
        model, reason = None, f"{config['model']} holds other weights now"
    draw_network(folder, results, model)
    return None if model is not None else f"{LAYERS} is left as it was: {reason}"
