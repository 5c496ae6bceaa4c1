"""Finds the unit circuits of a finished run, or of every model of a comparison, and saves them there."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from modfast.circuits.units.find import find_unit_circuit
from modfast.circuits.units.folder import COMMAND, PAGE_PLAN, TABLE_PLAN, UNIT_CIRCUITS
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.data.dataset import Dataset
from modfast.files import write_json
from modfast.machine import command_line, environment, using_threads
from modfast.metrics import class_log_likelihood
from modfast.report.circuits.summary import DRAWS
from modfast.report.unit_circuits.measures import asked_spaces, describe_unit_circuits
from modfast.report.unit_circuits.table import summarize_unit_circuits
from modfast.results import RESULTS, read_results
from modfast.run_folder import Plan, RunFolder, claim
from modfast.train.distributed import Ranks

from .trained_models import check_labels, first_images
from .unit_models import UnitCircuitConfig, UnitRun, open_unit_runs

_BATCH = 256

# What results say of a model, by which one knows it again.
_OF_MODELS = ("accuracy", "clusterability", "class_accuracy")

_Search: TypeAlias = tuple[int, int]  # one circuit to find: model index, label


def find_run_unit_circuits(
    folder: str | os.PathLike[str],
    dataset: Dataset,
    config: UnitCircuitConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Callable[[str, float, int], None] | None = None,
    on_circuits: Callable[[str, Sequence[UnitCircuit], float], None] | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Find the unit circuits of a run, or of every model of a comparison, and compare them.

    The task of a class is to recognise its test images; the metric is the mean log-likelihood of the class.
    Each circuit is saved as it is found, in ``unit-circuits/label-3.npz`` of its model's folder; at the end
    come ``unit-circuits.json`` in ``folder``, and ``unit-circuits.html`` in each model's.

    Args:
        folder: the folder that ``modfast train`` or ``modfast reproduce`` wrote.
        dataset: the images that the models were trained on.
        config: how circuits are found.
        resume: keep the circuits that are there, if they were found with the same settings in the same
            weights.
        overwrite: remove the unit circuits that were found before.
        on_step: called with a model's name, the number of circuits found so far, a part of the present one
            included, and their total. With several processes only the first calls it, for its own part of
            the work.
        on_circuits: called with a model's name, its circuits and the seconds that they took; with several
            processes as ``on_step`` is.
        group: processes that divide the circuits among them; all must see ``folder``. The first one writes
            the table and the pages.

    Returns:
        What ``unit-circuits.json`` holds: ``config``, ``environment``, ``runs`` and ``summary`` (of
        :func:`modfast.report.unit_circuits.table.summarize_unit_circuits`). Each run has ``name``, ``kind``,
        ``seed``, ``folder``, what its results say of it, ``spaces`` (each with its first unit and the one
        after its last), ``clusters`` (of each unit, -1 for none; None without clusters), ``circuits`` (of
        :func:`modfast.report.unit_circuits.measures.describe_unit_circuits`) and ``seconds``: for each
        circuit the time that it took; None if it was there already.

    Raises:
        FileNotFoundError: no run has finished there.
        OutputExistsError: ``folder`` holds unit circuits, and neither ``resume`` nor ``overwrite`` is given;
            or a file that would be written is there and is not the command's own. Nothing is changed then.
        ValueError: ``folder`` holds something else, or models that were trained on other data or trained on
            since their results; the circuits that are there were found with other settings or weights; a
            value of ``config`` does not fit; or a model's computation cannot be followed. Nothing has been
            written then.
        RankError: raised on every process instead of the errors above, if the group has several.
    """
    ranks = Ranks(group)
    with using_threads(config.threads):
        labels = ranks.every(lambda: check_labels(dataset, config.labels))
        runs = ranks.every(lambda: open_unit_runs(folder, dataset, config, ranks.rank))
        tables = _tables(folder, runs)
        ranks.first(
            lambda: _prepare(tables, runs, labels, resume=resume, overwrite=overwrite, processes=ranks.size)
        )
        pending = ranks.first(
            lambda: [
                (index, label)
                for index, run in enumerate(runs)
                for label in labels
                if not run.kept.holds(label)
            ]
        )
        searches = _Searches(dataset, config, pending[ranks.rank :: ranks.size])
        if ranks.is_first:
            searches.on_step, searches.on_circuits = on_step, on_circuits
        for index, run in enumerate(runs):
            # After each model, so that the failure of one process is noticed before all are done.
            ranks.every(functools.partial(searches.find, index, run))
        seconds = {key: taken for by_key in ranks.gather(searches.seconds) for key, taken in by_key.items()}

        def write() -> dict[str, Any]:
            for run in runs:
                run.kept.gather()
            results = _table(runs, labels, config, seconds)
            results["config"] |= _provenance(folder, dataset, config, labels, ranks.size)
            write_json(tables[0][0].file(UNIT_CIRCUITS), results)
            draw_unit_circuits(folder, COMMAND)
            return results

        return ranks.first(write)


def draw_unit_circuits(folder: str | os.PathLike[str], command: str) -> list[Path]:
    """Write the pages of a folder's unit circuits from their files, as ``command``; return their paths."""
    # Imported here because it takes a second, for which finding circuits need not wait.
    from modfast.report.unit_circuits.report import write_unit_reports

    return write_unit_reports(folder, command)


def units_trained_since(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> list[str]:
    """Return the names of the models that have changed since their unit circuits were found, or are gone.

    Args:
        folder: the folder that :func:`find_run_unit_circuits` wrote to.
        results: the contents of its ``unit-circuits.json``.
    """

    def is_same(run: Mapping[str, Any]) -> bool:
        path = Path(folder) / run["folder"]
        if not (path / RESULTS).exists():
            return False
        now = read_results(path)
        return all(now.get(name) == run[name] for name in _OF_MODELS)

    return [run["name"] for run in results["runs"] if not is_same(run)]


def _tables(folder: str | os.PathLike[str], runs: Sequence[UnitRun]) -> list[tuple[RunFolder, Plan]]:
    """Return the folder of the results, and those of the pages, with the files that are written there."""
    table = RunFolder(folder, COMMAND)
    if len(runs) == 1 and runs[0].opened.folder == table.path:
        return [(table, {**TABLE_PLAN, **PAGE_PLAN})]
    return [(table, TABLE_PLAN), *((RunFolder(run.opened.folder, COMMAND), PAGE_PLAN) for run in runs)]


def _prepare(
    tables: Sequence[tuple[RunFolder, Plan]],
    runs: Sequence[UnitRun],
    labels: Sequence[int],
    *,
    resume: bool,
    overwrite: bool,
    processes: int,
) -> None:
    """Claim the files that are written, and remove those that are to be replaced."""
    for run in runs if resume and not overwrite else ():
        run.kept.check(labels)
    plans = [*tables, *(plan for run in runs for plan in run.kept.plans(labels))]
    claim(plans, resume=resume, overwrite=overwrite).take(processes)
    for run in runs:
        run.kept.begin()


class _Searches:
    """The circuits that this process finds, and their progress."""

    def __init__(self, dataset: Dataset, config: UnitCircuitConfig, searches: Sequence[_Search]) -> None:
        self.config, self.searches, self.classes = config, searches, dataset.classes
        self.images, self.labels = first_images(dataset, config.images)
        self.seconds: dict[_Search, float] = {}
        self.on_step: Callable[[str, float, int], None] | None = None
        self.on_circuits: Callable[[str, Sequence[UnitCircuit], float], None] | None = None

    def find(self, index: int, run: UnitRun) -> None:
        """Find and save this process's circuits of one model."""
        circuits = []
        for label in [label for which, label in self.searches if which == index]:
            began = time.perf_counter()
            circuits.append(self._find(run, label))
            run.kept.keep(label, circuits[-1])
            self.seconds[index, label] = time.perf_counter() - began
        if circuits and self.on_circuits is not None:
            taken = sum(seconds for (which, _), seconds in self.seconds.items() if which == index)
            self.on_circuits(run.opened.name, circuits, taken)

    def _find(self, run: UnitRun, label: int) -> UnitCircuit:
        def report(done: int, total: int) -> None:
            if self.on_step is not None:
                found = len(self.seconds) + (done / total if total else 0.0)
                self.on_step(run.opened.name, found, len(self.searches))

        report(0, 1)
        greedy, means = self.config.method == "greedy", self.config.ablation == "mean"
        circuit = find_unit_circuit(
            run.opened.model,
            self._batches(run, self.labels == label),
            class_log_likelihood,
            run.network,
            tolerance=self.config.tolerance,
            method=self.config.method,
            ablation=self.config.ablation,
            reference=self._batches(run, torch.ones_like(self.labels, dtype=torch.bool)) if means else None,
            name=self.classes[label],
            checkpoint=run.kept.walk(label) if greedy else None,
            progress=report,
        )
        report(1, 1)
        return circuit

    def _batches(self, run: UnitRun, chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return some of the images and their labels, in batches on the model's device."""
        device = next((each.device for each in run.opened.model.parameters()), torch.device("cpu"))
        pairs = zip(self.images[chosen].split(_BATCH), self.labels[chosen].split(_BATCH), strict=True)
        return [(images.to(device), labels.to(device)) for images, labels in pairs]


# --- The table.


def _table(
    runs: Sequence[UnitRun],
    labels: Sequence[int],
    config: UnitCircuitConfig,
    seconds: Mapping[_Search, float],
) -> dict[str, Any]:
    records = []
    spaces: list[str] = []
    for index, run in enumerate(runs):
        opened = run.opened
        circuits = [run.kept.load(label) for label in labels]
        spaces = list(asked_spaces(circuits))
        records.append(
            {
                "name": opened.name,
                "kind": opened.kind,
                "seed": opened.results["config"]["seed"],
                "folder": "." if len(runs) == 1 else opened.folder.name,
                **{name: opened.results[name] for name in _OF_MODELS},
                "spaces": {name: [space.start, space.stop] for name, space in circuits[0].spaces.items()},
                "clusters": None if run.clusters is None else run.clusters.tolist(),
                "circuits": describe_unit_circuits(circuits, run.clusters, config.seed),
                "seconds": [seconds.get((index, label)) for label in labels],
            }
        )
    kinds = list(dict.fromkeys(run.opened.kind for run in runs))
    return {
        "config": {"spaces": spaces, "kinds": kinds},
        "environment": environment(),
        "runs": records,
        "summary": summarize_unit_circuits(records),
    }


def _provenance(
    folder: str | os.PathLike[str],
    dataset: Dataset,
    config: UnitCircuitConfig,
    labels: Sequence[int],
    processes: int,
) -> dict[str, Any]:
    """Return the settings of the models and of the circuits that the numbers depend on."""
    trained = read_results(folder)["config"]
    return {
        **{name: trained[name] for name in ("model", "enmeshment_weight", "num_clusters", "epochs")},
        **{name: getattr(config, name) for name in ("method", "ablation", "tolerance", "images", "seed")},
        "metric": "mean log-likelihood of the class, in nats",
        "data": dataset.name,
        "data_fingerprint": trained["data_fingerprint"],
        "classes": list(dataset.classes),
        "labels": list(labels),
        "seeds": trained["seeds"] if "seeds" in trained else [trained["seed"]],
        "draws": DRAWS,
        "processes": processes,
        "command": command_line(),
    }
