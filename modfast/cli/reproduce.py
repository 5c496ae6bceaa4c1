"""``modfast reproduce``: the paper's comparison of plain and modular models."""

from __future__ import annotations

import argparse
from pathlib import Path

from modfast.arguments import Integer, check
from modfast.data.dataset import Dataset
from modfast.experiment.circuits import check_circuit_files
from modfast.experiment.runs import reproduce
from modfast.experiment.settings import CircuitConfig
from modfast.experiment.trained_models import check_circuits
from modfast.models import build_model
from modfast.report.tables import results_table
from modfast.train.distributed import Ranks

from .circuits import find_circuits
from .display import Display
from .machine import load_data
from .train import chosen_protocol, given_partitions

# A model takes seconds at least, so more would take months; their list takes memory before the first one.
_SEEDS = Integer(1, 100_000)


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Train all models, show how they compare, and find their circuits if requested."""
    dataset = load_data(options.data, ranks)
    partitions = given_partitions(options, ranks)
    protocol = ranks.every(lambda: chosen_protocol(options, ranks, dataset, partitions))
    check("seeds", options.seeds, _SEEDS)
    seeds = range(options.seed, options.seed + options.seeds)
    flags = {"resume": options.resume, "overwrite": options.overwrite}
    circuits = None
    if options.circuits is not None:
        circuits = ranks.every(lambda: _circuit_config(options, dataset, protocol.model))
        # Files in their way are reported before hours of training.
        ranks.first(lambda: check_circuit_files(options.out, seeds, dataset, circuits, **flags))
    folder = Path(options.out)
    with Display(shown=ranks.is_first) as display:
        results = reproduce(
            dataset,
            protocol.model,
            protocol.config,
            folder,
            seeds=seeds,
            plain_epochs=protocol.plain_epochs,
            partitions=partitions,
            progress=display.progress,
            group=ranks.group,
            **flags,
        )
        display.table(results_table(results), folder)
        if circuits is not None:
            find_circuits(folder, dataset, circuits, display, ranks, **flags)


def _circuit_config(options: argparse.Namespace, dataset: Dataset, model: str) -> CircuitConfig:
    """Return the configuration for circuits, after checking it with the model."""
    config = CircuitConfig(
        criteria=tuple(options.circuits or CircuitConfig.criteria),
        device=options.device,
        threads=options.threads,
    )
    check_circuits(build_model(model, dataset.image_shape, dataset.num_classes), dataset, config)
    return config
