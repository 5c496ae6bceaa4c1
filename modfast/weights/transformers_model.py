"""Matches the tensors of a file to the layers of the transformers model that ``config.json`` names.

In a file of transformers parameters may have other names than in memory, and experts may be divided into
other tensors. The model is built without values, on the meta device, so that its names and shapes can be
compared with the file's; names are changed as transformers itself does on loading. Code from the folder is
never run.
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
    """The layers of a model, looked up by the names of a file's tensors.

    Args:
        model: the model, on the meta device.
        shapes: the stored shapes of the file's tensors, by canonical name.
    """

    def __init__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        by_parameter: dict[str, list[Layer]] = defaultdict(list)
        for layer in find_layers(model):
            whole = layer.name.rpartition("[")[0] if layer.place is not None else layer.parameter_name
            by_parameter[whole].append(layer)

        def fits(name: str, shape: tuple[int, ...]) -> bool:
            return name in by_parameter and _kept_shape(by_parameter[name][0]) == shape

        # Either all names in a file are the model's, or all are renamed as transformers does on loading.
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
        """Return the layers that a tensor of the file holds: several for a stack, none if unknown."""
        return self._layers.get(name, [])


class UnknownModelError(Exception):
    """The model of a ``config.json`` cannot be built; the message says why."""


def known_model(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> KnownModel:
    """Build the model that a ``config.json`` names.

    Raises:
        UnknownModelError: it names no model, or transformers is not installed, lacks the model or cannot
            build it.
    """
    kind = model_class(config)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = kind(kind.config_class.from_dict(dict(config)))
        return KnownModel(model, shapes)
    except Exception as error:  # a model built from another version's settings may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnknownModelError(f"transformers cannot build {kind.__name__} ({reason})") from error


def model_class(config: Mapping[str, Any]) -> Any:
    """Return the class of the model that a ``config.json`` names, one of transformers' own.

    Raises:
        UnknownModelError: it names no model, or transformers is not installed or lacks the model.
    """
    architectures = config.get("architectures")
    if (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or not isinstance(architectures[0], str)
    ):
        raise UnknownModelError("config.json names no architecture")
    try:
        library = importlib.import_module("transformers")
    except ImportError:
        raise UnknownModelError("transformers is not installed") from None
    kind: Any = getattr(library, architectures[0], None)
    if not (isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)):
        raise UnknownModelError(f"transformers has no {architectures[0]}")
    return kind


def _kept_shape(layer: Layer) -> tuple[int, ...] | None:
    """Return the shape of the tensor that holds a layer's weight: of a whole stack; None if unreadable."""
    try:
        return tuple(layer.source.shape)
    except UnsupportedWeightError:
        return None


def _as_transformers_loads(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | None]:
    """Map the names in a file to those in the model; to None if transformers joins several tensors."""
    loading = importlib.import_module("transformers.core_model_loading")
    mapping = importlib.import_module("transformers.conversion_mapping")
    transforms = mapping.get_model_conversion_mapping(model)
    renamings = [change for change in transforms if isinstance(change, loading.WeightRenaming)]
    converters = [change for change in transforms if isinstance(change, loading.WeightConverter)]
    prefix, state = getattr(model, "base_model_prefix", None), model.state_dict()
    renamed: dict[str, str | None] = {}
    for name in shapes:
        new, converted = loading.rename_source_key(name, renamings, converters, prefix, state)
        if new not in state and name in state:
            new, converted = loading.rename_source_key(name, [], [], prefix, state)
        renamed[name] = new if converted is None else None
    return renamed
