"""The files of a run's unit circuits, and the settings with which the circuits were found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modfast.circuits.folder import KeptCircuits, read_report, require_same
from modfast.files import read_json
from modfast.run_folder import Plan, Planned

from .greedy import read_unit_walk
from .unit_circuit import UnitCircuit

UNIT_CIRCUITS = "unit-circuits.json"
UNIT_REPORT = "unit-circuits.html"
COMMAND = "unit-circuits"
_FOLDER = "unit-circuits"


class UnitCircuitFolder(KeptCircuits[UnitCircuit]):
    """The unit circuits of one model, a file for each class, and their common settings.

    Args:
        run: the model's folder.
        settings: everything that determines the circuits, as JSON values, with the keys ``method``,
            ``ablation`` and ``tolerance``.
        classes: the name of each class.
        process: the index of this process among those that find circuits.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        settings: Mapping[str, Any],
        classes: tuple[str, ...],
        process: int = 0,
    ) -> None:
        self._classes = classes
        super().__init__(run, _FOLDER, COMMAND, settings, process, self._read_circuit, read_unit_walk)

    def _read_circuit(self, label: int, path: Path) -> UnitCircuit:
        circuit = UnitCircuit.load(path)
        settings = {name: self.settings[name] for name in ("method", "ablation", "tolerance")}
        require_same(path, circuit, {"name": self._classes[label], **settings})
        return circuit


def load_run_circuit(run: str | os.PathLike[str], label: int) -> UnitCircuit:
    """Return the unit circuit of a class from a model's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its file is damaged.
    """
    return UnitCircuit.load(Path(run, _FOLDER, f"label-{label}.npz"))


def read_unit_circuits(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``unit-circuits.json`` of a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is damaged.
    """
    path = Path(folder) / UNIT_CIRCUITS
    if not path.exists():
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no {UNIT_CIRCUITS}: `modfast circuits {os.fspath(folder)} --units` "
            "finds them"
        )
    return _read_table(path)


def _read_table(path: Path) -> dict[str, Any]:
    results = read_json(path)
    if not isinstance(results, dict):
        raise ValueError(f"{path} is no table of unit circuits: it must hold a JSON object")
    kinds = {"config": dict, "runs": list, "summary": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(results.get(key), kind)]
    if wrong:
        raise ValueError(f"{path} is no table of unit circuits: it lacks {', '.join(wrong)}")
    return results


TABLE_PLAN: Plan = {UNIT_CIRCUITS: Planned(_read_table)}
"""The file of the results, in the folder of the run or comparison."""

PAGE_PLAN: Plan = {UNIT_REPORT: Planned(read_report, drawn_from=UNIT_CIRCUITS)}
"""The page, in the folder of each model."""
