"""The circuits that lie beside a run: which files they are, and how they were found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .circuit import Circuit
from .circuit_checkpoint import walk_file
from .files import read_json, write_json

CIRCUITS = "circuits.json"
REPORT = "circuits.html"
_FOLDER = "circuits"
_SETTINGS = "settings.json"
_WALKS = "unfinished"


class CircuitFolder:
    """The circuits of one model by one criterion, a file for each label, and the settings of all of them.

    Args:
        run: the model's folder.
        settings: all that decides which circuit a label has, as JSON holds it; ``criterion`` and
            ``tolerance`` among it.

    Example:
        >>> import tempfile, torch
        >>> kept = CircuitFolder(tempfile.mkdtemp(), {"criterion": "loss", "tolerance": 0.0})
        >>> kept.save(Circuit(3, {"fc": torch.eye(2, dtype=torch.bool)}, "loss", 0.0, 1, 0.5, 0.4, 1.0, 1.0))
        >>> kept.holds(3), kept.holds(4), kept.load(3).size
        (True, False, 0.5)
    """

    def __init__(self, run: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        self.path = Path(run) / _FOLDER / str(self.settings["criterion"])

    def check(self) -> None:
        """Raises unless the circuits that are here, if any, were found with these settings.

        Raises:
            ValueError: they were not, or nothing says how they were.
        """
        path = self.path / _SETTINGS
        if not path.exists():
            if any(self.path.glob("label-*.npz")):
                raise ValueError(f"{self.path} holds circuits but no {_SETTINGS}: --overwrite replaces them")
            return
        try:
            found = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}: --overwrite replaces it") from error
        differing = [
            f"{name} {found.get(name) if isinstance(found, dict) else None!r}, not {wanted!r}"
            for name, wanted in self.settings.items()
            if not isinstance(found, dict) or found.get(name) != wanted
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds circuits that were found with {'; '.join(differing)}: "
                "--overwrite replaces them"
            )

    def holds(self, label: int) -> bool:
        """Whether the label's circuit is here."""
        return self._file(label).exists()

    def begin(self) -> Path:
        """Say how what will lie here is found, before any does; returns the folder of unfinished walks."""
        if not (self.path / _SETTINGS).exists():
            write_json(self.path / _SETTINGS, self.settings)
        return self.path / _WALKS

    def save(self, circuit: Circuit) -> None:
        """Keep a circuit, whole or not at all; how far its walk was is no longer of use."""
        walks = self.begin()
        circuit.save(self._file(circuit.label))
        (walks / walk_file(circuit.label)).unlink(missing_ok=True)

    def load(self, label: int) -> Circuit:
        """The label's circuit.

        Raises:
            FileNotFoundError: it is not here.
            ValueError: the file is damaged, or holds another circuit.
        """
        path = self._file(label)
        circuit = Circuit.load(path)
        wanted = {"label": label, **{name: self.settings[name] for name in ("criterion", "tolerance")}}
        found = {name: getattr(circuit, name) for name in wanted}
        if found != wanted:
            raise ValueError(f"{path} holds a circuit of {found}, not {wanted}: --overwrite replaces it")
        return circuit

    def _file(self, label: int) -> Path:
        return self.path / f"label-{label}.npz"


def held_circuits(folder: str | os.PathLike[str]) -> list[Path]:
    """All files about circuits in a folder and the runs within it."""
    kept = f"{_FOLDER}/*"
    files = (f"{kept}/{_SETTINGS}", f"{kept}/label-*.npz", f"{kept}/{_WALKS}/label-*.npz")
    return _found(folder, CIRCUITS, REPORT, *files)


def unfinished_circuits(folder: str | os.PathLike[str]) -> list[Path]:
    """What a process that was killed while it wrote one of them left behind."""
    kept = f"{_FOLDER}/*"
    files = (f"{kept}/.settings-*", f"{kept}/.label-*", f"{kept}/{_WALKS}/.label-*")
    return _found(folder, ".circuits-*", *files)


def _found(folder: str | os.PathLike[str], *patterns: str) -> list[Path]:
    return [Path(path) for pattern in patterns for path in sorted(Path(folder).rglob(pattern))]


def read_circuits(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``circuits.json`` of a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is damaged.
    """
    path = Path(folder) / CIRCUITS
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {CIRCUITS}: `modfast circuits {folder}` finds them")
    results = read_json(path)
    if not isinstance(results, dict) or not {"config", "runs", "summary", "claims", "note"} <= set(results):
        raise ValueError(f"{path} is no table of circuits")
    return results
