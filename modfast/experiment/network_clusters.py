"""Clusters a whole network's units into a folder, as ``modfast cluster --network`` does.

All layers share the clusters: what one layer writes and another reads is in the same one. The number of
clusters is chosen as for a layer (:mod:`modfast.experiment.eigengap`), by the largest gap between the
eigenvalues of ``D^-1/2 A D^-1/2``, where ``A`` is the network's graph. The search finds clusters better than
chance in any graph, so cuts and gaps are compared with those that it finds in the same weights, permuted
within each matrix.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from typing import Any

import torch
from torch import Tensor, nn

from modfast.energy.functional import clusterability
from modfast.files import write_json
from modfast.layers.layer import find_layers
from modfast.layers.names import match_names
from modfast.machine import choose_device, environment, using_threads
from modfast.manifest import manifest_path
from modfast.network.reading import read_network
from modfast.network.units import Network
from modfast.results import RESULTS
from modfast.run_folder import Plan, RunFolder, claim
from modfast.spectral.counts import spectral_cluster_counts
from modfast.spectral.eigengap import choose_count, gaps_after
from modfast.spectral.shuffling import shuffle, single_threads
from modfast.train.config import Record

from .cluster_files import LAYERS
from .eigengap import ClusterConfig, by_chance
from .network_files import (
    draw_network,
    finished_parts,
    load_labels,
    network_plan,
    network_settings,
    save_labels,
    save_network_partitions,
)

OnStep = Callable[[str, int, int, int], None]
"""Called before each clustering: what is clustered, the number of clusters, clusterings done, their total."""


def read_chosen(model: nn.Module, example_inputs: Any, config: ClusterConfig) -> Network:
    """Read a model as a network of units, or the part of it that ``config.layers`` names.

    Raises:
        CannotFollowError: (a ``ValueError``) the model's computation cannot be followed.
        ValueError: ``layers`` matches nothing, or there are fewer units than clusters.
    """
    network = read_network(model, example_inputs)
    if config.layers is not None:
        known = {layer.name: layer.names for layer in find_layers(model)}
        names = [known[name] for name in network.layers]
        matched = {index for pattern in config.layers for index in match_names(names, pattern, "layers")}
        network = network.part([name for index, name in enumerate(network.layers) if index in matched])
    if config.num_clusters[0] > network.num_units:
        raise ValueError(
            f"clusters must be at most {network.num_units}, the units of the network, got "
            f"{config.num_clusters[0]} at least"
        )
    return network


def unused_layers(network: Network) -> list[str]:
    """Return the names of the model's weights that the example did not use, so that the graph lacks them."""
    known = {id(layer.parameter) for layer in find_layers(network.model) if layer.name in network.layers}
    return [
        layer.name
        for layer in find_layers(network.model)
        if layer.name not in network.layers and id(layer.parameter) not in known
    ]


def cluster_network(
    network: Network,
    config: ClusterConfig,
    out: str | os.PathLike[str],
    *,
    source: dict[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Cluster a network's units into a folder: ``results.json``, labels, partitions and pictures.

    ``labels.npz`` (the cluster of each unit, for each number of clusters) is written as soon as it is known,
    ``results.json`` then and after each shuffled network, each whole or not at all; at the end
    ``partitions.npz`` (each layer's clusters, for the chosen number), ``curve.png`` and ``layers.png``.

    Args:
        network: the network, or the part of it that is to be clustered. Its model is not changed.
        config: the settings of the clustering.
        out: the folder; made if absent.
        source: what :func:`modfast.experiment.network_files.redraw_network` needs to make the model again:
            ``model``, ``sizes``.
        resume: keep the clusters and the shuffled networks that ``out`` has already.
        overwrite: remove what ``modfast cluster`` wrote to ``out`` before.
        on_step: called before each clustering.

    Returns:
        What ``results.json`` holds: ``network_clustering`` (see :func:`_describe`, :func:`_cluster`),
        ``finished``, ``config`` and ``environment``.

    Raises:
        ValueError: the results in ``out`` belong to other weights, units or settings; a weight is not finite,
            or all are zero. Nothing is changed then.
        OutputExistsError: as for :func:`modfast.experiment.clusters.cluster_model`.
    """
    device, folder = choose_device(config.device), RunFolder(out, "cluster")
    results: dict[str, Any] = {"network_clustering": _describe(network), "finished": False}
    results["config"] = network_settings(network, config, source)
    results["environment"] = environment()
    record = results["network_clustering"]
    plans: list[tuple[RunFolder, Plan]] = [(folder, network_plan())]
    if overwrite and manifest_path(folder.path / LAYERS, "cluster").exists():
        # Of a clustering of single layers, which has more files: nothing takes their place.
        plans.append((RunFolder(folder.path, "cluster", LAYERS), {}))
    claimed = claim(plans, resume=resume, overwrite=overwrite)
    if resume and (folder.path / RESULTS).exists():
        record |= finished_parts(folder.path, results["config"])
    # Before anything is removed: a weight may be NaN.
    began = time.perf_counter()
    graph = None if record["clusters"] else _graph(network, config, device)
    claimed.take()
    counts = [k for k in config.num_clusters if k <= network.num_units]
    steps = _Steps(on_step, len(counts), config.shuffles + 1)
    steps.done = len(counts) * (bool(record["clusters"]) + len(record["shuffled"]))
    with using_threads(config.threads):
        if graph is not None:
            found, labels = _cluster(graph, config, counts, steps)
            graph = None  # shuffled ones need the memory
            save_labels(folder.file("labels.npz"), labels)
            record |= {**found, "seconds": time.perf_counter() - began}
            write_json(folder.file(RESULTS), results)
        missing = [number for number in range(config.shuffles) if str(number) not in record["shuffled"]]
        for number, shuffled in _shuffles(network, config, counts, device, steps, missing):
            record["shuffled"][str(number)] = shuffled
            write_json(folder.file(RESULTS), results)
    record["shuffled"] = dict(sorted(record["shuffled"].items(), key=lambda item: int(item[0])))
    labels = load_labels(folder.path)
    chosen = labels[record["chosen"]]
    partitions = network.partitions(chosen)
    record["without_partition"] = [name for name in network.layers if name not in partitions]
    record["clusterability"] = _shares(network, partitions)
    record["members"] = _members(network, chosen, record["chosen"])
    save_network_partitions(folder, partitions)
    draw_network(folder, results, network.model)
    results["finished"] = True
    write_json(folder.file(RESULTS), results)
    return results


def _describe(network: Network) -> Record:
    """What is known before the clustering: units, spaces, and the layers with their roles."""
    return {
        "units": network.num_units,
        "spaces": {name: [space.start, space.stop] for name, space in network.spaces.items()},
        "layers": {
            name: {"role": layer.role, "shape": list(layer.shape), "tied_to": layer.tied_to}
            for name, layer in network.layers.items()
        },
        "chosen": None,
        "eigenvalues": [],
        "clusters": [],
        "shuffled": {},
    }


class _Steps:
    """Counts the clusterings of all threads, and tells of each."""

    def __init__(self, on_step: OnStep | None, counts: int, graphs: int) -> None:
        self._on_step, self._total, self.done = on_step, counts * graphs, 0
        self._lock = threading.Lock()

    def __call__(self, what: str, k: int) -> None:
        with self._lock:
            if self._on_step is not None:
                self._on_step(what, k, self.done, self._total)
            self.done += 1


def _graph(network: Network, config: ClusterConfig, device: torch.device) -> Tensor:
    graph = network.graph(affinity=config.affinity).to(device)
    if graph._nnz() == 0:
        raise ValueError(
            "model: no two units are joined, since all weights between them are zero: there is nothing to "
            "cluster"
        )
    return graph


def _cluster(
    graph: Tensor, config: ClusterConfig, counts: Sequence[int], steps: _Steps
) -> tuple[Record, dict[int, Tensor]]:
    """Cluster the network itself.

    Returns:
        ``chosen``, ``eigenvalues``, ``edges``, ``converged`` and ``clusters`` (for each number
        ``num_clusters``, ``normalized_cut``, ``gap`` and ``sizes``); and the labels by number of clusters.
    """
    found = spectral_cluster_counts(
        graph,
        counts,
        n_init=config.n_init,
        tol=config.tol,
        seed=config.seed,
        on_count=lambda k: steps("network", k),
    )
    gaps = gaps_after(found.eigenvalues, counts)
    labels = {k: of_units.cpu() for k, of_units in found.labels.items()}
    clusters = [
        {
            "num_clusters": k,
            "normalized_cut": found.normalized_cuts[k],
            "gap": gaps[k],
            "sizes": torch.bincount(labels[k][labels[k] >= 0], minlength=k).tolist(),
        }
        for k in counts
    ]
    record = {
        "chosen": choose_count(gaps),
        "eigenvalues": found.eigenvalues,
        "edges": graph._nnz() // 2,
        "converged": found.converged,
        "clusters": clusters,
    }
    return record, labels


def _shuffles(
    network: Network,
    config: ClusterConfig,
    counts: Sequence[int],
    device: torch.device,
    steps: _Steps,
    numbers: Sequence[int],
) -> Iterator[tuple[int, Record]]:
    """Cluster networks of shuffled weights, some at a time, and yield each when it is done.

    The result does not depend on how many there are at a time; each holds a graph in memory.
    """

    def shuffled(number: int) -> Record:
        graph = shuffled_graph(network, config.affinity, config.seed, number).to(device)
        found = spectral_cluster_counts(
            graph,
            counts,
            n_init=config.n_init,
            tol=config.tol,
            seed=config.seed,
            on_count=lambda k: steps(f"shuffled network {number + 1}", k),
        )
        gaps = [gap for gap in gaps_after(found.eigenvalues, counts).values() if gap is not None]
        cuts = {str(k): cut for k, cut in found.normalized_cuts.items()}
        return {
            "normalized_cuts": cuts,
            "eigenvalues": found.eigenvalues,
            "largest_gap": max(gaps, default=None),
        }

    if not numbers:
        return
    with single_threads(min(torch.get_num_threads(), len(numbers))) as pool:
        places = {pool.submit(shuffled, number): number for number in numbers}
        for future in as_completed(places):
            yield places[future], future.result()


def shuffled_graph(network: Network, affinity: str, seed: int, number: int) -> Tensor:
    """Return the graph of the same network with the entries of each weight in a random order.

    Args:
        network: the network; its model is not changed.
        affinity: as for :meth:`modfast.network.units.Network.graph`.
        seed: the seed of all shuffles.
        number: which shuffle; each has random numbers of its own.
    """
    return network.changed_graph(shuffle(seed, number), affinity=affinity)


def _shares(network: Network, partitions: dict[str, Any]) -> dict[str, Any]:
    """Each layer's clusterability, and what weights without structure would have."""
    layers = {layer.name: layer for layer in find_layers(network.model) if layer.name in partitions}
    shares = {}
    with torch.no_grad():
        for name, partition in partitions.items():
            weight = layers[name].weight()
            shares[name] = {
                "clusterability": float(clusterability(weight, partition.to(weight.device))),
                "by_chance": by_chance(partition)["clusterability"],
            }
    return shares


def _members(network: Network, labels: Tensor, clusters: int) -> list[dict[str, int]]:
    """How many units of each space are in each cluster."""
    return [
        {
            name: count
            for name, space in network.spaces.items()
            if (count := int((labels[space] == cluster).sum()))
        }
        for cluster in range(clusters)
    ]
