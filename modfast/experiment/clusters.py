"""Clusters every layer of a network into a folder, as ``modfast cluster`` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modfast.files import write_json
from modfast.machine import choose_device, environment, using_threads
from modfast.partition import save_partitions
from modfast.results import RESULTS
from modfast.run_folder import RunFolder, claim
from modfast.train.checkpoint import CHECKPOINT
from modfast.train.config import Record
from modfast.weights.read import find_checkpoint

from .cluster_files import (
    LAYERS,
    clustering_plan,
    clustering_settings,
    draw_clustering,
    finished_layers,
    layer_file,
    layers_plan,
    save_by_count,
)
from .eigengap import ClusterConfig, cluster_layer


def check_weights(weights: Mapping[str, Tensor], num_clusters: Sequence[int]) -> None:
    """Raise unless every weight is finite and at least one can be divided into the fewest clusters asked for.

    Raises:
        ValueError: otherwise; the message names the layer, or the number of clusters.
    """
    sides, not_zero = {}, []
    for name, weight in weights.items():  # once: looking a weight up may read it from a file
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"layer {name!r} must have finite weights, got NaN or infinity")
        sides[name] = min(weight.shape[:2])
        if bool(weight.any()):
            not_zero.append(name)
    largest = max(sides, key=lambda name: sides[name])
    if num_clusters[0] > sides[largest]:
        raise ValueError(
            f"clusters must be at most {sides[largest]}, the most neurons or channels on the smaller side "
            f"of a layer ({largest!r}), got {num_clusters[0]} at least"
        )
    if not any(sides[name] >= num_clusters[0] for name in not_zero):
        raise ValueError("layers: all weights are zero, there is nothing to cluster")


def check_out(model: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Raise if a run's checkpoint is in ``out``, where the clusters would be taken for the run's results.

    A model in a folder below ``out`` is allowed.

    Raises:
        ValueError: the model lies directly in ``out``.
    """
    checkpoint = find_checkpoint(model)
    if checkpoint is None or checkpoint.name != CHECKPOINT:
        return  # a file that no command writes or removes
    if Path(out).resolve() in (checkpoint.parent.resolve(), checkpoint.resolve().parent):
        raise ValueError(f"out must be another folder than the model's, {model} lies in {out}")


def cluster_model(
    weights: Mapping[str, Tensor],
    config: ClusterConfig,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    sizes: tuple[Sequence[int], int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Callable[[str, int, int, int], None] | None = None,
    on_layer: Callable[[str, Record], None] | None = None,
) -> dict[str, Any]:
    """Cluster every layer into a folder: ``results.json``, partitions and pictures.

    After each layer ``results.json`` and its partitions (``layers/``) are written, whole or not at all; at
    the end ``partitions.npz`` (each layer's chosen clusters), ``partitions_k02.npz`` and so on (each layer's
    clusters for one number of them), ``clusterability.png`` and ``matrices.png``.

    Args:
        weights: layer name to weight, as :func:`modfast.weights.read_weights` gives them.
        config: the settings of the clustering.
        out: the folder; made if absent.
        model: where the weights were read from, so that ``modfast report`` can read them again.
        sizes: image shape and number of classes, if the model was made with them.
        resume: keep the layers that ``out`` has already.
        overwrite: remove what ``modfast cluster`` wrote to ``out`` before.
        on_step: called before each clustering with the layer, the number of clusters, the clusterings done
            and their total.
        on_layer: called with each finished layer's name and record.

    Returns:
        What ``results.json`` holds: ``clustering`` (layer name to what :func:`cluster_layer` records),
        ``finished``, ``config`` and ``environment``.

    Raises:
        ValueError: as :func:`check_weights` does; or the results in ``out`` belong to other weights or
            settings.
        OutputExistsError: ``out`` holds clusters, and neither ``resume`` nor ``overwrite`` is given; or a
            file that ``modfast cluster`` would write is there and is not its own. Nothing is changed then.
    """
    check_weights(weights, config.num_clusters)
    device, folder = choose_device(config.device), RunFolder(out, "cluster")
    by_layer = RunFolder(folder.path, "cluster", LAYERS)
    results: dict[str, Any] = {"clustering": {}, "finished": False}
    results["config"] = clustering_settings(weights, config, model, sizes)
    results["environment"] = environment()
    plans = [(folder, clustering_plan(weights, config)), (by_layer, layers_plan(weights))]
    claimed = claim(plans, resume=resume, overwrite=overwrite)
    if resume and (folder.path / RESULTS).exists():
        results["clustering"] = finished_layers(folder.path, results["config"])
    claimed.take()

    fitting = {
        name: sum(k <= min(weight.shape[:2]) for k in config.num_clusters) for name, weight in weights.items()
    }
    done = sum(fitting[name] for name in results["clustering"])
    with using_threads(config.threads):
        for index, (name, weight) in enumerate(weights.items()):
            if name in results["clustering"]:
                continue

            def step(k: int, name: str = name, before: int = done) -> None:
                if on_step is not None:
                    on_step(name, k, before + config.num_clusters.index(k), sum(fitting.values()))

            record, partitions = cluster_layer(weight.to(device), config, step)
            by_count = {str(k): partition for k, partition in partitions.items()}
            save_partitions(by_layer.file(layer_file(index)), by_count)
            results["clustering"][name] = record
            write_json(folder.file(RESULTS), results)
            done += fitting[name]
            if on_layer is not None:
                on_layer(name, record)

    save_by_count(folder, results)
    draw_clustering(folder, results, weights)
    results["finished"] = True
    write_json(folder.file(RESULTS), results)
    return results
