"""The measures of circuits, as numbers that JSON can hold: for one model, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast.circuit import Circuit
from modfast.circuits.kept_weights import KeptWeights, weight_clusters
from modfast.circuits.keys import ALL, REGULARISED, layer_key
from modfast.circuits.measures import cluster_shares, intersection_over_union, mutual_information
from modfast.partition import Partition
from modfast.report.numbers import average
from modfast.report.statistics import effect_size, mean_interval, paired_interval
from modfast.results import as_lists

from .words import RANDOM

DRAWS = 10
"""How many times random circuits of equal size are drawn."""

BY_CLASS = "by_class"
"""The key in a criterion's summary of what is no measure, but a list with an entry for each class."""


def describe_circuits(
    circuits: Sequence[Circuit], partitions: Mapping[str, Partition], seed: int
) -> dict[str, Any]:
    """Return all measures of one model's circuits, and of random circuits.

    Args:
        circuits: one for each label, at least one, all of the same layers.
        partitions: clusters of any of these layers.
        seed: the seed for drawing the random circuits.

    Returns:
        Lists over circuits: ``size``, ``num_inputs``, ``loss_before``, ``loss_after``, ``accuracy_before``,
        ``accuracy_after`` and, by layer, ``sizes``. By layer, and over all layers under ``"all"``:
        ``overlap`` (circuits x circuits), ``information`` in bits (of the layers with clusters),
        ``random_overlap`` and ``random_information``, means over :data:`DRAWS` draws of circuits of the same
        sizes in each layer; the key of a layer is that of :func:`modfast.circuits.keys.layer_key`.
        By layer with clusters: ``inside`` (circuits x clusters) and ``random_inside``, the share of all
        weights of the layer that lie inside each cluster. None stands for NaN.

    Example:
        >>> masks = {"fc": torch.tensor([[True, True], [False, True]])}
        >>> one = Circuit(0, masks, "loss", 0.0, 1, 0.5, 0.25, 1.0, 1.0)
        >>> described = describe_circuits([one], {"fc": Partition([0, 1], [0, 1], 2)}, seed=0)
        >>> described["size"], described["random_inside"], described["random_overlap"]
        ([0.75], {'fc': [0.25, 0.25]}, {'all': None, 'fc': None})
    """
    layers = list(circuits[0].masks)
    kept_weights = KeptWeights.of(circuits)
    clusters = weight_clusters(kept_weights.shapes, partitions)

    def overlap(kept: KeptWeights) -> dict[str, Tensor]:
        shared = {name: kept.shared(name) for name in layers}
        by_layer = {layer_key(name): intersection_over_union([counts]) for name, counts in shared.items()}
        return {ALL: intersection_over_union(list(shared.values()))} | by_layer

    def information(kept: KeptWeights) -> dict[str, float]:
        counts = {name: kept.clustered(name, labels) for name, labels in clusters.items()}
        by_layer = {layer_key(name): mutual_information([table]) for name, table in counts.items()}
        return {ALL: mutual_information(list(counts.values())) if counts else math.nan} | by_layer

    random_overlap, random_information = [], []
    for draw in range(DRAWS):
        drawn = kept_weights.drawn(seed * DRAWS + draw)
        random_overlap.append({name: pair_mean(pairs) for name, pairs in overlap(drawn).items()})
        random_information.append(information(drawn))
    all_sizes = [circuit.sizes for circuit in circuits]
    numbers = ("size", "num_inputs", "loss_before", "loss_after", "accuracy_before", "accuracy_after")
    return {
        **{name: [getattr(circuit, name) for circuit in circuits] for name in numbers},
        "sizes": {name: [sizes[name] for sizes in all_sizes] for name in layers},
        "overlap": {name: as_lists(pairs) for name, pairs in overlap(kept_weights).items()},
        "random_overlap": _means(random_overlap),
        "inside": {name: as_lists(shares) for name, shares in cluster_shares(circuits, partitions).items()},
        "random_inside": {
            name: (partition.sizes().cpu().double().prod(1) / math.prod(partition.shape)).tolist()
            for name, partition in partitions.items()
        },
        "information": {name: average([bits]) for name, bits in information(kept_weights).items()},
        "random_information": _means(random_information),
    }


def pair_mean(overlap: Tensor) -> float | None:
    """Return the mean overlap of two circuits, without pairs that have none; None if no pair has one.

    Example:
        >>> pair_mean(torch.tensor([[1.0, 0.25], [0.25, 1.0]]))
        0.25
    """
    first, second = torch.triu_indices(len(overlap), len(overlap), 1, device="cpu")
    return average(overlap[first, second].tolist())


def _means(draws: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {name: average(draw[name] for draw in draws) for name in draws[0]}


def run_measures(run: Mapping[str, Any], regularised: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return one number for each measure of a run: a mean over labels, or over pairs of them.

    Args:
        run: ``accuracy``, ``clusterability``, ``cluster_accuracy`` and ``criteria``, which holds what
            :func:`describe_circuits` returns for each criterion. Runs of earlier releases lack the others:
            ``label_semanticity`` (layer to share of the classes), ``search_space_reduction`` (share of the
            parameters), ``live`` (layer to ``rows`` and ``columns``, shares, and ``clusters``, a number) and
            ``history``, in whose last record ``test_cross_entropy`` is the loss on test images in nats.
        regularised: the layers over which ``specialisation_only``, ``specialisation_without``,
            ``information:regularised`` and ``random_information:regularised`` are means.

    Returns:
        For ``"model"`` and for each criterion, the numbers by name of measure. A measure of one layer is
        named ``measure:layer``, with the layer's :func:`modfast.circuits.keys.layer_key`. None stands for a
        missing number; measures of which the run holds nothing are left out.

        The specialisation of a layer is, for each class, by how much the best cluster alone exceeds the
        mean over clusters in accuracy ("only"), or by how much the accuracy without the most needed cluster
        falls short of that mean ("without"); then the mean over classes. It is 0 if all clusters are alike,
        and also large for clusters that always answer one class.
    """

    def over_regularised(prefix: str, measures: Mapping[str, float | None]) -> float | None:
        return average(measures.get(_of_layer(prefix, layer)) for layer in regularised)

    model: dict[str, float | None] = {"accuracy": run["accuracy"]}
    model |= {_of_layer("clusterability", layer): share for layer, share in run["clusterability"].items()}
    for mode in ("only", "without"):
        name = f"specialisation_{mode}"
        by_layer = {
            _of_layer(name, layer): specialisation(shares[mode], mode)
            for layer, shares in run["cluster_accuracy"].items()
        }
        model |= {name: over_regularised(name, by_layer)} | by_layer
    model |= _later_measures(run)
    measures = {"model": model}
    for criterion, described in run["criteria"].items():
        means: dict[str, float | None] = {"size": average(described["size"])}
        means |= {_of_layer("size", layer): average(sizes) for layer, sizes in described["sizes"].items()}
        means |= {name: average(described[name]) for name in ("accuracy_before", "accuracy_after")}
        overlaps = {name: pair_mean(_matrix(rows)) for name, rows in described["overlap"].items()}
        means |= _named("overlap", overlaps) | _named("random_overlap", described["random_overlap"])
        for layer, rows in described["inside"].items():
            means[_of_layer("inside", layer)] = average(_sum(row) for row in rows)
            means[_of_layer(f"{RANDOM}inside", layer)] = math.fsum(described["random_inside"][layer])
        for name in ("information", "random_information"):
            means |= _named(name, described[name])
            means[f"{name}:{REGULARISED}"] = over_regularised(name, means)
        measures[criterion] = means
    return measures


def _later_measures(run: Mapping[str, Any]) -> dict[str, float | None]:
    """Return those measures of a model that runs of earlier releases lack."""
    found: dict[str, float | None] = {}
    last = run["history"][-1] if run.get("history") else {}
    if "test_cross_entropy" in last:
        found["test_loss"] = last["test_cross_entropy"]
    for layer, share in run.get("label_semanticity", {}).items():
        found[_of_layer("label_semanticity", layer)] = share
    if "search_space_reduction" in run:
        found["search_space_reduction"] = run["search_space_reduction"]
    for part in ("rows", "columns", "clusters"):
        for layer, live in run.get("live", {}).items():
            found[_of_layer(f"live_{part}", layer)] = live[part]
    return found


def specialisation(shares: Sequence[Sequence[float | None]], mode: str) -> float | None:
    """Return how differently clusters serve a class, from clusters x classes; see :func:`run_measures`.

    Example:
        >>> specialisation([[1.0, 0.5], [0.0, 0.5]], "only")
        0.25
    """
    by_class = [[share for share in column if share is not None] for column in zip(*shares, strict=True)]
    means = [(column, math.fsum(column) / len(column)) for column in by_class if column]
    return average(max(column) - mean if mode == "only" else mean - min(column) for column, mean in means)


def _of_layer(measure: str, layer: str) -> str:
    return f"{measure}:{layer_key(layer)}"


def _named(name: str, by_key: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name if key == ALL else f"{name}:{key}": value for key, value in by_key.items()}


def _sum(row: Sequence[float | None]) -> float | None:
    known = [value for value in row if value is not None]
    return math.fsum(known) if known else None


def _matrix(rows: Sequence[Sequence[float | None]]) -> Tensor:
    known = [[math.nan if value is None else value for value in row] for row in rows]
    return torch.tensor(known, dtype=torch.float64, device="cpu")


def summarize_circuits(
    runs: Sequence[Mapping[str, Any]], regularised: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return every measure over seeds, of plain and modular models and of their difference.

    Args:
        runs: as for :func:`run_measures`, each with its ``kind``; both kinds for the same seeds in the same
            order.
        regularised: as for :func:`run_measures`.

    Returns:
        For ``"model"`` and for each criterion, by name of measure and by kind: ``mean``, ``interval`` (half
        width of the 95% interval) and ``values`` by seed; and, if there are plain and modular runs,
        ``difference``, modular minus plain, with ``mean``, ``interval`` and ``effect_size``. Numbers are None
        where a seed's value is None, also because its run lacks the measure; ``interval`` and ``effect_size``
        also for a single seed.

        If there are plain and modular runs, each criterion also has :data:`BY_CLASS`, with what
        :func:`size_changes` returns.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_kind.setdefault(run["kind"], []).append(run)
    measured = {
        kind: [run_measures(run, regularised) for run in of_kind] for kind, of_kind in by_kind.items()
    }
    every = [measures for of_kind in measured.values() for measures in of_kind]
    summary: dict[str, dict[str, Any]] = {}
    for group in every[0]:
        names = dict.fromkeys(name for measures in every for name in measures[group])
        summary[group] = {
            name: over_seeds(
                {kind: [run[group].get(name) for run in of_kind] for kind, of_kind in measured.items()}
            )
            for name in names
        }
        if group != "model" and {"plain", "modular"} <= set(by_kind):
            sizes = (
                [run["criteria"][group]["size"] for run in by_kind[kind]] for kind in ("plain", "modular")
            )
            summary[group][BY_CLASS] = size_changes(*sizes)
    return summary


def size_changes(
    plain: Sequence[Sequence[float | None]], modular: Sequence[Sequence[float | None]]
) -> dict[str, Any]:
    """Return by which share the circuits of modular models are smaller or larger than those of plain ones.

    Args:
        plain: the size of each class's circuit, for each seed.
        modular: the same for the modular models of the same seeds.

    Returns:
        ``size_change``, for each class ``(modular - plain) / plain``, and ``mean_size_change``, its mean over
        classes; each with ``mean`` over seeds, ``interval`` (half width of its 95% interval; None for a
        single seed) and ``values`` by seed. Where the circuit of the plain model is empty the value is None,
        and so are this class's ``mean`` and ``interval``; the mean over classes leaves it out for that seed.

    Example:
        >>> changes = size_changes([[0.5, 0.25]], [[0.25, 0.5]])
        >>> [change["mean"] for change in changes["size_change"]], changes["mean_size_change"]["mean"]
        ([-0.5, 1.0], 0.25)
    """
    by_seed = [
        [
            None if before is None or after is None or before == 0 else (after - before) / before
            for before, after in zip(*sizes, strict=True)
        ]
        for sizes in zip(plain, modular, strict=True)
    ]
    return {
        "size_change": [_over_seeds(list(values)) for values in zip(*by_seed, strict=True)],
        "mean_size_change": _over_seeds([average(values) for values in by_seed]),
    }


def _over_seeds(by_seed: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in by_seed if value is not None]
    mean, interval = mean_interval(known) if len(known) == len(by_seed) else (None, None)
    return {"mean": mean, "interval": interval, "values": by_seed}


def over_seeds(values: Mapping[str, list[float | None]]) -> dict[str, Any]:
    """Return a measure over seeds, of each kind and of the difference, as :func:`summarize_circuits` does.

    Args:
        values: for each kind a value for each seed, in the same order.
    """
    summary: dict[str, Any] = {kind: _over_seeds(by_seed) for kind, by_seed in values.items()}
    if {"plain", "modular"} <= set(values):
        summary["difference"] = {"mean": None, "interval": None, "effect_size": None}
        known = {kind: [value for value in by_seed if value is not None] for kind, by_seed in values.items()}
        if all(len(known[kind]) == len(values[kind]) for kind in values):
            mean, interval = paired_interval(known["modular"], known["plain"])
            effect = effect_size(known["modular"], known["plain"])
            summary["difference"] = {"mean": mean, "interval": interval, "effect_size": effect}
    return summary
