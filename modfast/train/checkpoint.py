"""Checkpoints of training: plain containers and tensors, so that loading one runs no code from it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modfast.data.dataset import Dataset
from modfast.devices import random_state, set_random_state
from modfast.energy.loss import EnmeshmentLoss
from modfast.files import atomic_write, open_to_read
from modfast.partition import Partition
from modfast.results import RESULTS
from modfast.run_folder import RunFolder

if TYPE_CHECKING:
    from .config import Run

CHECKPOINT = "checkpoint.pt"
_FORMAT = "modfast checkpoint 1"
_PARTS = (
    "identity",
    "model",
    "optimizer",
    "initial",
    "weights",
    "history",
    "random_state",
    "cuda_random_state",
)


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite, or a checkpoint does not belong to this run."""


def identity(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Return what a resumed run must have in common with the interrupted one."""
    config = asdict(run.config)
    # A resumed run may have more epochs; device, threads and optimizer change only speed and rounding.
    for name in ("epochs", "device", "threads", "optimizer"):
        del config[name]
    config["layers"] = None if run.config.layers is None else list(run.config.layers)
    # Whether blocks were given or made makes no difference; clusters that training finds are its own result.
    found = config["clusters_from"] == "spectral"
    if not found:
        del config["clusters_from"]
    clusters = {
        name: [partition.row_labels.tolist(), partition.col_labels.tolist()]
        for name, partition in ({} if found else run.partitions).items()
    }
    shapes = {name: list(parameter.shape) for name, parameter in run.model.named_parameters()}
    return {"config": config, "partitions": clusters, "parameters": shapes, "data": dataset.fingerprint()}


def measured_weights(run: Run) -> dict[str, Tensor]:
    """The weights of the measured layers, as ``(out, in, *kernel)``."""
    return EnmeshmentLoss(run.model, run.measured).weights()


def save_checkpoint(run: Run, dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write all that training needs to continue, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    state = {
        "format": _FORMAT,
        "identity": identity(run, dataset),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "initial": run.initial,
        # As (out, in, *kernel), which the state_dict need not be. Shared memory is written once.
        "weights": measured_weights(run),
        "history": run.history,
        "partitions": {name: _with_labels(partition) for name, partition in run.measured.items()},
        "clustered": run.clustered,
        "random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        # That of another device, with its type.
        "device_random_state": None
        if run.device.type == "cuda"
        else (run.device.type, random_state(run.device)),
        "python_random_state": random.getstate(),
        "numpy_random_state": _with_tensors(np.random.get_state(legacy=False)),
    }
    write_state(path, state)


def write_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write plain containers and tensors with ``torch.save``, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # For a full disk PyTorch's own message names only an unexpected position in the file.
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, os.fspath(path)) from error
            raise


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint's contents: ``model`` (a state_dict), ``initial`` and ``weights`` (those of the
    measured layers, before training and now), ``history``, ``partitions`` (of the measured layers: row
    labels, column labels, number of clusters), and what resuming needs.

    Raises:
        OSError: the file cannot be opened.
        ValueError: ``path`` is no regular file.
        TrainingError: the file is damaged or no checkpoint of modfast.
    """
    return read_state(path, _FORMAT, _PARTS)


def read_state(path: str | os.PathLike[str], file_format: str, parts: Sequence[str]) -> dict[str, Any]:
    """Return what :func:`write_state` wrote, without running code from it.

    Args:
        path: the file.
        file_format: what its ``"format"`` must be.
        parts: the names of what it must hold besides.

    Raises:
        OSError: the file cannot be opened.
        ValueError: ``path`` is no regular file.
        TrainingError: the file is damaged, of another format, or lacks one of the parts.
    """
    open_to_read(path).close()  # refuses a pipe, which torch.load would wait for
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many types for a damaged file
        # Without PyTorch's advice, which is to load the file in a way that may run code from it.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise TrainingError(f"{os.fspath(path)} is damaged or no checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != file_format:
        raise TrainingError(f"{os.fspath(path)} is no checkpoint of this version of modfast")
    missing = [part for part in parts if part not in state]
    if missing:
        raise TrainingError(f"{os.fspath(path)} is damaged: it lacks {', '.join(missing)}")
    return state


def load_checkpoint(run: Run, dataset: Dataset, path: Path) -> None:
    """Restore a run to the state in its checkpoint.

    Raises:
        TrainingError: the checkpoint is damaged or belongs to another run.
    """
    state = _read_own(run, dataset, path)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.initial = state["initial"]
    run.history = state["history"]
    # Checkpoints of older versions lack these; their clusters are part of the identity.
    if "partitions" in state:
        run.clustered = state["clustered"]
        run.measured = {
            name: Partition(*labels).to(run.device) for name, labels in state["partitions"].items()
        }
        run.partitions = {name: run.measured[name] for name in run.partitions}
    torch.set_rng_state(state["random_state"])
    if run.device.type == "cuda" and state["cuda_random_state"] is not None:
        torch.cuda.set_rng_state(state["cuda_random_state"], run.device)
    # Checkpoints of older versions lack these.
    kind, of_device = state.get("device_random_state") or ("", None)
    if kind == run.device.type:
        set_random_state(run.device, of_device)
    if "python_random_state" in state:
        random.setstate(state["python_random_state"])
        np.random.set_state(_with_arrays(state["numpy_random_state"]))


def check_continued(run: Run, dataset: Dataset, folder: RunFolder) -> None:
    """Raise unless the folder holds nothing of a run, or a checkpoint that this run can continue.

    Raises:
        TrainingError: the checkpoint is damaged, belongs to another run, or has more epochs; or there are
            results without a checkpoint, which a new run would replace.
    """
    path = folder.path / CHECKPOINT
    if path.exists():
        done = len(_read_own(run, dataset, path)["history"])
        if done > run.config.epochs:
            raise TrainingError(
                f"epochs must be at least {done} to continue {path}, which was trained for so many, "
                f"got {run.config.epochs}"
            )
    elif folder.owns(RESULTS):
        raise TrainingError(
            f"{folder.path} holds {RESULTS} but no {CHECKPOINT} to continue from: --overwrite replaces what "
            "is there, or choose another folder"
        )


def _with_labels(partition: Partition) -> list[Any]:
    return [partition.row_labels.cpu(), partition.col_labels.cpu(), partition.num_clusters]


# "made with another ...": what a run and its checkpoint have in common.
_WORDS = {"config": "config", "partitions": "partition", "parameters": "model", "data": "data"}


def _read_own(run: Run, dataset: Dataset, path: Path) -> dict[str, Any]:
    """Return a checkpoint's contents after checking that it belongs to this run."""
    state = read_checkpoint(path)
    saved, wanted = state["identity"], identity(run, dataset)
    for part in wanted:
        if part not in saved:
            raise TrainingError(f"{path} is damaged: it lacks {part!r} of its identity")
        if part == "config":
            # Checkpoints of older versions lack later settings, and were made with what are their defaults.
            defaults = asdict(type(run.config)())
            saved[part], wanted[part] = defaults | saved[part], defaults | wanted[part]
        if saved[part] != wanted[part]:
            names = [f.name for f in fields(run.config)] if part == "config" else []
            differing = [
                f"{name} {saved[part].get(name)!r}, not {wanted[part].get(name)!r}"
                for name in names
                if saved[part].get(name) != wanted[part].get(name)
            ]
            raise TrainingError(
                f"{path} was made with another {_WORDS[part]}: "
                f"{'; '.join(differing) or 'train into another folder'}"
            )
    return state


# --- Random numbers.


def seed_generators(seed: int) -> None:
    """Seed the global generators that a model or its training may draw from: PyTorch's, Python's, NumPy's.

    Args:
        seed: at least 0, below 2**63.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _with_tensors(state: Any) -> Any:
    """Replace NumPy arrays by tensors, since ``torch.load(weights_only=True)`` refuses arrays."""
    if isinstance(state, dict):
        return {name: _with_tensors(value) for name, value in state.items()}
    return torch.from_numpy(state.astype(np.int64)) if isinstance(state, np.ndarray) else state


def _with_arrays(state: Any) -> Any:
    """Replace tensors by NumPy arrays, as the inverse of :func:`_with_tensors`."""
    if isinstance(state, dict):
        return {name: _with_arrays(value) for name, value in state.items()}
    return state.numpy().astype(np.uint32) if isinstance(state, Tensor) else state
