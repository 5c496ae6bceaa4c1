"""What transformers knows of a folder: the layers of the model that its ``config.json`` names.

Files of transformers may have other names than the model in memory, and experts in other pieces. The model is
built without numbers, on the meta device, so that its names and shapes can be compared with the file's; names
are changed as transformers itself does on loading. Code from the folder is never run.
"""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from modfast.layers.layer import Layer, find_layers
from modfast.layers.readable import UnsupportedWeightError


class KnownModel:
    """The layers that the tensors of a file are in the model.

    Args:
        model: the model, without numbers.
        shapes: those of the file's tensors as they are kept, by canonical name.
    """

    def __init__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        by_parameter: dict[str, list[Layer]] = defaultdict(list)
        for layer in find_layers(model):
            whole = layer.name.rpartition("[")[0] if layer.place is not None else layer.parameter_name
            by_parameter[whole].append(layer)

        def fits(name: str, shape: tuple[int, ...]) -> bool:
            return name in by_parameter and _kept_shape(by_parameter[name][0]) == shape

        # A file has the names of the model as a whole, or is to be read as transformers reads files.
        if not all(fits(name, shape) for name, shape in shapes.items()):
            renamed = _as_transformers_loads(model, shapes)
        else:
            renamed = {name: name for name in shapes}
        times = Counter(renamed.values())
        self._layers = {
            name: by_parameter[new]
            for name, new in renamed.items()
            if new is not None and times[new] == 1 and fits(new, shapes[name])
        }

    def layers(self, name: str) -> list[Layer]:
        """The layers, several for a stack, that a tensor of the file holds; none where that is not known."""
        return self._layers.get(name, [])


class UnknownModelError(Exception):
    """The model of a ``config.json`` cannot be had; the message says why."""


def known_model(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> KnownModel:
    """The model that a ``config.json`` names.

    Raises:
        UnknownModelError: it names none, or transformers is not there, does not have it or cannot build it.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise UnknownModelError("config.json names no architecture")
    try:
        library = importlib.import_module("transformers")
    except ImportError:
        raise UnknownModelError("transformers is not installed") from None
    kind: Any = getattr(library, named[0], None)
    if not (isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)):
        raise UnknownModelError(f"transformers has no {named[0]}")
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = kind(kind.config_class.from_dict(dict(config)))  # type: ignore[attr-defined]
        return KnownModel(model, shapes)
    except Exception as error:  # whatever a model may raise that is built from settings of another version
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnknownModelError(f"transformers cannot build {named[0]} ({reason})") from error


def _kept_shape(layer: Layer) -> tuple[int, ...] | None:
    """Of the tensor that holds a layer's weight, a stack as a whole."""
    try:
        return tuple(layer.source.shape)
    except UnsupportedWeightError:
        return None


def _as_transformers_loads(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | None]:
    """The name in the model of each of a file; None for what transformers puts together from several."""
    loading = importlib.import_module("transformers.core_model_loading")
    mapping = importlib.import_module("transformers.conversion_mapping")
    transforms = mapping.get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, loading.WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, loading.WeightConverter)]
    prefix, state = getattr(model, "base_model_prefix", None), model.state_dict()
    renamed: dict[str, str | None] = {}
    for name in shapes:
        new, converted = loading.rename_source_key(name, renamings, converters, prefix, state)
        if new not in state and name in state:
            new, converted = loading.rename_source_key(name, [], [], prefix, state)
        renamed[name] = new if converted is None else None
    return renamed
