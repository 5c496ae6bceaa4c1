"""Finds the circuits of a finished run, or of every model of a comparison, and saves them in its folder."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from modfast.circuit import CRITERIA, Circuit
from modfast.circuits.find import find_circuits
from modfast.circuits.folder import CIRCUITS, TABLE_PLAN, CircuitFolder
from modfast.data.dataset import Dataset
from modfast.files import write_json
from modfast.layers.layer import find_layers
from modfast.machine import command_line, environment, using_threads
from modfast.partition import Partition
from modfast.report.circuits.claims import comparisons_note, paper_claims
from modfast.report.circuits.summary import DRAWS, describe_circuits, summarize_circuits
from modfast.results import KINDS, RESULTS, read_results, run_name
from modfast.run_folder import Claim, RunFolder, claim
from modfast.train.distributed import Ranks

from .trained_models import (
    CircuitConfig,
    TrainedModel,
    check_circuits,
    circuit_settings,
    first_images,
    occurring_labels,
    open_models,
)

_OF_MODELS = ("accuracy", "clusterability", "class_accuracy", "cluster_accuracy")
# What results of earlier releases lack.
_OF_LATER_MODELS = ("label_semanticity", "search_space_reduction", "live")
_TEST_LOSS = "test_cross_entropy"

_Walk: TypeAlias = tuple[int, str, int]  # one circuit to find: model index, criterion, label


def find_run_circuits(
    folder: str | os.PathLike[str],
    dataset: Dataset,
    config: CircuitConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Callable[[str, str, int, int], None] | None = None,
    on_circuits: Callable[[str, str, Sequence[Circuit], float], None] | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Find the circuits of a run, or of every model of a comparison, and compare them.

    Each circuit is saved as it is found, in ``circuits/CRITERION/label-3.npz`` of its model's folder; at the
    end come ``circuits.json`` and ``circuits.html`` in ``folder``. Circuits are found on the test images.

    Args:
        folder: the folder that ``modfast train`` or ``modfast reproduce`` wrote.
        dataset: the images that the models were trained on.
        config: how circuits are found.
        resume: keep the circuits that are there, if they were found with the same settings in the same
            weights.
        overwrite: remove the circuits that ``modfast circuits`` found before, by any criterion.
        on_step: called with a model's name, the criterion, the number of weights decided so far and their
            total. With several processes only the first calls it, for its own part of the work.
        on_circuits: called with a model's name, the criterion, its circuits and the seconds that they took;
            with several processes as ``on_step`` is.
        group: processes that divide the circuits among them; all must see ``folder``. The first one writes
            the table.

    Returns:
        What ``circuits.json`` holds: ``config``, ``environment``, ``runs``, ``summary``
        (of :func:`modfast.report.circuits.summary.summarize_circuits`), ``claims`` (of
        :func:`modfast.report.circuits.claims.paper_claims`; none without plain and modular models) and
        ``note`` (how far to trust the claims together, and what so many seeds can show). Each run has what
        :func:`modfast.experiment.runs.evaluate` measured and, by criterion, what
        :func:`modfast.report.circuits.summary.describe_circuits` returns and ``seconds``: for each circuit
        the time since its process found the one before; None if the circuit was there already.

    Raises:
        FileNotFoundError: no run has finished there.
        OutputExistsError: ``folder`` holds circuits, and neither ``resume`` nor ``overwrite`` is given; or a
            file that ``modfast circuits`` would write is there and is not its own. Nothing is changed then.
        ValueError: ``folder`` holds something else, or models that were trained on other data or trained on
            since their results; the circuits that are there were found with other settings or weights; or a
            value of ``config`` does not fit. Nothing has been written then.
        RankError: raised on every process instead of the errors above, if the group has several.
    """
    ranks = Ranks(group)
    table = RunFolder(folder, "circuits")
    with using_threads(config.threads):
        runs = ranks.every(lambda: open_models(table, dataset, config, ranks.rank))
        labels = ranks.every(lambda: check_circuits(runs[0].model, dataset, config))
        ranks.first(
            lambda: _prepare(table, runs, labels, resume=resume, overwrite=overwrite, processes=ranks.size)
        )
        pending = ranks.first(lambda: _pending(runs, labels))
        walks = _Walks(dataset, config, pending[ranks.rank :: ranks.size])
        if ranks.is_first:
            walks.on_step, walks.on_circuits = on_step, on_circuits
        for index, run in enumerate(runs):
            # After each model, so that the failure of one process is noticed before all are done.
            ranks.every(functools.partial(walks.find, index, run))
        seconds = {walk: taken for by_walk in ranks.gather(walks.seconds) for walk, taken in by_walk.items()}

        def write() -> dict[str, Any]:
            for run in runs:
                for circuit_folder in run.kept.values():
                    circuit_folder.gather()
            results = _table(runs, labels, config, seconds)
            results["config"] |= _provenance(table.path, dataset, config, labels, ranks.size)
            write_json(table.file(CIRCUITS), results)
            draw_circuits(table)
            return results

        return ranks.first(write)


def draw_circuits(folder: str | os.PathLike[str]) -> Path:
    """Write ``circuits.html`` from ``circuits.json`` and the circuits' files; return its path."""
    # Imported here because it takes a second, for which finding circuits need not wait.
    from modfast.report.circuits.report import write_circuit_report

    return write_circuit_report(folder)


def trained_since(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> list[str]:
    """Return the names of the models that have changed since their circuits were found, or that are gone.

    Args:
        folder: the folder that :func:`find_run_circuits` wrote to.
        results: the contents of its ``circuits.json``.
    """

    def is_same(run: Mapping[str, Any]) -> bool:
        path = Path(folder) / run["folder"]
        if not (path / RESULTS).exists():
            return False
        now = read_results(path)
        return all(now.get(name) == run[name] for name in _OF_MODELS)

    return [run["name"] for run in results["runs"] if not is_same(run)]


def check_circuit_files(
    folder: str | os.PathLike[str],
    seeds: Sequence[int],
    dataset: Dataset,
    config: CircuitConfig,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Raise if the circuits of a comparison cannot be written, before its models are trained.

    Nothing is changed.

    Args:
        folder: the folder of the comparison.
        seeds: the seeds of its models.
        dataset: the images.
        config: how the circuits will be found.
        resume: as for :func:`find_run_circuits`.
        overwrite: as for :func:`find_run_circuits`.

    Raises:
        OutputExistsError, ValueError: as :func:`find_run_circuits` does.
    """
    labels = occurring_labels(dataset) if config.labels is None else config.labels
    settings = circuit_settings(config, dataset.fingerprint())
    circuit_folders = [
        CircuitFolder(Path(folder) / run_name(kind, seed), settings | {"criterion": criterion})
        for seed in seeds
        for kind in KINDS
        for criterion in config.criteria
    ]
    _claim(RunFolder(folder, "circuits"), circuit_folders, labels, resume=resume, overwrite=overwrite)


def _prepare(
    table: RunFolder,
    runs: Sequence[TrainedModel],
    labels: Sequence[int],
    *,
    resume: bool,
    overwrite: bool,
    processes: int,
) -> None:
    """Claim the files that circuits are written to, and remove those that are to be replaced."""
    circuit_folders = [circuit_folder for run in runs for circuit_folder in run.kept.values()]
    _claim(table, circuit_folders, labels, resume=resume, overwrite=overwrite).take(processes)
    if overwrite:
        for run in runs:
            for criterion in CRITERIA:
                if criterion not in run.kept:
                    CircuitFolder(run.folder, {"criterion": criterion}).clear()
    for circuit_folder in circuit_folders:
        circuit_folder.begin()


def _claim(
    table: RunFolder,
    circuit_folders: Sequence[CircuitFolder],
    labels: Sequence[int],
    *,
    resume: bool,
    overwrite: bool,
) -> Claim:
    """Return a claim to the files of circuits, after checking that circuits to be kept can be used."""
    for circuit_folder in circuit_folders if resume and not overwrite else ():
        circuit_folder.check(labels)
    plans = [
        (table, TABLE_PLAN),
        *(plan for circuit_folder in circuit_folders for plan in circuit_folder.plans(labels)),
    ]
    return claim(plans, resume=resume, overwrite=overwrite)


def _pending(runs: Sequence[TrainedModel], labels: Sequence[int]) -> list[_Walk]:
    """Return the walks whose circuits are not there yet."""
    return [
        (index, criterion, label)
        for index, run in enumerate(runs)
        for criterion, circuit_folder in run.kept.items()
        for label in labels
        if not circuit_folder.holds(label)
    ]


# --- Finding.


class _Walks:
    """The walks of this process, and their progress."""

    def __init__(self, dataset: Dataset, config: CircuitConfig, walks: Sequence[_Walk]) -> None:
        self.config, self.walks = config, walks
        self.images, self.labels = first_images(dataset, config.images)
        self.seconds: dict[_Walk, float] = {}
        self.on_step: Callable[[str, str, int, int], None] | None = None
        self.on_circuits: Callable[[str, str, Sequence[Circuit], float], None] | None = None

    def find(self, index: int, run: TrainedModel) -> None:
        """Find and save this process's circuits of one model."""
        for criterion, circuit_folder in run.kept.items():
            labels = [label for which, name, label in self.walks if (which, name) == (index, criterion)]
            if labels:
                self._find(index, run, criterion, labels, circuit_folder)

    def _find(
        self, index: int, run: TrainedModel, criterion: str, labels: list[int], circuit_folder: CircuitFolder
    ) -> None:
        began = last = time.perf_counter()
        before = len(self.seconds)

        def report(done: int, total: int) -> None:
            if self.on_step is not None:
                per_walk = total // len(labels)  # all walks decide the same number of weights
                self.on_step(run.name, criterion, before * per_walk + done, len(self.walks) * per_walk)

        def save(circuit: Circuit) -> None:
            nonlocal last
            circuit_folder.save(circuit)
            now = time.perf_counter()
            self.seconds[index, criterion, circuit.label] = now - last
            last = now

        device = next((parameter.device for parameter in run.model.parameters()), torch.device("cpu"))
        circuits = find_circuits(
            run.model,
            self.images.to(device),
            self.labels.to(device),
            classes=labels,
            layers=self.config.layers,
            criterion=criterion,
            tolerance=self.config.tolerance,
            seed=self.config.seed,
            checkpoint=circuit_folder.begin(),
            progress=report,
            on_circuit=save,
        )
        if self.on_circuits is not None:
            self.on_circuits(run.name, criterion, circuits, time.perf_counter() - began)


# --- The table.


def _table(
    runs: Sequence[TrainedModel],
    labels: Sequence[int],
    config: CircuitConfig,
    seconds: Mapping[_Walk, float],
) -> dict[str, Any]:
    records = []
    layers: list[str] = []
    for index, run in enumerate(runs):
        criteria = {}
        for criterion, circuit_folder in run.kept.items():
            circuits = [circuit_folder.load(label) for label in labels]
            layers = list(circuits[0].masks)
            criteria[criterion] = describe_circuits(circuits, _partitions(run, layers), config.seed)
            criteria[criterion]["seconds"] = [seconds.get((index, criterion, label)) for label in labels]
        results = run.results
        records.append(
            {
                "name": run.name,
                "kind": run.kind,
                "seed": results["config"]["seed"],
                "folder": "." if len(runs) == 1 else run.folder.name,
                **{name: results[name] for name in _OF_MODELS},
                **_later_measures(results),
                "criteria": criteria,
            }
        )
    regularised = runs[0].results["config"]["regularised_layers"]
    summary = summarize_circuits(records, regularised)
    kinds = list(dict.fromkeys(run.kind for run in runs))
    claims = paper_claims(summary) if len(kinds) > 1 else []
    return {
        "config": {"layers": layers, "kinds": kinds, "regularised_layers": regularised},
        "environment": environment(),
        "runs": records,
        "summary": summary,
        "claims": claims,
        "note": comparisons_note(claims),
    }


def _later_measures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return those measures that results of earlier releases lack; of the history only the last test loss."""
    found = {name: results[name] for name in _OF_LATER_MODELS if name in results}
    last = results["history"][-1]
    if _TEST_LOSS in last:
        found["history"] = [{_TEST_LOSS: last[_TEST_LOSS]}]
    return found


def _partitions(run: TrainedModel, layers: Sequence[str]) -> dict[str, Partition]:
    """Return the clusters of the circuits' layers, oriented as masks are: as the weight is stored."""
    transposed = {layer.name for layer in find_layers(run.model) if layer.stored_transposed}
    return {
        name: run.partitions[name].transpose() if name in transposed else run.partitions[name]
        for name in layers
        if name in run.partitions
    }


def _provenance(
    folder: Path, dataset: Dataset, config: CircuitConfig, labels: Sequence[int], processes: int
) -> dict[str, Any]:
    """Return the settings of the models and of the circuits that the numbers depend on."""
    trained = read_results(folder)["config"]
    return {
        **{name: trained[name] for name in ("model", "enmeshment_weight", "num_clusters", "epochs")},
        **{name: getattr(config, name) for name in ("tolerance", "images", "seed")},
        "criteria": list(config.criteria),
        "data": dataset.name,
        "data_fingerprint": trained["data_fingerprint"],
        "classes": list(dataset.classes),
        "labels": list(labels),
        "seeds": trained["seeds"] if "seeds" in trained else [trained["seed"]],
        "draws": DRAWS,
        "processes": processes,
        "command": command_line(),
    }
