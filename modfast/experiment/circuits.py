"""The circuits of a finished run, or of every model of a comparison, in the run's folder."""

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
from torch.nn.functional import one_hot

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
    occurring_labels,
    open_models,
)

_OF_MODELS = ("accuracy", "clusterability", "class_accuracy", "cluster_accuracy")

_Walk: TypeAlias = tuple[int, str, int]  # a model's index, criterion and label


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
        folder: what ``modfast train`` or ``modfast reproduce`` wrote.
        dataset: the images that the models were trained on.
        config: everything else.
        resume: keep the circuits that are there, if they were found with the same settings in the same
            weights.
        overwrite: remove those that ``modfast circuits`` found before, by whatever criterion.
        on_step: called with a model's name, the criterion, and the numbers of weights decided so far and in
            all; of several processes on the first one, about its own part.
        on_circuits: called with a model's name, the criterion, its circuits and the seconds that they took.
        group: processes that share the models and labels among them, all of which see ``folder``. The first
            one writes the table.

    Returns:
        What ``circuits.json`` holds: ``config``, ``environment``, ``runs``, ``summary``
        (of :func:`modfast.report.circuits.summary.summarize_circuits`), ``claims`` (of
        :func:`modfast.report.circuits.claims.paper_claims`; none without plain and modular models) and
        ``note``, how far to trust them together. A run has what :func:`modfast.experiment.runs.evaluate`
        measured and, by criterion, what :func:`modfast.report.circuits.summary.describe_circuits`
        gives and ``seconds``: of each circuit, since its
        process had the one before; None if it was there already.

    Raises:
        FileNotFoundError: no run has finished there.
        OutputExistsError: there are circuits, and neither ``resume`` nor ``overwrite`` is given; or a file
            that ``modfast circuits`` did not write, at a name that it would write. Nothing is changed then.
        ValueError: ``folder`` holds something else; the data, the model or the circuits that are there are
            others; or a value of ``config`` does not fit. Nothing has been written then.
        RankError: of several processes, instead of those above, on every one of them.
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
            # After each model, so that one process is not noticed to have failed only when all are done.
            ranks.every(functools.partial(walks.find, index, run))
        seconds = {key: value for each in ranks.gather(walks.seconds) for key, value in each.items()}

        def write() -> dict[str, Any]:
            for run in runs:
                for kept in run.kept.values():
                    kept.gather()
            results = _table(runs, labels, config, seconds)
            results["config"] |= _provenance(table.path, dataset, config, labels, ranks.size)
            write_json(table.file(CIRCUITS), results)
            draw_circuits(table)
            return results

        return ranks.first(write)


def draw_circuits(folder: str | os.PathLike[str]) -> Path:
    """Write ``circuits.html`` from ``circuits.json`` and the circuits' files; returns its path."""
    # Not at the top: drawing takes a second to import, which finding circuits need not wait for.
    from modfast.report.circuits.report import write_circuit_report

    return write_circuit_report(folder)


def trained_since(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> list[str]:
    """The names of the models that have changed since their circuits were found, or that are gone.

    Args:
        folder: what :func:`find_run_circuits` wrote to.
        results: its ``circuits.json``.
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
    """See that the circuits of a comparison may be written, before its models are trained; changes nothing.

    Args:
        folder: of the comparison.
        seeds: of its models.
        dataset: the images.
        config: how the circuits will be found.
        resume: as for :func:`find_run_circuits`.
        overwrite: as there.

    Raises:
        OutputExistsError, ValueError: as :func:`find_run_circuits` does.
    """
    labels = occurring_labels(dataset) if config.labels is None else config.labels
    given = circuit_settings(config, dataset.fingerprint())
    kept = [
        CircuitFolder(Path(folder) / run_name(kind, seed), given | {"criterion": criterion})
        for seed in seeds
        for kind in KINDS
        for criterion in config.criteria
    ]
    _claim(RunFolder(folder, "circuits"), kept, labels, resume=resume, overwrite=overwrite)


def _prepare(
    table: RunFolder,
    runs: Sequence[TrainedModel],
    labels: Sequence[int],
    *,
    resume: bool,
    overwrite: bool,
    processes: int,
) -> None:
    """See that circuits may be written, and remove what is to be replaced."""
    kept = [each for run in runs for each in run.kept.values()]
    _claim(table, kept, labels, resume=resume, overwrite=overwrite).take(processes)
    if overwrite:
        for run in runs:
            for criterion in CRITERIA:
                if criterion not in run.kept:
                    CircuitFolder(run.folder, {"criterion": criterion}).clear()
    for each in kept:
        each.begin()


def _claim(
    table: RunFolder, kept: Sequence[CircuitFolder], labels: Sequence[int], *, resume: bool, overwrite: bool
) -> Claim:
    """See that circuits may be written, and that those that are to be kept can be used."""
    for each in kept if resume and not overwrite else ():
        each.check(labels)
    plans = [(table, TABLE_PLAN), *(plan for each in kept for plan in each.plans(labels))]
    return claim(plans, resume=resume, overwrite=overwrite)


def _pending(runs: Sequence[TrainedModel], labels: Sequence[int]) -> list[_Walk]:
    """The walks that are still to be made."""
    return [
        (index, criterion, label)
        for index, run in enumerate(runs)
        for criterion, kept in run.kept.items()
        for label in labels
        if not kept.holds(label)
    ]


# --- What is found.


class _Walks:
    """This process's walks, and how far they are."""

    def __init__(self, dataset: Dataset, config: CircuitConfig, walks: Sequence[_Walk]) -> None:
        self.config, self.walks = config, walks
        self.images, self.labels = _first_images(dataset, config.images)
        self.seconds: dict[_Walk, float] = {}
        self.on_step: Callable[[str, str, int, int], None] | None = None
        self.on_circuits: Callable[[str, str, Sequence[Circuit], float], None] | None = None

    def find(self, index: int, run: TrainedModel) -> None:
        """Find and keep the circuits of one model that are this process's."""
        for criterion, kept in run.kept.items():
            labels = [label for which, name, label in self.walks if (which, name) == (index, criterion)]
            if labels:
                self._find(index, run, criterion, labels, kept)

    def _find(
        self, index: int, run: TrainedModel, criterion: str, labels: list[int], kept: CircuitFolder
    ) -> None:
        began = last = time.perf_counter()
        before = len(self.seconds)

        def tell(done: int, total: int) -> None:
            if self.on_step is not None:
                each = total // len(labels)  # all walks are of as many weights
                self.on_step(run.name, criterion, before * each + done, len(self.walks) * each)

        def keep(circuit: Circuit) -> None:
            nonlocal last
            kept.save(circuit)
            now = time.perf_counter()
            self.seconds[index, criterion, circuit.label] = now - last
            last = now

        device = next((parameter.device for parameter in run.model.parameters()), torch.device("cpu"))
        found = find_circuits(
            run.model,
            self.images.to(device),
            self.labels.to(device),
            classes=labels,
            layers=self.config.layers,
            criterion=criterion,
            tolerance=self.config.tolerance,
            seed=self.config.seed,
            checkpoint=kept.begin(),
            progress=tell,
            on_circuit=keep,
        )
        if self.on_circuits is not None:
            self.on_circuits(run.name, criterion, found, time.perf_counter() - began)


def _first_images(dataset: Dataset, count: int | None) -> tuple[Tensor, Tensor]:
    """The test images, or the first ones of each class, and their labels."""
    labels = dataset.test_labels
    if count is None:
        return dataset.normalize(dataset.test_images), labels
    own = one_hot(labels, dataset.num_classes)
    chosen = own.cumsum(0).gather(1, labels[:, None])[:, 0] <= count
    return dataset.normalize(dataset.test_images[chosen]), labels[chosen]


# --- What it comes to.


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
        for criterion, kept in run.kept.items():
            circuits = [kept.load(label) for label in labels]
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


def _partitions(run: TrainedModel, layers: Sequence[str]) -> dict[str, Partition]:
    """The clusters of the circuits' layers, laid out as the masks are: as the weight is kept."""
    transposed = {layer.name for layer in find_layers(run.model) if layer.stored_transposed}
    found = {name: run.partitions[name] for name in layers if name in run.partitions}
    return {name: each.transpose() if name in transposed else each for name, each in found.items()}


def _provenance(
    folder: Path, dataset: Dataset, config: CircuitConfig, labels: Sequence[int], processes: int
) -> dict[str, Any]:
    """What the numbers depend on, of the models and of the circuits."""
    given = read_results(folder)["config"]
    return {
        **{name: given[name] for name in ("model", "enmeshment_weight", "num_clusters", "epochs")},
        **{name: getattr(config, name) for name in ("tolerance", "images", "seed")},
        "criteria": list(config.criteria),
        "data": dataset.name,
        "data_fingerprint": given["data_fingerprint"],
        "classes": list(dataset.classes),
        "labels": list(labels),
        "seeds": given["seeds"] if "seeds" in given else [given["seed"]],
        "draws": DRAWS,
        "processes": processes,
        "command": command_line(),
    }
