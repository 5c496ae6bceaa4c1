"""The pages of unit circuits that ``modfast circuits --units`` wrote, from their files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modfast.circuits.units.folder import UNIT_CIRCUITS, UNIT_REPORT, load_run_circuit, read_unit_circuits
from modfast.run_folder import OutputExistsError, RunFolder

from .page import write_unit_page

# What a page tells beside how its circuits were chosen, by its name in the results.
_TOLD = {
    "data": "data",
    "model": "model",
    "images": "most images of a class",
    "seed": "seed of random circuits",
    "command": "command",
}


def write_unit_reports(folder: str | os.PathLike[str], command: str = "report") -> list[Path]:
    """Write ``unit-circuits.html`` of a run, or of each model of a comparison, from its files.

    Args:
        folder: a folder in which ``modfast circuits --units`` found circuits. It holds
            ``unit-circuits.json``, and each model's folder within it (or it itself)
            ``unit-circuits/label-3.npz``.
        command: the command that writes, one of :data:`modfast.manifest.COMMANDS`.

    Returns:
        The paths of the pages.

    Raises:
        FileNotFoundError: one of these files is missing.
        ValueError: one of them is damaged, or they do not fit each other.
        OutputExistsError: there is an ``unit-circuits.html`` that modfast did not write.
    """
    results = read_unit_circuits(folder)
    try:
        return [_write(Path(folder), results, run, command) for run in results["runs"]]
    except KeyError as error:
        raise ValueError(f"{Path(folder) / UNIT_CIRCUITS} is damaged: it lacks {error}") from error


def _write(folder: Path, results: Mapping[str, Any], run: Mapping[str, Any], command: str) -> Path:
    config, path = results["config"], folder / str(run["folder"])
    circuits = [load_run_circuit(path, label) for label in config["labels"]]
    settings = {"run": run["name"], **{told: config[name] for name, told in _TOLD.items()}}
    target = RunFolder(path, command)

    def write(page: os.PathLike[str]) -> None:
        write_unit_page(
            page,
            circuits,
            run["clusters"],
            title=f"Unit circuits of {run['name']}: {config['data']}",
            settings=settings,
            seed=config["seed"],
        )

    if not target.draw({UNIT_REPORT: write}):
        raise OutputExistsError(target.left[-1])
    return path / UNIT_REPORT
