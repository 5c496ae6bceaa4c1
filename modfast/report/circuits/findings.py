"""What a report on circuits is made of, read from a run's folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modfast.circuit import Circuit
from modfast.circuits.folder import CIRCUITS, read_circuits
from modfast.partition import load_partitions
from modfast.results import PARTITIONS

from .layout import Network, lay_out

# How many circuits are drawn for each criterion: more would repeat the impression and enlarge the file.
MOST_DRAWN = 4


@dataclass(frozen=True)
class Findings:
    """The results and circuits that a report is made of.

    Attributes:
        results: what ``circuits.json`` holds.
        circuits: the circuits that are drawn, all of the first seed, by kind, criterion and label.
        networks: the same circuits laid out, by the same keys.
        num_clusters: layer name to its number of clusters; layers without clusters are absent.
    """

    results: Mapping[str, Any]
    circuits: Mapping[tuple[str, str, int], Circuit]
    networks: Mapping[tuple[str, str, int], Network]
    num_clusters: Mapping[str, int]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings."""
        config: Mapping[str, Any] = self.results["config"]
        return config

    @property
    def kinds(self) -> Sequence[str]:
        """Plain and modular, or one of them."""
        kinds: Sequence[str] = self.config["kinds"]
        return kinds

    @property
    def names(self) -> list[str]:
        """The names of the classes whose circuits were searched for."""
        return [self.config["classes"][label] for label in self.config["labels"]]

    @property
    def shown_seed(self) -> int:
        """The seed whose circuits and clusters are drawn one by one."""
        seed: int = self.config["seeds"][0]
        return seed

    def runs(self, kind: str) -> list[Mapping[str, Any]]:
        """The runs of this kind, one for each seed."""
        return [run for run in self.results["runs"] if run["kind"] == kind]

    def shown_run(self, kind: str) -> Mapping[str, Any]:
        """The run of this kind whose circuits are drawn."""
        return next(run for run in self.runs(kind) if run["seed"] == self.shown_seed)

    def found(self, kind: str, criterion: str) -> list[Mapping[str, Any]]:
        """The measures of one criterion, for each seed."""
        return [run["criteria"][criterion] for run in self.runs(kind)]

    @property
    def over_seeds(self) -> str:
        """The seeds that a mean is taken over, in words."""
        seeds = self.config["seeds"]
        return f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"


def read_findings(folder: Path) -> Findings:
    """Read what the report is made of; raises as :func:`write_circuit_report` does."""
    results = read_circuits(folder)
    config = results["config"]
    circuits, networks = {}, {}
    num_clusters: dict[str, int] = {}
    for run in results["runs"]:
        if run["seed"] != config["seeds"][0]:
            continue
        partitions = load_partitions(folder / run["folder"] / PARTITIONS)
        num_clusters |= {
            layer: partitions[layer].num_clusters for layer in config["layers"] if layer in partitions
        }
        for criterion in config["criteria"]:
            for index, label in enumerate(config["labels"][:MOST_DRAWN]):
                drawn = run["kind"], criterion, label
                file = folder / run["folder"] / "circuits" / criterion / f"label-{label}.npz"
                circuits[drawn] = _read_circuit(file, folder, run["criteria"][criterion], index)
                networks[drawn] = lay_out(circuits[drawn], partitions)
    return Findings(results, circuits, networks, num_clusters)


def _read_circuit(file: Path, folder: Path, described: Mapping[str, Any], index: int) -> Circuit:
    """A circuit, if it is the one that the table in the folder describes at this index."""
    # Its settings may be others as well, with which --resume would refuse to go on.
    again = f"`modfast circuits {shlex.quote(str(folder))} --overwrite` finds all of them again"
    try:
        circuit = Circuit.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} of {folder / CIRCUITS} is missing: {again}") from error
    except ValueError as error:
        raise ValueError(f"{error}: {again}") from error
    if not _is_described(circuit, described, index):
        raise ValueError(f"{file} holds another circuit than {folder / CIRCUITS} describes: {again}")
    return circuit


def _is_described(circuit: Circuit, described: Mapping[str, Any], index: int) -> bool:
    """Whether the table describes this circuit at this index; None in the table fits any number."""
    numbers = {name: described[name][index] for name in ("size", "num_inputs", "loss_after")}
    return all(number is None or number == getattr(circuit, name) for name, number in numbers.items())
