"""Whole runs in a folder: train, evaluate, draw; and the paper's comparison over seeds."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from modfast.accuracies import class_accuracy, cluster_accuracy
from modfast.arguments import Integer, check
from modfast.data.dataset import Dataset
from modfast.files import file_name, write_json
from modfast.machine import command_line, environment
from modfast.models import build_model
from modfast.partition import Partition, load_partitions, save_partitions
from modfast.report.pictures.classes import draw_class_accuracy
from modfast.report.pictures.runs import draw_comparison, draw_curves
from modfast.report.pictures.weights import draw_weights
from modfast.report.summary import summarize
from modfast.results import (
    KINDS,
    PARTITIONS,
    PICTURE,
    RESULTS,
    as_lists,
    from_lists,
    read_results,
    results_with,
    run_name,
)
from modfast.run_folder import Claim, Plan, Planned, RunFolder, claim
from modfast.train.checkpoint import CHECKPOINT, check_continued, read_checkpoint, seed_generators
from modfast.train.config import Record, Run, TrainConfig
from modfast.train.distributed import Ranks
from modfast.train.loop import train_in_folder

from .measures import neuron_measures


@dataclass(frozen=True)
class Progress:
    """Callbacks that report progress, called as :func:`modfast.train.train` calls its own.

    Attributes:
        on_run: called with a run's name and its number of epochs before it starts.
        on_step: called with epoch, step and steps, counted from 1.
        on_epoch: called with each finished epoch's record.
    """

    on_run: Callable[[str, int], None] | None = None
    on_step: Callable[[int, int, int], None] | None = None
    on_epoch: Callable[[Record], None] | None = None


def run_plan(layers: Iterable[str]) -> Plan:
    """Return the files that a run with these regularised layers writes."""
    pictures = ["weights.png", "curves.png", *map(_class_picture, layers)]
    return {
        RESULTS: Planned(_read_continued),
        CHECKPOINT: Planned(read_checkpoint),
        PARTITIONS: Planned(load_partitions, drawn_from=RESULTS),
        **dict.fromkeys(pictures, PICTURE),
    }


def _read_continued(path: Path) -> None:
    results_with("history").read(path)
    if not (path.parent / CHECKPOINT).exists():
        raise ValueError(f"{path} lies beside no {CHECKPOINT} to continue from: choose another folder")


def _class_picture(layer: str) -> str:
    return f"class_accuracy_{file_name(layer)}.png"


_COMPARISON_PLAN: Plan = {
    RESULTS: results_with("plain"),
    **dict.fromkeys(["comparison.png", "curves.png"], PICTURE),
}


def train_run(
    dataset: Dataset,
    model: str,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    partitions: Mapping[str, Partition] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Train one model into a folder: checkpoint, ``results.json``, ``partitions.npz`` and pictures.

    Args:
        dataset: the images.
        model: a name for :func:`modfast.models.build_model`, which is seeded with ``config.seed``.
        config: how to train.
        out: the folder; made if absent.
        partitions: layer name to clusters; by default contiguous blocks.
        resume: continue from the checkpoint in ``out``, if there is one.
        overwrite: remove what ``modfast train`` wrote to ``out`` before.
        progress: callbacks that report progress; with several processes only the first calls them.
        group: processes that train the model together, as for :func:`modfast.train.train`. Each calls this
            function and returns the results; the first one writes the files.

    Returns:
        What ``results.json`` holds: ``accuracy``, ``clusterability`` (of each linear layer),
        ``class_accuracy``, ``cluster_accuracy`` (``only`` and ``without`` for each regularised layer),
        ``label_semanticity``, ``search_space_reduction`` and ``live`` (as
        :func:`modfast.experiment.measures.neuron_measures` returns them),
        ``history``, ``classes``, ``config`` and ``environment``.

    Raises:
        ValueError, TrainingError, RankError: as :func:`modfast.train.train` does.
        OutputExistsError: ``out`` holds a run, and neither ``resume`` nor ``overwrite`` is given; or a file
            that ``modfast train`` would write is there and is not its own. Nothing is changed then.
    """
    folder = RunFolder(out, "train")

    def claimed(run: Run) -> Claim:
        return claim([(folder, run_plan(run.partitions))], resume=resume, overwrite=overwrite)

    return _train_run(
        dataset,
        model,
        config,
        folder,
        claimed,
        partitions=partitions,
        resume=resume,
        progress=progress,
        group=group,
    )


def _train_run(
    dataset: Dataset,
    model: str,
    config: TrainConfig,
    folder: RunFolder,
    claimed: Callable[[Run], Claim],
    *,
    comparison: RunFolder | None = None,
    partitions: Mapping[str, Partition] | None = None,
    resume: bool,
    progress: Progress | None,
    group: dist.ProcessGroup | None,
) -> dict[str, Any]:
    """Train as :func:`train_run` does, into a folder that may belong to a comparison."""
    ranks = Ranks(group)
    progress = progress or Progress()
    seed_generators(config.seed)
    network = ranks.every(lambda: build_model(model, dataset.image_shape, dataset.num_classes))
    if progress.on_run is not None and ranks.is_first:
        progress.on_run(folder.path.name, config.epochs)
    run = train_in_folder(
        network,
        dataset,
        config,
        folder,
        claimed,
        comparison=comparison,
        partitions=partitions,
        resume=resume,
        on_step=progress.on_step,
        on_epoch=progress.on_epoch,
        group=group,
    )
    results = ranks.every(lambda: evaluate(run, dataset)) | {
        "history": run.history,
        "classes": list(dataset.classes),
        "config": {
            **asdict(run.config),  # which says that clusters are from a file where partitions were given
            "num_clusters": _num_clusters(run.partitions),
            "data": dataset.name,
            "data_fingerprint": dataset.fingerprint(),
            "model": model,
            "processes": ranks.size,
            "regularised_layers": sorted(run.partitions),
            "command": command_line(),
        },
        "environment": environment(),
    }

    def write() -> None:
        save_partitions(folder.file(PARTITIONS), run.measured)
        write_json(folder.file(RESULTS), results)
        draw_run(folder)

    ranks.first(write)
    return results


def _num_clusters(partitions: Mapping[str, Partition]) -> int | None:
    """Return the number of clusters of all regularised layers; None if they differ."""
    counts = {partition.num_clusters for partition in partitions.values()}
    return counts.pop() if len(counts) == 1 else None


def evaluate(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Return a finished run's measures on the test images: shares, or None for a class without images."""
    data = (dataset.normalize(dataset.test_images), dataset.test_labels)
    by_layer = {
        name: {
            mode: as_lists(cluster_accuracy(run.model, data, {name: partition}, mode))
            for mode in ("only", "without")
        }
        for name, partition in run.partitions.items()
    }
    return {
        "accuracy": run.history[-1]["test_accuracy"],
        "clusterability": run.history[-1]["clusterability"],
        "class_accuracy": as_lists(class_accuracy(run.model, data)),
        "cluster_accuracy": by_layer,
        **neuron_measures(run.model, data, dataset.num_classes, run.partitions),
    }


def read_run(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the results and the checkpoint of a finished run, if both belong to the same training.

    Raises:
        FileNotFoundError: no run has finished there.
        ValueError: the folder holds something else, or the model was trained further since its results.
        TrainingError: the checkpoint is damaged.
    """
    results, state = read_results(folder), read_checkpoint(Path(folder) / CHECKPOINT)
    if "history" not in results:
        raise ValueError(f"{os.fspath(folder)} holds results, but not of the training of one model")
    reported, done = results["history"], state["history"]
    if len(reported) != len(done):
        raise ValueError(
            f"{os.fspath(folder)} was trained for {len(done)} epochs, and its results describe "
            f"{len(reported)}: finish it with --resume"
        )
    if reported != done:
        raise ValueError(
            f"{os.fspath(folder)} holds the results of one training and the checkpoint of another: "
            "--resume writes the results of the checkpoint"
        )
    return results, state


def draw_run(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw a finished run's pictures from its files, beside them.

    Args:
        folder: the folder of the run. If it is a path, pictures that might be a user's own are left alone.

    Returns:
        The files that were drawn.

    Raises:
        FileNotFoundError, ValueError, TrainingError: as :func:`read_run` does.
    """
    folder = RunFolder.of(folder, "report")
    results, state = read_run(folder)
    partitions = load_partitions(folder.path / PARTITIONS)
    kind = "modular" if results["config"]["enmeshment_weight"] > 0 else "plain"
    regularised = results["config"]["regularised_layers"]

    def draw_layer(layer: str, path: os.PathLike[str]) -> None:
        shares = results["cluster_accuracy"][layer]
        draw_class_accuracy(
            path,
            results["classes"],
            from_lists(results["class_accuracy"]),
            from_lists(shares["only"]),
            from_lists(shares["without"]),
            layer,
        )

    return folder.draw(
        {
            "weights.png": lambda path: draw_weights(path, state["initial"], state["weights"], partitions),
            "curves.png": lambda path: draw_curves(path, {kind: [results["history"]]}, regularised),
            **{_class_picture(layer): functools.partial(draw_layer, layer) for layer in regularised},
        }
    )


def reproduce(
    dataset: Dataset,
    model: str,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    plain_epochs: int | None = None,
    partitions: Mapping[str, Partition] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Run the paper's comparison: train a plain and a modular model for each seed, and compare them.

    Args:
        dataset: the images.
        model: a name for :func:`modfast.models.build_model`.
        config: how the modular model is trained; the plain one has an ``enmeshment_weight`` of 0 instead.
        out: the folder; each run has its own within it, ``plain-seed0`` and so on.
        seeds: the seeds; each gives a pair of models that start from the same weights.
        plain_epochs: for the plain model; by default as many as for the modular one.
        partitions: layer name to clusters, for ``clusters_from`` "file".
        resume: keep finished runs and continue unfinished ones.
        overwrite: remove what ``modfast reproduce`` wrote to ``out`` and to the folders of these runs before.
        progress: callbacks that report progress.
        group: as for :func:`train_run`.

    Returns:
        What ``results.json`` holds: ``plain`` and ``modular`` with means and 95% intervals over seeds,
        ``difference``, ``config`` and ``environment``; see :func:`modfast.report.summarize`.

    Raises:
        ValueError: ``seeds`` is empty or repeats one; ``enmeshment_weight`` is 0; ``plain_epochs`` are no
            more than the warm-up, so that the plain model would not get past it.
        OutputExistsError, TrainingError, RankError: as :func:`train_run` does.
    """
    ranks = Ranks(group)
    ranks.every(lambda: _check_comparison(config, seeds, plain_epochs))
    if partitions is not None and config.clusters_from == "blocks":
        config = replace(config, clusters_from="file")
    folder = RunFolder(out, "reproduce")
    epochs = {"plain": config.epochs if plain_epochs is None else plain_epochs, "modular": config.epochs}
    weight = {"plain": 0.0, "modular": config.enmeshment_weight}
    planned_runs = [
        (
            kind,
            replace(config, seed=seed, epochs=epochs[kind], enmeshment_weight=weight[kind]),
            RunFolder(folder.path, "reproduce", run_name(kind, seed)),
        )
        for seed in seeds
        for kind in KINDS
    ]

    def claimed(run: Run) -> Claim:
        """Claim the folders of all runs before the first one; the runs differ only in their settings."""
        if run.config != planned_runs[0][1]:
            return claim([], resume=resume, overwrite=overwrite)
        plans = [(run_folder, run_plan(run.partitions)) for _, _, run_folder in planned_runs]
        for_all = claim([(folder, _COMPARISON_PLAN), *plans], resume=resume, overwrite=overwrite)
        for _, settings, run_folder in planned_runs if resume else ():
            check_continued(replace(run, config=settings), dataset, run_folder)
        return for_all

    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for kind, settings, run_folder in planned_runs:
        runs[kind].append(
            _train_run(
                dataset,
                model,
                settings,
                run_folder,
                claimed,
                comparison=folder,
                partitions=partitions,
                resume=resume,
                progress=progress,
                group=group,
            )
        )
    results = summarize(runs["plain"], runs["modular"]) | {
        "config": {
            **asdict(config),
            "epochs": epochs,
            "seeds": list(seeds),
            "data": dataset.name,
            "data_fingerprint": dataset.fingerprint(),
            "model": model,
            "processes": ranks.size,
            "regularised_layers": runs["modular"][0]["config"]["regularised_layers"],
            "command": command_line(),
        },
        "environment": environment(),
    }
    del results["config"]["seed"]

    def write() -> None:
        write_json(folder.file(RESULTS), results)
        draw_reproduction(folder)

    ranks.first(write)
    return results


def _check_comparison(config: TrainConfig, seeds: Sequence[int], plain_epochs: int | None) -> None:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be at least one, each once, got {list(seeds)}")
    if config.enmeshment_weight == 0:
        raise ValueError("enmeshment_weight must be above 0 for the modular model, got 0")
    if plain_epochs is not None:
        check("plain_epochs", plain_epochs, Integer(1))
        if plain_epochs <= config.warmup_epochs:
            raise ValueError(
                f"plain_epochs, those of the plain model, must be above warmup_epochs "
                f"({config.warmup_epochs}), got {plain_epochs}; --epochs sets those of both models"
            )


def draw_reproduction(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw a finished comparison's pictures from its files, beside them; as :func:`draw_run` does.

    Raises:
        ValueError: a model was trained further since the comparison.
    """
    folder = RunFolder.of(folder, "report")
    results = read_results(folder)
    seeds = results["config"]["seeds"]
    runs = {kind: [_read_compared(folder.path, kind, seed) for seed in seeds] for kind in KINDS}
    for kind, of_kind in runs.items():
        for index, (seed, run) in enumerate(zip(seeds, of_kind, strict=True)):
            shares = {layer: values[index] for layer, values in results[kind]["clusterabilities"].items()}
            if (run["accuracy"], run["clusterability"]) != (results[kind]["accuracies"][index], shares):
                raise ValueError(
                    f"{folder.path / run_name(kind, seed)} holds another model than {folder.path / RESULTS} "
                    "describes: `modfast reproduce --resume` compares them anew"
                )
    histories = {kind: [run["history"] for run in of_kind] for kind, of_kind in runs.items()}
    return folder.draw(
        {
            "comparison.png": lambda path: draw_comparison(path, results),
            "curves.png": lambda path: draw_curves(path, histories, results["config"]["regularised_layers"]),
        }
    )


def _read_compared(folder: Path, kind: str, seed: int) -> dict[str, Any]:
    """Return the results of one run of a comparison, whose checkpoint may have been removed."""
    run_folder = folder / run_name(kind, seed)
    return read_run(run_folder)[0] if (run_folder / CHECKPOINT).exists() else read_results(run_folder)
