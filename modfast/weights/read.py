"""The weight matrices of a model, read from a run's folder, a file or a function."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modfast.display import html_table, listed
from modfast.layers.layer import Layer, find_layers
from modfast.layers.names import match_names
from modfast.layers.readable import UnsupportedWeightError
from modfast.models import build_model, import_model
from modfast.train.checkpoint import CHECKPOINT, read_checkpoint

from .file_weights import FoundWeight, file_weights
from .pickled import load_pickled, memory_of
from .tensor_files import is_weights_folder, open_tensors


class Weights(Mapping[str, Tensor]):
    """Weights by layer, each ``(out, in, *kernel)``, read when it is looked up.

    Attributes:
        left_out: the names of the model's other matrices, if the weights were chosen by default.
        assumed: the names of weights that are taken as ``(out, in, *kernel)`` because most are stored so,
            while nothing in the file shows it: they may belong to transposed convolutions or, with three
            dimensions, to no convolution.
        unmatched: for weights named as in a file of transformers, which the model in memory may name
            otherwise: the reason, by name.
    """

    def __init__(self, found: Sequence[FoundWeight], left_out: Sequence[str]) -> None:
        self._weights = {weight.name: weight for weight in found}
        self.left_out = list(left_out)
        self.assumed = [weight.name for weight in found if weight.is_assumed]
        self.unmatched = {
            weight.name: weight.why_unmatched for weight in found if weight.why_unmatched is not None
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return f"Weights({len(self)} weights: {listed(list(self._weights)) or 'none'})"

    def _repr_html_(self) -> str:
        rows = [[name or "(the model)", " x ".join(map(str, self.shape(name)))] for name in self]
        return html_table(f"Weights: {len(self)}, read when they are looked up", ("name", "shape"), rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight without reading the weight."""
        return self._weights[name].shape


def read_weights(
    model: str,
    layers: Sequence[str] | None = None,
    *,
    sizes: tuple[Sequence[int], int] | None = None,
    seed: int = 0,
) -> Weights:
    """Return a model's dense floating-point weights of at least two dimensions, by layer.

    Args:
        model: a folder or checkpoint that ``modfast train`` wrote; a folder of transformers, with weights in
            one file or in shards, or the index of the shards; a ``.safetensors`` file; another file that is a
            state_dict or has one entry that is one (``"state_dict"`` of Lightning, ``"model"``), loaded
            without running code from it; or ``"package.module:callable"``.
        layers: names or globs of layers or parameters. The default, the parameters named ``weight``, suits
            most models; name what it leaves out, such as stacks of experts (see ``Weights.left_out``).
        sizes: image shape and number of classes, with which a callable is called as by
            ``modfast train --model``. Without them it is called without arguments.
        seed: the seed of PyTorch's global generator, set before a callable is called.

    Returns:
        Layer name to ``(out, in, *kernel)``, detached, on the device of the model (the CPU for a file). A
        weight that several layers share is there once. Each weight is read when it is looked up, and one
        shard is in memory at a time. Names are canonical, without the prefixes of wrappers (``module.``,
        ``_orig_mod.``, ``base_model.model.``), so that partitions found here fit the plain and the wrapped
        model. If ``config.json`` names a model that the installed transformers has, the names are those of
        that model in memory, which may differ from the file's. Without such a model, and for weights that
        transformers joins from several tensors, they are the file's; ``Weights.unmatched`` says why.

        A weight is what the layer multiplies by. If the file holds the pieces of weight_norm, spectral_norm,
        pruning, or a LoRA adapter with ``adapter_config.json`` beside the file, the weight is computed from
        them and has the name that it has in memory (``"lstm.weight_hh_l0"``, also if the file has
        ``lstm.weight_hh_l0_orig`` and its mask). Weights stored as (in, out), as in transposed convolutions,
        some stacks of experts and the ``Conv1D`` of transformers, are returned as (out, in) if the length of
        their bias, the factors of an adapter or ``config.json`` shows it. If nothing shows it, the first two
        dimensions are taken as they stand, and ``Weights.assumed`` names what may be stored otherwise. A
        tensor of three dimensions is taken for a convolution's if it is called ``weight``, else for a stack
        of matrices, each with its place as in ``"experts.up_proj[3]"``.

    Raises:
        FileNotFoundError: ``model`` does not exist, or a shard is missing.
        ValueError, OSError, TrainingError: ``model`` is no model, or is damaged; a pattern of ``layers``
            matches nothing, or there is no weight at all; the file has adapters of peft other than LoRA, or
            several state_dicts. When a weight is looked up: it is packed, quantised or not dense, or the file
            does not show how it is computed or stored. That includes the dimension of spectral_norm in a
            square weight whose singular vectors no forward pass in training mode has updated.
        ImportError: a ``.safetensors`` file needs that package, which is not installed.

    Example:
        >>> {name: tuple(weight.shape) for name, weight in read_weights("modfast.models:MLP").items()}
        {'fc1': (64, 784), 'fc2': (64, 64), 'fc3': (10, 64)}
    """
    weights = _find(model, sizes, seed)
    if layers is None:
        chosen = [weight for weight in weights if weight.is_default]
    else:
        names = [(weight.name, weight.parameter_name, *weight.other_names) for weight in weights]
        matched = {index for pattern in layers for index in match_names(names, pattern, "layers")}
        chosen = [weights[index] for index in sorted(matched)]
    if not chosen:
        raise ValueError(
            f"{model} has no weight matrix: no dense floating-point '*.weight' of two dimensions"
        )
    left_out = [weight.name for weight in weights if not weight.is_default] if layers is None else []
    distinct: dict[object, FoundWeight] = {}
    for weight in chosen:
        distinct.setdefault(weight.name if weight.memory is None else weight.memory, weight)
    return Weights(list(distinct.values()), left_out)


def find_checkpoint(model: str | os.PathLike[str]) -> Path | None:
    """Return the path of a model: a file, a folder of transformers, a run's checkpoint; None for a callable.

    Raises:
        FileNotFoundError: ``model`` does not exist, or is a folder without a model.
        ValueError: a folder holds several runs.
    """
    path = Path(model)
    if path.is_dir():
        if (path / CHECKPOINT).exists():
            return path / CHECKPOINT
        if is_weights_folder(path):
            return path
        runs = sorted(str(folder) for folder in path.iterdir() if (folder / CHECKPOINT).exists())
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
    # The run saved the weights of its layers as (out, in, *kernel), computed where the layer computes them.
    measured = {name or "weight": _in_memory(name, weight) for name, weight in state["weights"].items()}
    stored = file_weights(open_tensors(path, state["model"]))
    return [measured.pop(weight.name, weight) for weight in stored] + list(measured.values())


def _in_memory(name: str, weight: Tensor) -> FoundWeight:
    """Return a layer's weight that is in memory already."""
    parameter_name, memory = f"{name}.weight" if name else "weight", memory_of(weight)
    return FoundWeight(name or "weight", parameter_name, tuple(weight.shape), True, lambda: weight, memory)


def _of_callable(name: str, sizes: tuple[Sequence[int], int] | None, seed: int) -> list[FoundWeight]:
    torch.manual_seed(seed)
    try:
        network = import_model(name) if sizes is None else build_model(name, *sizes)
    except TypeError as error:
        # The callable that the user named is at fault, not this program.
        raise ValueError(f"{error}; --data gives it the image_shape and num_classes of a data set") from error
    return [_of_layer(layer) for layer in find_layers(network)]


def _of_layer(layer: Layer) -> FoundWeight:
    is_default = layer.attribute == "weight" and not layer.is_ambiguous
    named = layer.name or "weight", layer.parameter_name
    try:
        shape, memory = layer.shape, None if layer.is_computed else memory_of(layer.weight())
    except UnsupportedWeightError:
        shape, memory = (), None  # raised when the weight is read
    return FoundWeight(*named, shape, is_default, lambda: layer.weight().detach(), memory)
