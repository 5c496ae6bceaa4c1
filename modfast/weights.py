"""The weight matrices of a model, from wherever it is kept: a run's folder, a file, a function."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layers import find_layers, match_names
from .models import build_model, import_model
from .train import CHECKPOINT, read_checkpoint

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _Found(NamedTuple):
    name: str
    parameter_name: str
    weight: Tensor

    @property
    def is_default(self) -> bool:
        """Whether it is chosen where none is named: biases of two dimensions and tokens are not."""
        return self.parameter_name == "weight" or self.parameter_name.endswith(".weight")


def read_weights(
    model: str,
    layers: Sequence[str] | None = None,
    *,
    sizes: tuple[Sequence[int], int] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A model's dense floating-point weights of at least two dimensions, by layer.

    Args:
        model: a folder or checkpoint that ``modfast train`` wrote; a ``.safetensors`` file; another file
            with a state_dict, loaded without running code from it; or ``"package.module:callable"``.
        layers: names of layers or parameters, or globs of them. By default those named ``weight``.
        sizes: image shape and number of classes for a callable, which is called as ``modfast train --model``
            does. Without them it is called without arguments.
        seed: of PyTorch's global generator before a callable is called.

    Returns:
        Layer name to ``(out, in, *kernel)``, detached, on the device where they lie (the CPU for a file); a
        tied weight once. The name is the parameter's without ``.weight``. A state_dict does not tell whether
        a layer stores its weight transposed, as ``ConvTranspose2d`` and the ``Conv1D`` of transformers do:
        there the first two dimensions are taken as they stand.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError, OSError, TrainingError: it is no model, or a damaged one; a pattern of ``layers`` matches
            nothing, or there is no weight at all.
        ImportError: a ``.safetensors`` file without that package.

    Example:
        >>> {name: tuple(weight.shape) for name, weight in read_weights("modfast.models:MLP").items()}
        {'fc1': (64, 784), 'fc2': (64, 64), 'fc3': (10, 64)}
    """
    found = [each for each in _find(model, sizes, seed) if _is_matrix(each.weight)]
    names = [(each.name, each.parameter_name) for each in found]
    if layers is None:
        chosen = [each for each in found if each.is_default]
    else:
        matched = {index for pattern in layers for index in match_names(names, pattern, "layers")}
        chosen = [found[index] for index in sorted(matched)]
    if not chosen:
        raise ValueError(
            f"{model} has no weight matrix: no dense floating-point '*.weight' of two dimensions"
        )
    # The tied ones have one memory, which the model and torch.load keep shared.
    distinct: dict[object, _Found] = {}
    for each in chosen:
        distinct.setdefault((each.weight.data_ptr(), each.weight.shape, each.weight.stride()), each)
    return {each.name: each.weight for each in distinct.values()}


def find_checkpoint(model: str | os.PathLike[str]) -> Path | None:
    """The file that holds ``model``: itself, or the checkpoint within it; None for a callable.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder without a checkpoint.
        ValueError: a folder holds several runs.
    """
    path = Path(model)
    if path.is_dir():
        if (path / CHECKPOINT).exists():
            return path / CHECKPOINT
        runs = sorted(str(checkpoint.parent) for checkpoint in path.rglob(CHECKPOINT))
        if runs:
            raise ValueError(f"{model} holds {len(runs)} runs, choose one of them: {', '.join(runs)}")
        raise FileNotFoundError(f"{model} holds no {CHECKPOINT}: no run was started there")
    if path.exists():
        return path
    module, separator, attribute = str(model).partition(":")
    if separator and module and attribute and os.sep not in module:
        return None
    raise FileNotFoundError(f"{model} is no file, no folder and no package.module:callable")


def _find(model: str, sizes: tuple[Sequence[int], int] | None, seed: int) -> list[_Found]:
    path = find_checkpoint(model)
    if path is None:
        return _of_callable(model, sizes, seed)
    if path.suffix == ".safetensors":
        return _of_state_dict(_load_safetensors(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds, with a page of advice
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, or holds more than a state_dict ({reason})") from error
    if isinstance(state, Mapping) and {"format", "model", "weights"} <= set(state):
        state = read_checkpoint(path)
        # The run knew its layers: how they are oriented, and what a parametrised one comes to.
        known = {name or "weight": weight for name, weight in state["weights"].items()}
        found = [
            each._replace(weight=known.pop(each.name, each.weight)) for each in _of_state_dict(state["model"])
        ]
        return found + [_Found(name, f"{name}.weight", weight) for name, weight in known.items()]
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        kind = f"keys {list(state)[:5]}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{path} holds no state_dict, a mapping of names to tensors, but {kind}")
    return _of_state_dict(state)


def _of_state_dict(state: Mapping[Any, Any]) -> list[_Found]:
    return [
        _Found(str(key).removesuffix(".weight"), str(key), value)
        for key, value in state.items()
        if isinstance(value, Tensor)
    ]


def _of_callable(name: str, sizes: tuple[Sequence[int], int] | None, seed: int) -> list[_Found]:
    torch.manual_seed(seed)
    try:
        made = import_model(name) if sizes is None else build_model(name, *sizes)
    except TypeError as error:
        # What the user named is wrong, not this program.
        raise ValueError(f"{error}; --data gives it the image_shape and num_classes of a data set") from error
    return [
        _Found(layer.name or "weight", layer.parameter_name, layer.oriented(layer.stored()).detach())
        for layer in find_layers(made)
    ]


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        library = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        state: dict[str, Tensor] = library.load_file(path)
    except OSError:
        raise
    except Exception as error:  # the package's own kind
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    return state


def _is_matrix(weight: Tensor) -> bool:
    return (
        weight.dim() >= 2
        and weight.numel() > 0
        and weight.dtype in _DTYPES
        and weight.layout == torch.strided
        and not weight.is_meta
    )
