"""Whole runs in a folder: train, evaluate, draw; and the paper's comparison over seeds."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .accuracy import class_accuracy, cluster_accuracy
from .circuit_files import held_circuits
from .data import Dataset
from .distributed import Ranks
from .files import read_json, write_json
from .models import build_model
from .partition import Partition, load_partitions, save_partitions
from .report import (
    draw_class_accuracy,
    draw_comparison,
    draw_curves,
    draw_weights,
    environment,
    summarize,
)
from .train import CHECKPOINT, Record, Run, TrainConfig, read_checkpoint, train

RESULTS = "results.json"
PARTITIONS = "partitions.npz"
KINDS = ("plain", "modular")


@dataclass(frozen=True)
class Progress:
    """Whom to tell how far the work is. Each is called as :func:`modfast.train.train` does.

    Attributes:
        on_run: called with a run's name and its number of epochs before it starts.
        on_step: called with epoch, step and steps, counted from 1.
        on_epoch: called with each finished epoch's record.
    """

    on_run: Callable[[str, int], None] | None = None
    on_step: Callable[[int, int, int], None] | None = None
    on_epoch: Callable[[Record], None] | None = None


class OutputExistsError(FileExistsError):
    """A folder holds results that would be lost."""


def prepare_folder(out: str | os.PathLike[str], *, resume: bool, overwrite: bool) -> Path:
    """Make the folder ``out``, or say why it may not be written to.

    Raises:
        OutputExistsError: it holds a run, and neither ``resume`` nor ``overwrite`` is given.
        ValueError: both are given, or ``out`` is a file.
    """
    folder = Path(out)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    held = [path for path in (folder / RESULTS, *sorted(folder.rglob(CHECKPOINT))) if path.exists()]
    if held and not (resume or overwrite):
        raise OutputExistsError(
            f"{out} holds a run already ({held[0].relative_to(folder)}): "
            "continue it with --resume, or replace it with --overwrite"
        )
    if overwrite:
        # Circuits are of the models that are replaced.
        for path in (*held, *held_circuits(folder)):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    # A process that was killed while it wrote a file leaves the unfinished one behind.
    for leftover in folder.rglob(f".{Path(CHECKPOINT).stem}-*"):
        leftover.unlink()
    return folder


def train_run(
    dataset: Dataset,
    model: str,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    partitions: Mapping[str, Partition] | None = None,
    resume: bool = False,
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
        progress: whom to tell how far the work is; of several processes the first one's.
        group: processes that train the model together, as for :func:`modfast.train.train`. Each calls this
            and returns the results; the first one writes.

    Returns:
        What ``results.json`` holds: ``accuracy``, ``clusterability`` (of each linear layer),
        ``class_accuracy``, ``cluster_accuracy`` (``only`` and ``without`` for each regularised layer),
        ``history``, ``classes``, ``config`` and ``environment``.

    Raises:
        ValueError, TrainingError, RankError: as :func:`modfast.train.train` does.
    """
    folder, ranks = Path(out), Ranks(group)
    progress = progress or Progress()
    torch.manual_seed(config.seed)
    network = build_model(model, dataset.image_shape, dataset.num_classes)
    if progress.on_run is not None and ranks.is_first:
        progress.on_run(folder.name, config.epochs)
    run = train(
        network,
        dataset,
        config,
        partitions=partitions,
        out=folder,
        resume=resume,
        on_step=progress.on_step,
        on_epoch=progress.on_epoch,
        group=group,
    )
    results = evaluate(run, dataset) | {
        "history": run.history,
        "classes": list(dataset.classes),
        "config": {
            **asdict(config),
            "data": dataset.name,
            "data_fingerprint": dataset.fingerprint(),
            "model": model,
            "processes": ranks.size,
            "regularised_layers": sorted(run.partitions),
            "command": shlex.join(sys.argv),
        },
        "environment": environment(),
    }

    def write() -> None:
        save_partitions(folder / PARTITIONS, run.measured)
        write_json(folder / RESULTS, results)
        draw_run(folder)

    ranks.first(write)
    return results


def evaluate(run: Run, dataset: Dataset) -> dict[str, Any]:
    """A finished run's measures on the test images; shares, None where a class has no image."""
    data = (dataset.normalize(dataset.test_images), dataset.test_labels)
    by_layer = {
        name: {
            mode: as_lists(cluster_accuracy(run.model, data, {name: each}, mode))
            for mode in ("only", "without")
        }
        for name, each in run.partitions.items()
    }
    return {
        "accuracy": run.history[-1]["test_accuracy"],
        "clusterability": run.history[-1]["clusterability"],
        "class_accuracy": as_lists(class_accuracy(run.model, data)),
        "cluster_accuracy": by_layer,
    }


def as_lists(values: Tensor) -> Any:
    """Nested lists with None for NaN, which JSON cannot hold.

    Example:
        >>> as_lists(torch.tensor([[0.5, float("nan")]]))
        [[0.5, None]]
    """
    if values.dim() > 1:
        return [as_lists(row) for row in values]
    return [None if value != value else value for value in values.tolist()]


def _tensor(shares: Any) -> Tensor:
    """The inverse of :func:`as_lists`."""
    if shares and isinstance(shares[0], list):
        return torch.stack([_tensor(row) for row in shares])
    return torch.tensor(
        [float("nan") if value is None else value for value in shares], dtype=torch.float64, device="cpu"
    )


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``results.json`` of a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is damaged.
    """
    path = Path(folder) / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {RESULTS}: no run has finished there")
    results = read_json(path)
    known = ({"history"}, {"clustering"}, set(KINDS))
    if not isinstance(results, dict) or not any(keys <= set(results) for keys in known):
        raise ValueError(f"{path} is no result of modfast")
    return results


def draw_run(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw a finished run's pictures from its files, beside them; returns their paths."""
    folder = Path(folder)
    results, state = read_results(folder), read_checkpoint(folder / CHECKPOINT)
    partitions = load_partitions(folder / PARTITIONS)
    made = [folder / "weights.png", folder / "curves.png"]
    draw_weights(made[0], state["initial"], state["weights"], partitions)
    kind = "modular" if results["config"]["enmeshment_weight"] > 0 else "plain"
    regularised = results["config"]["regularised_layers"]
    draw_curves(made[1], {kind: [results["history"]]}, regularised)
    for layer in regularised:
        shares = results["cluster_accuracy"][layer]
        made.append(folder / f"class_accuracy_{layer.replace('/', '_')}.png")
        draw_class_accuracy(
            made[-1],
            results["classes"],
            _tensor(results["class_accuracy"]),
            _tensor(shares["only"]),
            _tensor(shares["without"]),
            layer,
        )
    return made


def reproduce(
    dataset: Dataset,
    model: str,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    plain_epochs: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """The paper's comparison: a plain and a modular model for each seed, side by side.

    Args:
        dataset: the images.
        model: a name for :func:`modfast.models.build_model`.
        config: how the modular model is trained; the plain one differs in ``enmeshment_weight`` 0.
        out: the folder; each run has its own within it, ``plain-seed0`` and so on.
        seeds: one pair of models for each; the two of a pair start from the same weights.
        plain_epochs: for the plain model; by default as many as for the modular one.
        resume: keep finished runs and continue unfinished ones.
        progress: whom to tell how far the work is.
        group: as for :func:`train_run`.

    Returns:
        What ``results.json`` holds: ``plain`` and ``modular`` with means and 95% intervals over seeds,
        ``difference``, ``config`` and ``environment``; see :func:`modfast.report.summarize`.

    Raises:
        ValueError: ``seeds`` is empty or repeats one; ``enmeshment_weight`` is 0.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be at least one, each once, got {list(seeds)}")
    if config.enmeshment_weight == 0:
        raise ValueError("enmeshment_weight must be above 0 for the modular model, got 0")
    folder, ranks = Path(out), Ranks(group)
    epochs = {"plain": plain_epochs or config.epochs, "modular": config.epochs}
    weight = {"plain": 0.0, "modular": config.enmeshment_weight}
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for seed in seeds:
        for kind in KINDS:
            each = replace(config, seed=seed, epochs=epochs[kind], enmeshment_weight=weight[kind])
            name = run_name(kind, seed)
            runs[kind].append(
                train_run(dataset, model, each, folder / name, resume=resume, progress=progress, group=group)
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
            "command": shlex.join(sys.argv),
        },
        "environment": environment(),
    }
    del results["config"]["seed"]

    def write() -> None:
        write_json(folder / RESULTS, results)
        draw_reproduction(folder)

    ranks.first(write)
    return results


def run_name(kind: str, seed: int) -> str:
    """The folder of one run within a comparison."""
    return f"{kind}-seed{seed}"


def draw_reproduction(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw a finished comparison's pictures from its files, beside them; returns their paths."""
    folder = Path(folder)
    results = read_results(folder)
    seeds = results["config"]["seeds"]
    histories = {
        kind: [read_results(folder / run_name(kind, seed))["history"] for seed in seeds] for kind in KINDS
    }
    made = [folder / "comparison.png", folder / "curves.png"]
    draw_comparison(made[0], results)
    draw_curves(made[1], histories, results["config"]["regularised_layers"])
    return made
