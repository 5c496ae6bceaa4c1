"""Checkpoints of training: plain containers and tensors, so that loading one runs no code from it."""

from __future__ import annotations

import os
import random
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modfast.data.dataset import Dataset
from modfast.energy.loss import EnmeshmentLoss
from modfast.files import atomic_write, open_to_read
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
    """What a resumed run must have in common with the one that was killed."""
    config = asdict(run.config)
    # More epochs may be asked for; device and threads change how fast, and at most the rounding.
    for name in ("epochs", "device", "threads"):
        del config[name]
    config["layers"] = None if run.config.layers is None else list(run.config.layers)
    clusters = {
        name: [each.row_labels.tolist(), each.col_labels.tolist()] for name, each in run.partitions.items()
    }
    shapes = {name: list(parameter.shape) for name, parameter in run.model.named_parameters()}
    return {"config": config, "partitions": clusters, "parameters": shapes, "data": dataset.fingerprint()}


def measured_weights(run: Run) -> dict[str, Tensor]:
    """The weights of the measured layers, as ``(out, in, *kernel)``."""
    return EnmeshmentLoss(run.model, run.measured).weights()


def save_checkpoint(run: Run, dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Keep all that training needs to go on, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    state = {
        "format": _FORMAT,
        "identity": identity(run, dataset),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "initial": run.initial,
        # As (out, in, *kernel), which the state_dict does not tell. Shared memory is written once.
        "weights": measured_weights(run),
        "history": run.history,
        "random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        "python_random_state": random.getstate(),
        "numpy_random_state": _with_tensors(np.random.get_state(legacy=False)),
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # PyTorch says of a full disk that its own place in the file is not as expected.
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, os.fspath(path)) from error
            raise


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's contents: ``model`` (a state_dict), ``initial`` and ``weights`` (of the measured layers,
    before training and now), ``history``, and what resuming needs.

    Raises:
        OSError: the file cannot be opened.
        ValueError: there is something else than a file.
        TrainingError: the file is damaged or no checkpoint of modfast.
    """
    open_to_read(path).close()  # PyTorch would wait for a pipe
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        # Without the advice that follows: to load the file in a way that may run code from it.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise TrainingError(f"{os.fspath(path)} is damaged or no checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise TrainingError(f"{os.fspath(path)} is no checkpoint of this version of modfast")
    missing = [part for part in _PARTS if part not in state]
    if missing:
        raise TrainingError(f"{os.fspath(path)} is damaged: it lacks {', '.join(missing)}")
    return state


def load_checkpoint(run: Run, dataset: Dataset, path: Path) -> None:
    """Bring a run to where its checkpoint is.

    Raises:
        TrainingError: the checkpoint is damaged or of another run.
    """
    state = _read_own(run, dataset, path)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.initial = state["initial"]
    run.history = state["history"]
    torch.set_rng_state(state["random_state"])
    if run.device.type == "cuda" and state["cuda_random_state"] is not None:
        torch.cuda.set_rng_state(state["cuda_random_state"], run.device)
    # Checkpoints of older versions lack these.
    if "python_random_state" in state:
        random.setstate(state["python_random_state"])
        np.random.set_state(_with_arrays(state["numpy_random_state"]))


def check_continued(run: Run, dataset: Dataset, folder: RunFolder) -> None:
    """Raises unless what was left in a folder, if anything, is of this run and can be continued.

    Raises:
        TrainingError: the checkpoint is damaged, of another run, or has more epochs; or there are results
            without one, which a run that begins anew would replace.
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


def _read_own(run: Run, dataset: Dataset, path: Path) -> dict[str, Any]:
    """A checkpoint's contents, if they are of this run."""
    state = read_checkpoint(path)
    saved, wanted = state["identity"], identity(run, dataset)
    for part in wanted:
        if saved[part] != wanted[part]:
            names = [f.name for f in fields(run.config)] if part == "config" else []
            differing = [
                f"{name} {saved[part].get(name)!r}, not {wanted[part].get(name)!r}"
                for name in names
                if saved[part].get(name) != wanted[part].get(name)
            ]
            raise TrainingError(
                f"{path} was made with another {part}: {'; '.join(differing) or 'train into another folder'}"
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
    """The same with tensors for arrays, which loading without running code does not know."""
    if isinstance(state, dict):
        return {name: _with_tensors(each) for name, each in state.items()}
    return torch.from_numpy(state.astype(np.int64)) if isinstance(state, np.ndarray) else state


def _with_arrays(state: Any) -> Any:
    """The inverse."""
    if isinstance(state, dict):
        return {name: _with_arrays(each) for name, each in state.items()}
    return state.numpy().astype(np.uint32) if isinstance(state, Tensor) else state
