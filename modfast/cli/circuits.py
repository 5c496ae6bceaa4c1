"""``modfast circuits``: which weights, or units, each class needs, in the models of a finished folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modfast.circuit import CRITERIA
from modfast.circuits.folder import REPORT
from modfast.circuits.units.folder import UNIT_REPORT
from modfast.circuits.units.unit_circuit import METHODS
from modfast.data.dataset import Dataset
from modfast.experiment.circuits import find_run_circuits
from modfast.experiment.trained_models import CircuitConfig, trained_on
from modfast.experiment.unit_circuits import find_run_unit_circuits
from modfast.experiment.unit_models import RUN_ABLATIONS, UnitCircuitConfig
from modfast.report.circuits.answer import answer_lines
from modfast.report.circuits.table import circuits_table, claim_lines
from modfast.report.unit_circuits.table import unit_circuits_table
from modfast.train.distributed import Ranks

from .display import Display
from .machine import load_data, take_device
from .options import Parsers, as_tuple, machine_options


def add_parser(commands: Parsers) -> argparse.ArgumentParser:
    """Add the command and its options."""
    parser = commands.add_parser(
        "circuits",
        parents=[machine_options()],
        help="find and compare the circuits of a finished folder",
        description="Find which weights each class needs, in the model of a finished run or in every model "
        "of a comparison, compare these circuits, and say what they show of the paper's claims. With --units "
        "find which neurons, channels and heads it needs, and draw them.",
    )
    parser.add_argument("out", metavar="RUN", help="folder that train or reproduce wrote")
    parser.add_argument(
        "--units",
        action="store_true",
        help="circuits of units (neurons, channels, heads) instead of weights, in any model that "
        "modfast.read_network can read; what must not fall is the log-likelihood of the class",
    )
    parser.add_argument(
        "--units-method",
        choices=METHODS,
        help="attribution: the units of highest score, fast; greedy: decides unit by unit, mostly for fewer "
        "(default: attribution)",
    )
    parser.add_argument(
        "--ablation",
        choices=RUN_ABLATIONS,
        help="what other units are replaced by: zero, or mean, their mean over the test images "
        "(default: zero)",
    )
    parser.add_argument(
        "--criterion",
        nargs="+",
        choices=CRITERIA,
        metavar="CRITERION",
        help="what must not get worse: loss, as published; loss_and_accuracy; or balanced, the loss in "
        "telling the class from as many images of others, for circuits that must recognise it "
        "(default: loss balanced)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=CircuitConfig.tolerance,
        metavar="NATS",
        help="how much the loss may rise (default: %(default)s)",
    )
    parser.add_argument(
        "--labels", type=int, nargs="+", metavar="N", help="numbers of the classes (default: all)"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="at most this many test images of each class (default: all)"
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to prune, names or globs (default: the linear layers that the model ends in)",
    )
    parser.add_argument("--data", help="where the data is now (default: where it was for training)")
    parser.add_argument(
        "--seed",
        type=int,
        default=CircuitConfig.seed,
        help="seed for drawing images and random circuits (default: %(default)s)",
    )
    return parser


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
