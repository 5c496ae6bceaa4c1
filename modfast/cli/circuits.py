"""``modfast circuits``: which weights, or units, each class needs, in the models of a finished folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modfast.circuits.folder import REPORT
from modfast.circuits.units.folder import UNIT_REPORT
from modfast.data.dataset import Dataset
from modfast.experiment.circuits import find_run_circuits
from modfast.experiment.settings import CircuitConfig, UnitCircuitConfig
from modfast.experiment.trained_models import trained_on
from modfast.experiment.unit_circuits import find_run_unit_circuits
from modfast.report.circuits.answer import answer_lines
from modfast.report.circuits.table import circuits_table, claim_lines
from modfast.report.unit_circuits.table import unit_circuits_table
from modfast.train.distributed import Ranks

from .display import Display
from .machine import load_data, take_device
from .parsers.options import as_tuple


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Find the circuits, and show their measures."""
    config = ranks.every(lambda: _unit_config(options) if options.units else _config(options))
    ranks.every(lambda: take_device(config.device, ranks))
    data = ranks.every(lambda: trained_on(options.out))
    dataset = load_data(data if options.data is None else options.data, ranks)
    flags = {"resume": options.resume, "overwrite": options.overwrite}
    with Display(shown=ranks.is_first) as display:
        if isinstance(config, UnitCircuitConfig):
            _find_unit_circuits(Path(options.out), dataset, config, display, ranks, **flags)
        else:
            find_circuits(Path(options.out), dataset, config, display, ranks, **flags)


def _config(options: argparse.Namespace) -> CircuitConfig:
    """Return the configuration for circuits of weights."""
    _refuse(options, "are for circuits of units: add --units", "units_method", "ablation")
    return CircuitConfig(
        criteria=tuple(options.criterion or CircuitConfig.criteria),
        tolerance=options.tolerance,
        labels=as_tuple(options.labels),
        images=options.images,
        layers=as_tuple(options.layers),
        seed=options.seed,
        device=options.device,
        threads=options.threads,
    )


def _unit_config(options: argparse.Namespace) -> UnitCircuitConfig:
    """Return the configuration for circuits of units."""
    _refuse(options, "are for circuits of weights: leave --units out", "criterion", "layers")
    return UnitCircuitConfig(
        method=options.units_method or UnitCircuitConfig.method,
        ablation=options.ablation or UnitCircuitConfig.ablation,
        tolerance=options.tolerance,
        labels=as_tuple(options.labels),
        images=options.images,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
    )


def _refuse(options: argparse.Namespace, why: str, *names: str) -> None:
    """Raise a ValueError if options are given that would have no effect."""
    if any(getattr(options, name) is not None for name in names):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"{flags} {why}")


def find_circuits(
    folder: Path,
    dataset: Dataset,
    config: CircuitConfig,
    display: Display,
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Find the circuits of a folder's models, while the display is on."""
    results = find_run_circuits(
        folder,
        dataset,
        config,
        resume=resume,
        overwrite=overwrite,
        on_step=display.on_walk,
        on_circuits=display.on_circuits,
        group=ranks.group,
    )
    show_circuits(results, folder, display)


def show_circuits(results: Mapping[str, Any], folder: Path, display: Display) -> None:
    """Print the table of circuits, the verdicts on the paper's claims, and last the answer in five lines."""
    display.table(circuits_table(results), folder)
    for line in claim_lines(results):
        display.note(line)
    answer = answer_lines(results)
    if answer:
        display.note("")
        for line in answer:
            display.note(line)
        display.note(f"The report with pictures: {folder / REPORT}")


def _find_unit_circuits(
    folder: Path,
    dataset: Dataset,
    config: UnitCircuitConfig,
    display: Display,
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Find the unit circuits of a folder's models, while the display is on."""
    results = find_run_unit_circuits(
        folder,
        dataset,
        config,
        resume=resume,
        overwrite=overwrite,
        on_step=display.on_unit_search,
        on_circuits=display.on_unit_circuits,
        group=ranks.group,
    )
    show_unit_circuits(results, folder, display)


def show_unit_circuits(results: Mapping[str, Any], folder: Path, display: Display) -> None:
    """Print the table of unit circuits, and where their pages are."""
    display.table(unit_circuits_table(results), folder)
    for run in results["runs"]:
        display.note(f"The units of {run['name']}: {folder / run['folder'] / UNIT_REPORT}")
