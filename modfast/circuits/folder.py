"""The files of a run's circuits, and the settings with which the circuits were found."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from modfast.circuit import Circuit
from modfast.files import open_to_read, read_json, write_json
from modfast.manifest import typed
from modfast.run_folder import Plan, Planned, RunFile, RunFolder

from .checkpoint import read_walk, walk_file
from .keys import ALL, layer_key

CIRCUITS = "circuits.json"
REPORT = "circuits.html"
_FOLDER = "circuits"
_SETTINGS = "settings.json"
_WALKS = "unfinished"


class _Saved(Protocol):
    def save(self, path: str | os.PathLike[str]) -> None: ...


Found = TypeVar("Found", bound=_Saved)


class KeptCircuits(Generic[Found]):
    """The circuits of one model that were found in one way, a file for each label, and their common settings.

    Args:
        run: the model's folder.
        inner: the folder within it that holds the circuits.
        command: the command that finds them, one of :data:`modfast.manifest.COMMANDS`.
        settings: everything that determines the circuits, as JSON values.
        process: the index of this process among those that find circuits.
        read: reads a circuit's file, and raises if it is no such circuit.
        read_walk: reads the file of an unfinished walk, and raises if it is another kind of file.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        inner: str,
        command: str,
        settings: Mapping[str, Any],
        process: int,
        read: Callable[[int, Path], Found],
        read_walk: Callable[[Path], object],
    ) -> None:
        self.settings = dict(settings)
        self.path = Path(run, inner)
        self._command, self._read, self._read_walk = command, read, read_walk
        self._circuits = RunFolder(run, command, inner, process)
        self._walks = RunFolder(run, command, os.path.join(inner, _WALKS), process)

    def plans(self, labels: Iterable[int]) -> list[tuple[RunFolder, Plan]]:
        """Return the plans of the files for the circuits of these labels, as a claim takes them."""
        circuits = {self._file(label).name: Planned(functools.partial(self._read, label)) for label in labels}
        walks = {walk_file(label): Planned(self._read_walk) for label in labels}
        settings = {_SETTINGS: Planned(lambda _: self.check())}
        return [(self._circuits, settings | circuits), (self._walks, walks)]

    def check(self, labels: Sequence[int] = ()) -> None:
        """Check that what the folder holds, if anything, was found with these settings and can be continued.

        Args:
            labels: the labels whose circuits to look for if the folder has no settings.

        Raises:
            ValueError: it was found with other settings, or nothing says with which; a file is damaged, or
                holds another circuit.
        """
        self._check_settings(labels)
        for label in labels:
            if self.holds(label):
                self.load(label)
            elif os.path.exists(walk := self._walks.path / walk_file(label)):
                self._read_walk(walk)

    def _check_settings(self, labels: Sequence[int]) -> None:
        path = self.path / _SETTINGS
        if not path.exists():
            held = [str(self._file(label)) for label in labels if self.holds(label)]
            if held:
                raise ValueError(
                    f"{self.path} holds circuits but no {_SETTINGS}, which would say how they were found: "
                    f"move {', '.join(held)} away, or --overwrite replaces what "
                    f"`{typed(self._command)}` wrote"
                )
            return
        try:
            stored = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}: --overwrite replaces it") from error
        differing = [
            f"{name} {stored.get(name) if isinstance(stored, dict) else None!r}, not {wanted!r}"
            for name, wanted in self.settings.items()
            if not isinstance(stored, dict) or stored.get(name) != wanted
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds circuits that were found with {'; '.join(differing)}: "
                "--overwrite replaces them"
            )

    def holds(self, label: int) -> bool:
        """Return whether the folder holds the label's circuit."""
        return self._file(label).exists()

    def begin(self) -> RunFolder:
        """Write the settings, before any circuit; return the folder of unfinished walks."""
        if not (self.path / _SETTINGS).exists():
            write_json(self._circuits.file(_SETTINGS), self.settings)
        return self._walks

    def walk(self, label: int) -> RunFile:
        """Return the file of the label's unfinished walk, entered in the manifest."""
        return self.begin().file(walk_file(label))

    def keep(self, label: int, circuit: Found) -> None:
        """Write a circuit's file, whole or not at all, and remove the file of its walk."""
        walks = self.begin()
        circuit.save(self._circuits.file(self._file(label).name))
        walks.remove(walk_file(label))

    def load(self, label: int) -> Found:
        """Return the label's circuit.

        Raises:
            FileNotFoundError: the folder does not hold it.
            ValueError: the file is damaged, or holds another circuit.
        """
        return self._read(label, self._file(label))

    def gather(self) -> None:
        """Merge the manifests of all processes; call it when all circuits are found."""
        self._circuits.gather()
        self._walks.gather()

    def clear(self) -> None:
        """Remove the circuits and unfinished walks of earlier commands."""
        self._circuits.clear()
        self._walks.clear()

    def _file(self, label: int) -> Path:
        return self.path / f"label-{label}.npz"


class CircuitFolder(KeptCircuits[Circuit]):
    """The circuits of one model by one criterion, a file for each label, and their common settings.

    Args:
        run: the model's folder.
        settings: everything that determines the circuits, as JSON values, with the keys ``criterion`` and
            ``tolerance``.
        process: the index of this process among those that find circuits.

    Example:
        >>> import tempfile, torch
        >>> folder = CircuitFolder(tempfile.mkdtemp(), {"criterion": "loss", "tolerance": 0.0})
        >>> masks = {"fc": torch.eye(2, dtype=torch.bool)}
        >>> folder.save(Circuit(3, masks, "loss", 0.0, 1, 0.5, 0.4, 1.0, 1.0))
        >>> folder.holds(3), folder.holds(4), folder.load(3).size
        (True, False, 0.5)
    """

    def __init__(self, run: str | os.PathLike[str], settings: Mapping[str, Any], process: int = 0) -> None:
        inner = os.path.join(_FOLDER, str(settings["criterion"]))
        super().__init__(run, inner, "circuits", settings, process, self._read_circuit, read_walk)

    def save(self, circuit: Circuit) -> None:
        """Write a circuit's file, whole or not at all, and remove the file of its walk."""
        self.keep(circuit.label, circuit)

    def _read_circuit(self, label: int, path: Path) -> Circuit:
        circuit = Circuit.load(path)
        require_same(
            path,
            circuit,
            {"label": label, **{name: self.settings[name] for name in ("criterion", "tolerance")}},
        )
        return circuit


def require_same(path: Path, circuit: object, wanted: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a circuit that was read from ``path`` has these attributes."""
    stored = {name: getattr(circuit, name) for name in wanted}
    if stored != wanted:
        raise ValueError(f"{path} holds a circuit of {stored}, not {wanted}: --overwrite replaces it")


def read_circuits(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``circuits.json`` of a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is damaged; or it is of an older version, which wrote a layer named ``all`` under the
            key of all layers together, or judged each claim as if it were the only one.
    """
    path = Path(folder) / CIRCUITS
    if not path.exists():
        raise FileNotFoundError(
            f"{os.fspath(folder)} holds no {CIRCUITS}: `modfast circuits {os.fspath(folder)}` finds them"
        )
    results = _read_table(path)
    config = results["config"]
    if not isinstance(config, dict) or not isinstance(config.get("layers"), list):
        raise ValueError(f"{path} is damaged: its config lacks 'layers', a list of the names of layers")
    anew = f"`modfast circuits {os.fspath(folder)} --resume` writes it anew from the circuits"
    if any(isinstance(claim, dict) and "p_adjusted" not in claim for claim in results["claims"]):
        raise ValueError(
            f"{path} judges each claim as if it were the only one, as older versions of modfast did: {anew}"
        )
    if ALL in config["layers"]:
        try:
            measures = [by_criterion for run in results["runs"] for by_criterion in run["criteria"].values()]
            is_older = any(layer_key(ALL) not in by_criterion["overlap"] for by_criterion in measures)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: its runs lack a part ({error!r})") from error
        if is_older:
            raise ValueError(
                f"{path} takes the layer {ALL!r} for all layers together, as older versions of modfast did: "
                f"{anew}"
            )
    return results


def _read_table(path: Path) -> dict[str, Any]:
    results = read_json(path)
    if not isinstance(results, dict):
        raise ValueError(f"{path} is no table of circuits: it must hold a JSON object")
    missing = [key for key in ("config", "runs", "summary", "claims", "note") if key not in results]
    if missing:
        raise ValueError(f"{path} is no table of circuits: it lacks {', '.join(missing)}")
    return results


def read_report(path: Path) -> None:
    """Check that a file is a report: a page that modfast wrote."""
    begins = b"<!DOCTYPE html>\n<html"  # every report begins like this
    with open_to_read(path) as file:
        if file.read(len(begins)) != begins:
            raise ValueError(f"{path} is no report of modfast")


TABLE_PLAN: Plan = {
    CIRCUITS: Planned(_read_table),
    REPORT: Planned(read_report, drawn_from=CIRCUITS),
}
"""The files of the results, in the folder of the run or comparison."""
