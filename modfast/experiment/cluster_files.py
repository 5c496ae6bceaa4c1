"""The files of a clustering: what ``modfast cluster`` writes, reads again and draws."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modfast.machine import command_line
from modfast.partition import Partition, load_partitions, save_partitions
from modfast.report.pictures.clusters import clusterability_pictures, matrices_pictures, picture_names
from modfast.results import PARTITIONS, PICTURE, RESULTS, read_results, results_with
from modfast.run_folder import Plan, Planned, RunFolder
from modfast.train.checkpoint import TrainingError
from modfast.train.config import Record
from modfast.weights.read import find_checkpoint, read_weights

from .eigengap import ClusterConfig, possible_counts

LAYERS = "layers"
_CURVES, _MATRICES = "clusterability.png", "matrices.png"


def clustering_plan(weights: Mapping[str, Tensor], config: ClusterConfig) -> Plan:
    """Return the files that a clustering writes, except those of ``layers/``."""
    counts = {name: possible_counts(weight, config) for name, weight in weights.items()}
    clustered = [name for name, possible in counts.items() if possible]
    by_count = [_count_file(k) for k in sorted({k for possible in counts.values() for k in possible})]
    return {
        RESULTS: results_with("clustering"),
        **dict.fromkeys([PARTITIONS, *by_count], Planned(load_partitions, drawn_from=RESULTS)),
        **dict.fromkeys(picture_names(clustered, _CURVES, _MATRICES), PICTURE),
    }


def layers_plan(weights: Mapping[str, Tensor]) -> Plan:
    """Return the files that a clustering writes into ``layers/``."""

    def read(path: Path) -> None:
        # Partitions may be anybody's; these must lie in the folder of a clustering.
        results = path.parent.parent / RESULTS
        if not results.exists():
            raise ValueError(f"{path} belongs to no clustering, without {results}: move it away")
        results_with("clustering").read(results)
        load_partitions(path)

    return {layer_file(index): Planned(read) for index in range(len(weights))}


def clustering_settings(
    weights: Mapping[str, Tensor],
    config: ClusterConfig,
    model: str | None,
    sizes: tuple[Sequence[int], int] | None,
) -> dict[str, Any]:
    """Return the settings that ``results.json`` records."""
    checkpoint = None if model is None else find_checkpoint(model)
    return {
        **asdict(config),
        "num_clusters": list(config.num_clusters),
        "layers": None if config.layers is None else list(config.layers),
        "model": model if checkpoint is None else str(checkpoint.resolve()),
        "sizes": None if sizes is None else [list(sizes[0]), sizes[1]],
        "weights": {name: fingerprint(weight) for name, weight in weights.items()},
        "command": command_line(),
    }


def fingerprint(weight: Tensor) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over shape, dtype and values."""
    digest = hashlib.sha256(json.dumps([list(weight.shape), str(weight.dtype)]).encode())
    # As bytes, since NumPy has no bfloat16.
    digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def finished_layers(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Record]:
    """Return the records of the layers that need not be clustered again.

    Raises:
        ValueError: they belong to other weights or settings, or a file with a layer's clusters is damaged.
        FileNotFoundError: a file with a layer's clusters is missing.
    """
    saved = read_results(folder)
    if "clustering" not in saved:
        raise ValueError(f"{folder} holds no clustering to resume")
    if list(saved["config"]["weights"].items()) != list(wanted["weights"].items()):
        raise ValueError(f"{folder} was made with other weights: cluster these into another folder")
    for part in ("num_clusters", "affinity", "n_init", "shuffles", "tol", "seed"):
        if saved["config"][part] != wanted[part]:
            raise ValueError(
                f"{folder} was made with another {part}: {saved['config'][part]!r}, not {wanted[part]!r}"
            )
    _load_layers(folder, saved)  # a check: the end of the work needs all of them
    finished: dict[str, Record] = saved["clustering"]
    return finished


def layer_file(index: int) -> str:
    """Return the name of the file with a layer's partitions."""
    return f"{index:03}.npz"


def _count_file(k: int) -> str:
    return f"partitions_k{k:02}.npz"


def _load_layers(folder: Path, results: Mapping[str, Any]) -> dict[str, dict[int, Partition]]:
    """Return every finished layer's partitions by number of clusters."""
    return {
        name: {
            int(k): partition for k, partition in load_partitions(folder / LAYERS / layer_file(index)).items()
        }
        for index, name in enumerate(results["config"]["weights"])
        if name in results["clustering"]
    }


def save_by_count(folder: RunFolder, results: Mapping[str, Any]) -> None:
    """Write a file with the layers' chosen clusters, and one for each number of clusters."""
    layers = _load_layers(folder.path, results)
    save_partitions(folder.file(PARTITIONS), _chosen(results, layers))
    for k in results["config"]["num_clusters"]:
        mapping = {name: partitions[k] for name, partitions in layers.items() if k in partitions}
        if mapping:
            save_partitions(folder.file(_count_file(k)), mapping)


def _chosen(
    results: Mapping[str, Any], layers: Mapping[str, Mapping[int, Partition]]
) -> dict[str, Partition]:
    records = results["clustering"]
    return {
        name: partitions[records[name]["chosen"]]
        for name, partitions in layers.items()
        if records[name]["chosen"] is not None
    }


def draw_clustering(
    folder: RunFolder, results: Mapping[str, Any], weights: Mapping[str, Tensor] | None
) -> list[Path]:
    """Draw a clustering's pictures beside its files, matrices only if weights are given; return the paths."""
    chosen = _chosen(results, _load_layers(folder.path, results))
    records = {name: results["clustering"][name] for name in chosen}
    pictures = clusterability_pictures(_CURVES, records)
    if weights is not None:
        pictures |= matrices_pictures(_MATRICES, weights, chosen)
    return folder.draw(pictures)


def redraw_clustering(folder: str | os.PathLike[str]) -> str | None:
    """Draw a clustering's pictures again, with the weights read from where they were.

    Args:
        folder: the folder of the clustering. If it is a path, pictures that might be a user's own are left
            alone.

    Returns:
        The reason why the matrices could not be drawn again, or None.

    Raises:
        ValueError, FileNotFoundError: as :func:`modfast.results.read_results` does.
    """
    folder = RunFolder.of(folder, "report")
    results = read_results(folder)
    config = results["config"]
    weights, reason = None, "it is not known where the weights are from"
    if config["model"] is not None:
        try:
            weights = read_weights(
                config["model"], config["layers"], sizes=config["sizes"], seed=config["seed"]
            )
        except (ValueError, OSError, ImportError, TrainingError) as error:
            reason = str(error)
    if weights is not None and {n: fingerprint(w) for n, w in weights.items()} != config["weights"]:
        weights, reason = None, f"{config['model']} holds other weights now"
    draw_clustering(folder, results, weights)
    return None if weights is not None else f"matrices.png is left as it was: {reason}"
