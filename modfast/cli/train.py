"""``modfast train``: one model into a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modfast.data.dataset import Dataset
from modfast.energy.loss import EnmeshmentLoss
from modfast.experiment.protocols import PROTOCOLS, Protocol
from modfast.experiment.runs import train_run
from modfast.models import build_model
from modfast.partition import Partition, load_partitions
from modfast.report.tables import run_table
from modfast.train.distributed import Ranks

from .display import Display
from .machine import load_data, take_device

# The models whose fc2 is the hidden layer that the paper regularises.
_HIDDEN_FC2 = ("auto", "cnn", "cnn4", "mlp", "mlp4")
# The options that are settings of a TrainConfig by the same name; without a value, the protocol's hold.
_SETTINGS = (
    "layers",
    "warmup_epochs",
    "affinity",
    "chained",
    "recluster_every",
    "enmeshment_weight",
    "ramp_epochs",
    "l1_weight",
    "keep",
    "optimizer",
    "batch_size",
    "learning_rate",
    "seed",
    "device",
    "threads",
    "precision",
)


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Train the model, and show its last numbers."""
    dataset = load_data(options.data, ranks)
    partitions = given_partitions(options, ranks)
    protocol = ranks.every(lambda: chosen_protocol(options, ranks, dataset, partitions))
    with Display(shown=ranks.is_first) as display:
        results = train_run(
            dataset,
            protocol.model,
            protocol.config,
            options.out,
            partitions=partitions,
            resume=options.resume,
            overwrite=options.overwrite,
            progress=display.progress,
            group=ranks.group,
        )
        display.table(run_table(results), Path(options.out))


def given_partitions(options: argparse.Namespace, ranks: Ranks) -> dict[str, Partition] | None:
    """Return the partitions of ``--partitions``; None without that option."""
    if options.partitions is None:
        return None
    return ranks.every(lambda: load_partitions(options.partitions))


def chosen_protocol(
    options: argparse.Namespace,
    ranks: Ranks,
    dataset: Dataset,
    partitions: Mapping[str, Partition] | None,
) -> Protocol:
    """Return the protocol with the settings that the options change, after checking it with the model.

    Raises:
        ValueError: options contradict each other, or do not fit the model or the data.
    """
    if partitions is not None and options.clusters_from not in (None, "file"):
        raise ValueError(
            f"clusters_from must be 'file' or left out with --partitions, got {options.clusters_from!r}"
        )
    protocol = PROTOCOLS[options.protocol].for_data(options.data)
    given = options.clusters_from or ("file" if partitions is not None else protocol.config.clusters_from)
    # What is known of the paper's models is not known of others: there all linear layers are regularised.
    is_known = options.model in (None, protocol.model, *_HIDDEN_FC2)
    layers = protocol.config.layers if is_known else None
    settings: dict[str, Any] = {
        "layers": None if partitions is not None else layers,
        "clusters_from": given,
        "num_clusters": _num_clusters(options, partitions, protocol.config.num_clusters),
    }
    if given != "spectral":  # the protocol's say how it finds spectral ones
        settings |= {"affinity": "weights", "chained": False, "recluster_every": None}
    for name in _SETTINGS:
        value = getattr(options, name)
        if value is not None:
            settings[name] = tuple(value) if name == "layers" else value
    if options.epochs is not None:
        if options.warmup_epochs is None:
            protocol = protocol.with_epochs(options.epochs)
        else:
            protocol = replace(protocol, plain_epochs=options.epochs)
            settings["epochs"] = options.epochs
    protocol = replace(
        protocol,
        config=replace(protocol.config, **settings),
        model=protocol.model if options.model is None else options.model,
    )
    take_device(protocol.config.device, ranks)
    model = build_model(protocol.model, dataset.image_shape, dataset.num_classes)
    clusters = protocol.config.num_clusters if partitions is None else partitions
    EnmeshmentLoss(model, clusters, protocol.config.layers)
    return protocol


def _num_clusters(
    options: argparse.Namespace, partitions: Mapping[str, Partition] | None, default: int
) -> int:
    """Return the number of clusters; layers without a partition are measured by so many blocks, too."""
    counts = sorted({partition.num_clusters for partition in (partitions or {}).values()})
    if options.clusters is None:
        return counts[0] if len(counts) == 1 else default
    if counts and counts != [options.clusters]:
        raise ValueError(
            f"clusters must be those of --partitions ({counts}) or left out, got {options.clusters}"
        )
    return int(options.clusters)
