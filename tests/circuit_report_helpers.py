"""A run whose circuits are drawn at random, for the tests of what is reported about circuits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modfast.circuit import Circuit
from modfast.files import write_json
from modfast.machine import environment
from modfast.partition import Partition, save_partitions
from modfast.report.circuits.claims import comparisons_note
from modfast.report.circuits.summary import size_changes
from modfast.report.statistics import mean_interval, paired_interval

SHAPES = {"fc1": (12, 40), "fc2": (12, 12), "fc3": (3, 12)}
CLASSES = ("cat", "dog", "<b>cow & calf</b>")


def random_circuit(
    label: int, criterion: str, partitions: Mapping[str, Partition], shapes: Any, modular: bool, seed: int
) -> Circuit:
    """A circuit that keeps few weights, in a modular model most of them inside the clusters."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * label + len(criterion) + modular)
    masks = {}
    for name, shape in shapes.items():
        chance = torch.full(shape, 0.12)
        if modular and name in partitions:
            chance = torch.where(partitions[name].mask(), 0.2, 0.01)
        masks[name] = torch.rand(shape, generator=generator) < chance
    return Circuit(label, masks, criterion, 0.0, 100, 0.8, 0.7, 0.75, 0.9)


def measure(circuits: Sequence[Circuit], partitions: Mapping[str, Partition]) -> dict[str, Any]:
    """What circuits.json holds for one run and criterion; the numbers by chance are made up."""
    layers = list(circuits[0].masks)
    flat = {
        layer: torch.stack([circuit.masks[layer].flatten() for circuit in circuits]).double()
        for layer in layers
    }
    flat["all"] = torch.cat(list(flat.values()), dim=1)

    def overlap(masks: torch.Tensor) -> list[list[float]]:
        both = masks @ masks.T
        sizes = masks.sum(1)
        return (both / (sizes[:, None] + sizes[None, :] - both).clamp(min=1)).tolist()

    def inside(layer: str, circuit: Circuit) -> list[float]:
        partition, mask = partitions[layer], circuit.masks[layer]
        kept = mask & partition.mask()
        counts = [int(kept[partition.row_labels == k].sum()) for k in range(partition.num_clusters)]
        return [count / max(int(mask.sum()), 1) for count in counts]

    clustered = [layer for layer in layers if layer in partitions]
    return {
        "size": [circuit.size for circuit in circuits],
        "sizes": {layer: [circuit.sizes[layer] for circuit in circuits] for layer in layers},
        "num_inputs": [circuit.num_inputs for circuit in circuits],
        "loss_before": [circuit.loss_before for circuit in circuits],
        "loss_after": [circuit.loss_after for circuit in circuits],
        "accuracy_before": [circuit.accuracy_before for circuit in circuits],
        "accuracy_after": [circuit.accuracy_after for circuit in circuits],
        "seconds": [1.5 for _ in circuits],
        "overlap": {key: overlap(masks) for key, masks in flat.items()},
        "random_overlap": {key: float(masks.mean()) / 2 for key, masks in flat.items()},
        "inside": {layer: [inside(layer, circuit) for circuit in circuits] for layer in clustered},
        "random_inside": {
            layer: (partitions[layer].sizes().prod(1) / circuits[0].masks[layer].numel()).tolist()
            for layer in clustered
        },
        "information": dict.fromkeys(["all", *clustered], 0.1),
        "random_information": dict.fromkeys(["all", *clustered], 0.01),
    }


def cluster_shares(partition: Partition, classes: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(partition.num_clusters, classes, generator=generator)
    return {"only": table.tolist(), "without": (1 - 0.5 * table).tolist()}


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Means over labels, then over seeds, of a few of the measures."""

    def values(kind: str, read: Any) -> list[float]:
        return [read(run) for run in results["runs"] if run["kind"] == kind]

    def pairs(overlap: list[list[float]]) -> float:
        numbers = [value for i, row in enumerate(overlap) for value in row[i + 1 :]]
        return sum(numbers) / max(len(numbers), 1)

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / len(numbers)

    kinds, layers = results["config"]["kinds"], results["config"]["layers"]
    readers: dict[str, dict[str, Any]] = {
        "model": {
            "accuracy": lambda run: run["accuracy"],
            "specialisation_only": lambda run: 0.25,
            "specialisation_without": lambda run: 0.5,
        }
    }
    for layer in layers:
        name = f"clusterability:{layer}"
        readers["model"][name] = lambda run, layer=layer: run["clusterability"][layer]
    for criterion in results["config"]["criteria"]:
        measures_of = lambda run, criterion=criterion: run["criteria"][criterion]  # noqa: E731
        readers[criterion] = {
            "size": lambda run, measures_of=measures_of: mean(measures_of(run)["size"]),
            "overlap": lambda run, measures_of=measures_of: pairs(measures_of(run)["overlap"]["all"]),
            "information": lambda run, measures_of=measures_of: measures_of(run)["information"]["all"],
            "random_overlap": lambda run, measures_of=measures_of: measures_of(run)["random_overlap"]["all"],
            "information:regularised": lambda run: 0.1,
            "random_information:regularised": lambda run: 0.01,
        }
        for layer in layers:
            readers[criterion][f"size:{layer}"] = lambda run, measures_of=measures_of, layer=layer: mean(
                measures_of(run)["sizes"][layer]
            )
        for layer in measures_of(results["runs"][0])["inside"]:
            readers[criterion][f"inside:{layer}"] = lambda run, measures_of=measures_of, layer=layer: mean(
                [sum(row) for row in measures_of(run)["inside"][layer]]
            )
    summary: dict[str, Any] = {}
    for group, measures in readers.items():
        for name, read in measures.items():
            by_kind = {kind: values(kind, read) for kind in kinds}
            entry: dict[str, Any] = {}
            for kind, numbers in by_kind.items():
                average, half = mean_interval(numbers)
                entry[kind] = {"mean": average, "interval": half, "values": numbers}
            if len(kinds) == 2:
                average, half = paired_interval(by_kind["modular"], by_kind["plain"])
                effect = None if half is None else 1.25
                entry["difference"] = {"mean": average, "interval": half, "effect_size": effect}
            summary.setdefault(group, {})[name] = entry
    if len(kinds) == 2:
        for criterion in results["config"]["criteria"]:
            sizes = (
                [run["criteria"][criterion]["size"] for run in results["runs"] if run["kind"] == kind]
                for kind in ("plain", "modular")
            )
            summary[criterion]["by_class"] = size_changes(*sizes)
    return summary


def claims(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One claim of each verdict, with texts as long as real ones and the numbers of the summary."""
    if len(results["config"]["kinds"]) < 2:
        return []
    listed = []
    for criterion in results["config"]["criteria"]:
        for claim, measure_name, verdict, statement, denied_by in (
            ("disjoint", "overlap", "supported", "Circuits of different classes overlap less", None),
            ("smaller", "size", "contradicted", "Circuits are smaller in modular models", None),
            ("specialised", "information", "undecided", "Clusters specialise in classes", "arXiv 2 v3"),
        ):
            entry = results["summary"][criterion][measure_name]
            plain, modular = (entry[kind]["mean"] for kind in ("plain", "modular"))
            difference = entry["difference"]
            listed.append(
                {
                    "claim": claim,
                    "criterion": criterion,
                    "statement": statement,
                    "source": "arXiv 1, 2 v1 and v2",
                    "denied_by": denied_by,
                    "verdict": verdict,
                    "text": f"modular {modular:.4f}, plain {plain:.4f}: the interval tells them apart or not",
                    "difference": difference["mean"],
                    "interval": difference["interval"],
                    "effect_size": difference["effect_size"],
                    "p_value": None if difference["interval"] is None else 0.01,
                    "p_adjusted": None if difference["interval"] is None else 0.04,
                    "seeds": len(results["config"]["seeds"]),
                }
            )
    return listed


def write_run(
    folder: Path,
    *,
    kinds: Sequence[str] = ("plain", "modular"),
    seeds: Sequence[int] = (42, 43, 44),
    classes: Sequence[str] = CLASSES,
    criteria: Sequence[str] = ("loss", "balanced"),
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    clusters: int = 3,
    unclustered: Sequence[str] = (),
) -> dict[str, Any]:
    """Write circuits.json, the partitions and the circuits' files; return what circuits.json holds."""
    partitions = {
        name: Partition.blocks(shape, clusters) for name, shape in shapes.items() if name not in unclustered
    }
    runs = []
    for seed in seeds:
        for kind in kinds:
            name = f"{kind}-seed{seed}"
            where = "." if len(kinds) * len(seeds) == 1 else name
            save_partitions(folder / where / "partitions.npz", partitions)
            measured = {}
            for criterion in criteria:
                circuits = [
                    random_circuit(label, criterion, partitions, shapes, kind == "modular", seed)
                    for label in range(len(classes))
                ]
                for circuit in circuits:
                    circuit.save(folder / where / "circuits" / criterion / f"label-{circuit.label}.npz")
                measured[criterion] = measure(circuits, partitions)
            shares = {
                layer: cluster_shares(partition, len(classes), seed + index)
                for index, (layer, partition) in enumerate(partitions.items())
            }
            runs.append(
                {
                    "name": name,
                    "kind": kind,
                    "seed": seed,
                    "folder": where,
                    "accuracy": 0.6 + 0.01 * math.sin(len(runs)),
                    "clusterability": dict.fromkeys(shapes, 0.3 if kind == "plain" else 0.9),
                    "class_accuracy": [0.5 + 0.4 * label / len(classes) for label in range(len(classes))],
                    "cluster_accuracy": shares,
                    "criteria": measured,
                }
            )
    return finish(folder, runs, kinds, seeds, classes, criteria, list(shapes))


def finish(
    folder: Path,
    runs: list[dict[str, Any]],
    kinds: Sequence[str],
    seeds: Sequence[int],
    classes: Sequence[str],
    criteria: Sequence[str],
    layers: Sequence[str],
) -> dict[str, Any]:
    """Summarise the runs, and write circuits.json; return what it holds."""
    results: dict[str, Any] = {
        "config": {
            "data": "digits",
            "data_fingerprint": "472752740b774253",
            "model": "auto",
            "classes": list(classes),
            "labels": list(range(len(classes))),
            "criteria": list(criteria),
            "tolerance": 0.0,
            "layers": list(layers),
            "seeds": list(seeds),
            "kinds": list(kinds),
            "regularised_layers": [layers[len(layers) // 2]],
            "enmeshment_weight": 0.7,
            "num_clusters": 4,
            "epochs": {"plain": 60, "modular": 60},
            "images": None,
            "draws": 20,
            "seed": 0,
            "command": "modfast circuits out/demo --criteria loss balanced",
        },
        "environment": environment(),
        "runs": runs,
    }
    results["summary"] = summarise(results)
    results["claims"] = claims(results)
    results["note"] = comparisons_note(results["claims"])
    write_json(folder / "circuits.json", results)
    return results
