"""``modfast train``: one model into a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from modfast.data.dataset import Dataset
from modfast.energy.loss import EnmeshmentLoss
from modfast.experiment.runs import train_run
from modfast.models import build_model
from modfast.partition import Partition, load_partitions
from modfast.report.tables import run_table
from modfast.train.config import TrainConfig
from modfast.train.distributed import Ranks

from .display import Display
from .machine import load_data, take_device
from .options import Parsers, as_tuple, training_options

# For the modular and for the plain model, as published (arXiv 2409.15747). The digits are 1,437 images: 60
# epochs of them are as many steps as two of CIFAR-10.
_EPOCHS = (21, 10)
_DIGITS_EPOCHS = (60, 60)


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "train",
        parents=[training_options()],
        help="train one model",
        description="Train one model into a folder.",
    )
    parser.add_argument(
        "--seed", type=int, default=TrainConfig.seed, help="seed of random choices (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"passes over the data (default: {_EPOCHS[0]}, as published; {_DIGITS_EPOCHS[0]} for digits)",
    )
    parser.add_argument(
        "--partitions", metavar="FILE", help="clusters of each layer, from modfast.save_partitions"
    )
    return parser


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Train the model, and show its last numbers."""
    dataset = load_data(options.data, ranks)
    epochs, _ = default_epochs(options)
    partitions = None
    if options.partitions is not None:
        partitions = ranks.every(lambda: load_partitions(options.partitions))
    config = ranks.every(lambda: training_config(options, ranks, dataset, epochs, partitions))
    with Display(shown=ranks.is_first) as display:
        results = train_run(
            dataset,
            options.model,
            config,
            options.out,
            partitions=partitions,
            resume=options.resume,
            overwrite=options.overwrite,
            progress=display.progress,
            group=ranks.group,
        )
        display.table(run_table(results), Path(options.out))


def default_epochs(options: argparse.Namespace) -> tuple[int, int]:
    """Return the epochs of a modular and of a plain model."""
    if options.epochs is not None:
        return options.epochs, options.epochs
    return _DIGITS_EPOCHS if options.data == "digits" else _EPOCHS


def training_config(
    options: argparse.Namespace,
    ranks: Ranks,
    dataset: Dataset,
    epochs: int,
    partitions: Mapping[str, Partition] | None = None,
) -> TrainConfig:
    """Return the configuration that the options ask for, after checking it with the model."""
    layers = options.layers
    if layers is None and partitions is None and options.model in ("auto", "cnn", "cnn4", "mlp"):
        layers = ["fc2"]
    config = TrainConfig(
        enmeshment_weight=options.enmeshment_weight,
        layers=as_tuple(layers),
        num_clusters=_num_clusters(options, partitions),
        epochs=epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
    )
    take_device(config.device, ranks)
    model = build_model(options.model, dataset.image_shape, dataset.num_classes)
    EnmeshmentLoss(model, config.num_clusters if partitions is None else partitions, config.layers)
    return config


def _num_clusters(options: argparse.Namespace, partitions: Mapping[str, Partition] | None) -> int:
    """Return the number of clusters; layers without a partition are measured by so many blocks, too."""
    counts = sorted({partition.num_clusters for partition in (partitions or {}).values()})
    if options.clusters is None:
        return counts[0] if len(counts) == 1 else TrainConfig.num_clusters
    if counts and counts != [options.clusters]:
        raise ValueError(
            f"clusters must be those of --partitions ({counts}) or left out, got {options.clusters}"
        )
    return int(options.clusters)
