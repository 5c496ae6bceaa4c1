"""The weight matrices of a model, from wherever it is kept: a run's folder, a file, a function."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modfast.layers.layer import Layer, find_layers
from modfast.layers.names import match_names
from modfast.layers.readable import UnsupportedWeightError
from modfast.models import build_model, import_model
from modfast.train.checkpoint import CHECKPOINT, read_checkpoint

from .file_weights import FoundWeight, file_weights
from .pickled import load_pickled, memory_of
from .tensor_files import is_weights_folder, open_tensors


class Weights(Mapping[str, Tensor]):
    """Weights by layer, each ``(out, in, *kernel)``, read when it is asked for.

    Attributes:
        left_out: the names of matrices that are there and were not asked for, nor are meant by default.
        assumed: the names of those that are taken as (out, in, *kernel) because most are kept so, while
            nothing in the file shows it: they may be those of transposed convolutions, and of three
            dimensions no convolution's.
        unmatched: the names of those that are called as in a file of transformers, where the model in memory
            may call them otherwise, and why.
    """

    def __init__(self, found: Sequence[FoundWeight], left_out: Sequence[str]) -> None:
        self._found = {each.name: each for each in found}
        self.left_out = list(left_out)
        self.assumed = [each.name for each in found if each.is_assumed]
        self.unmatched = {each.name: each.why_unmatched for each in found if each.why_unmatched is not None}

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, which is not read for it."""
        return self._found[name].shape


def read_weights(
    model: str,
    layers: Sequence[str] | None = None,
    *,
    sizes: tuple[Sequence[int], int] | None = None,
    seed: int = 0,
) -> Weights:
    """A model's dense floating-point weights of at least two dimensions, by layer.

    Args:
        model: a folder or checkpoint that ``modfast train`` wrote; a folder of transformers, with weights in
            one file or in shards, or the index of the shards; a ``.safetensors`` file; another file with a
            state_dict, as a whole or as its one entry that is one (``"state_dict"`` of Lightning,
            ``"model"``), loaded without running code from it; or ``"package.module:callable"``.
        layers: names of layers or parameters, or globs of them. By default those named ``weight``.
        sizes: image shape and number of classes for a callable, which is called as ``modfast train --model``
            does. Without them it is called without arguments.
        seed: of PyTorch's global generator before a callable is called.

    Returns:
        Layer name to ``(out, in, *kernel)``, detached, on the device where they lie (the CPU for a file); a
        tied weight once. Of shards one is in memory at a time, and each weight is read when it is looked up.
        Names are canonical: those of wrappers (``module.``, ``_orig_mod.``, ``base_model.model.``) are left
        out, so that partitions found here fit the plain model and the wrapped one. Where ``config.json``
        names a model of transformers that the installed version has, the names are those of that model in
        memory, which its file may not have; without it, and for what transformers puts together from several
        tensors, they are the file's, as ``Weights.unmatched`` says.

        The weight is what the layer multiplies by: also where the file has what it is computed from, by
        weight_norm, spectral_norm, pruning, or a LoRA adapter beside its ``adapter_config.json``. Weights
        kept as (in, out), as in transposed convolutions, some stacks of experts and the ``Conv1D`` of
        transformers, come out as (out, in) where that shows: in the length of their bias, in the factors of
        an adapter, or in ``config.json``. Where nothing shows it, the first two dimensions are taken as they
        stand, and ``Weights.assumed`` names what may be kept otherwise. A tensor of three dimensions is taken
        for a convolution's if it is called ``weight``, else for a stack of matrices, each with its place as
        in ``"experts.up_proj[3]"``.

    Raises:
        FileNotFoundError: there is nothing of that name, or a shard is missing.
        ValueError, OSError, TrainingError: it is no model, or a damaged one; a pattern of ``layers`` matches
            nothing, or there is no weight at all; the file has adapters of peft other than LoRA, or may be
            several state_dicts. Where a weight is read: it is packed, quantised or not dense, or the file
            does not tell how it is computed or kept.
        ImportError: a ``.safetensors`` file without that package.

    Example:
        >>> {name: tuple(weight.shape) for name, weight in read_weights("modfast.models:MLP").items()}
        {'fc1': (64, 784), 'fc2': (64, 64), 'fc3': (10, 64)}
    """
    found = _find(model, sizes, seed)
    if layers is None:
        chosen = [each for each in found if each.is_default]
    else:
        names = [(each.name, each.parameter_name, *each.other_names) for each in found]
        matched = {index for pattern in layers for index in match_names(names, pattern, "layers")}
        chosen = [found[index] for index in sorted(matched)]
    if not chosen:
        raise ValueError(
            f"{model} has no weight matrix: no dense floating-point '*.weight' of two dimensions"
        )
    left_out = [each.name for each in found if not each.is_default] if layers is None else []
    distinct: dict[object, FoundWeight] = {}
    for each in chosen:
        distinct.setdefault(each.name if each.memory is None else each.memory, each)
    return Weights(list(distinct.values()), left_out)


def find_checkpoint(model: str | os.PathLike[str]) -> Path | None:
    """Where ``model`` is kept: a file, a folder of transformers, a run's checkpoint; None for a callable.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder without a model.
        ValueError: a folder holds several runs.
    """
    path = Path(model)
    if path.is_dir():
        if (path / CHECKPOINT).exists():
            return path / CHECKPOINT
        if is_weights_folder(path):
            return path
        runs = sorted(str(folder) for folder in path.iterdir() if (folder / CHECKPOINT).is_file())
        if runs:
            raise ValueError(f"{model} holds {len(runs)} runs, choose one of them: {', '.join(runs)}")
        raise FileNotFoundError(
            f"{model} holds no {CHECKPOINT} of modfast and no model.safetensors or pytorch_model.bin"
        )
    if path.exists():
        return path
    module, separator, attribute = str(model).partition(":")
    if separator and module and attribute and os.sep not in module:
        return None
    raise FileNotFoundError(f"{model} is no file, no folder and no package.module:callable")


def _find(model: str, sizes: tuple[Sequence[int], int] | None, seed: int) -> list[FoundWeight]:
    path = find_checkpoint(model)
    if path is None:
        return _of_callable(model, sizes, seed)
    if path.name != CHECKPOINT and path.suffix not in (".pt", ".pth", ".ckpt"):
        return file_weights(open_tensors(path))
    state = load_pickled(path)
    if not isinstance(state, Mapping) or not {"format", "model", "weights"} <= set(state):
        return file_weights(open_tensors(path, state))
    state = read_checkpoint(path)
    # The run knew its layers: how they are oriented, and what a computed one comes to.
    known = {name or "weight": _in_memory(name, weight) for name, weight in state["weights"].items()}
    others = file_weights(open_tensors(path, state["model"]))
    return [known.pop(each.name, each) for each in others] + list(known.values())


def _in_memory(name: str, weight: Tensor) -> FoundWeight:
    """A layer's weight that is read already."""
    called = f"{name}.weight" if name else "weight"
    return FoundWeight(name or "weight", called, tuple(weight.shape), True, lambda: weight, memory_of(weight))


def _of_callable(name: str, sizes: tuple[Sequence[int], int] | None, seed: int) -> list[FoundWeight]:
    torch.manual_seed(seed)
    try:
        made = import_model(name) if sizes is None else build_model(name, *sizes)
    except TypeError as error:
        # What the user named is wrong, not this program.
        raise ValueError(f"{error}; --data gives it the image_shape and num_classes of a data set") from error
    return [_of_layer(layer) for layer in find_layers(made)]


def _of_layer(layer: Layer) -> FoundWeight:
    is_default = layer.attribute == "weight" and not layer.is_ambiguous
    named = layer.name or "weight", layer.parameter_name
    try:
        shape, memory = layer.shape, None if layer.is_computed else memory_of(layer.weight())
    except UnsupportedWeightError:
        shape, memory = (), None  # said where it is read
    return FoundWeight(*named, shape, is_default, lambda: layer.weight().detach(), memory)
