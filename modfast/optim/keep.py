"""Which matrices keep only their largest weights, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modfast.layers.layer import (
    Choice,
    Layer,
    choose_layers,
    find_layers,
    layer_names,
    linear_layers,
    listed_choices,
)
from modfast.layers.readable import has_no_shape

from .device import is_captured
from .layers import LossLayers

Keep: TypeAlias = float | Callable[[int], float]
"""Which share of each matrix stays non-zero after a step, or a function of the step's number."""

KeepChoices: TypeAlias = Iterable[Choice | Tensor] | Choice | Tensor
"""Which matrices: names and so on of layers of the loss; modules; parameters."""

Places: TypeAlias = dict[int, dict[int | None, str]]
"""By the ``id`` of a parameter, the matrices of it that are chosen, with names; None if it is no stack."""

# Parts of names of parameters that are an embedding's.
_EMBEDDING_PARTS = ("emb", "wte", "wpe")


def check_share(name: str, share: object) -> float:
    """Return a share that may be kept.

    Raises:
        ValueError, TypeError: it is no number in (0, 1].
    """
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"{name} must be a number in (0, 1], got {type(share).__name__}")
    if not 0.0 < float(share) <= 1.0:
        raise ValueError(f"{name} must be a number in (0, 1], got {share}")
    return share  # type: ignore[return-value]  # as it is given, since its decimal digits count


def check_keep(keep: object) -> None:
    """Raises unless ``keep`` is None, a share or a function.

    Raises:
        ValueError, TypeError: it is none of them.
    """
    if keep is None or (callable(keep) and not isinstance(keep, type)):
        return
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(
            "keep must be None, a number in (0, 1] or a function of the step's number that returns one, "
            f"got {type(keep).__name__}"
        )
    check_share("keep", keep)


def kept_counts(share: float, sizes: Iterable[int]) -> list[int]:
    """How many elements of each matrix stay: the share of its size, rounded up.

    The share is the decimal number that it is written as: a tenth of 30 is 3, though ``0.1 * 30`` is more.

    Example:
        >>> kept_counts(0.1, [30, 31, 0])
        [3, 4, 0]
    """
    exact = Fraction(str(share))
    return [-(-exact.numerator * size // exact.denominator) for size in sizes]


def share_at(keep: Keep, step: int) -> float:
    """The share of the step of this number, from 1."""
    if not callable(keep):
        return keep
    return check_share(f"keep({step})", keep(step))


def step_numbers(steps: Sequence[Tensor]) -> list[int]:
    """The numbers that step tensors, all on one device, have after the step that comes now.

    Raises:
        RuntimeError: a CUDA graph is captured, which would repeat the numbers of now.
    """
    if is_captured(steps[0].device):
        raise RuntimeError(
            "keep must be a number while a CUDA graph is captured, got a function: the graph would repeat "
            "one of its values for ever"
        )
    return [int(number) + 1 for number in torch.stack(list(steps)).tolist()]


def chosen_places(
    choices: KeepChoices | None, layers: LossLayers | None, groups: Sequence[Mapping[str, Any]]
) -> Places:
    """The matrices that keep only their largest weights.

    Args:
        choices: ``keep_layers``.
        layers: the layers of the loss, if there is one.
        groups: the optimiser's parameter groups.

    Raises:
        ValueError: a choice matches nothing or is not one matrix, a weight is computed, or no parameter
            group has it; without a loss and choices, a parameter is an embedding's by its name, or there is
            none of two dimensions.
        TypeError: a choice is of another kind.
    """
    own = {id(parameter) for group in groups for parameter in group["params"]}
    if choices is None and layers is None:
        return _matrices(groups)
    if choices is None:
        assert layers is not None
        return _places_of(layers.loss._layers, own, "keep")
    places: Places = {}
    for choice in [choices] if isinstance(choices, Tensor) else _listed(choices):
        if isinstance(choice, Tensor):
            found = _places_of_parameter(choice, layers, own)
        else:
            found = _places_of(_layers_of(choice, layers), own, "keep_layers")
        for key, named in found.items():
            places.setdefault(key, {}).update(named)
    if not places:
        raise ValueError(f"keep_layers must choose a weight that is trained, got {choices!r}")
    return places


def _listed(choices: Any) -> list[Any]:
    return list(listed_choices(choices, "keep_layers"))


def _matrices(groups: Sequence[Mapping[str, Any]]) -> Places:
    """Every parameter of two dimensions: tensors do not know what they are used for."""
    places: Places = {}
    for number, group in enumerate(groups):
        names = group.get("param_names", [None] * len(group["params"]))
        for place, (parameter, known) in enumerate(zip(group["params"], names, strict=True)):
            name = f"parameter {place} of group {number}" if known is None else known
            if has_no_shape(parameter):
                raise ValueError(f"keep: {name} has no shape yet: call the model once")
            if not parameter.requires_grad or parameter.dim() != 2:
                continue
            if known is not None and any(part in known.lower() for part in _EMBEDDING_PARTS):
                raise ValueError(
                    f"keep: {name!r} is an embedding's by its name, no linear layer's: say which weights "
                    "to keep sparse by keep_layers, such as keep_layers=model for all its linear layers"
                )
            places[id(parameter)] = {None: name}
    if not places:
        raise ValueError("keep: no parameter has two dimensions: say which matrices by keep_layers")
    return places


def _layers_of(choice: Any, layers: LossLayers | None) -> list[Layer]:
    """The layers that a module, a name, a glob or a function stands for."""
    if isinstance(choice, nn.Module):
        # A module that is a layer itself, such as a convolution or an embedding, is asked for by itself.
        found = linear_layers(choice) or [layer for layer in find_layers(choice) if layer.module is choice]
        if not found:
            raise ValueError(
                f"keep_layers: the module {type(choice).__name__} holds no linear layer; it has "
                f"{layer_names(find_layers(choice))}: give those modules themselves"
            )
        return found
    if layers is None:
        raise ValueError(
            "keep_layers must be a model, modules or parameters if there is no enmeshment, whose layers have "
            f"names, got {choice!r}"
        )
    return choose_layers(layers.loss._layers, choice, "keep_layers")


def _places_of(layers: Sequence[Layer], own: set[int], argument: str) -> Places:
    places: Places = {}
    for layer in layers:
        parameter = layer.parameter
        if parameter is None:
            raise ValueError(
                f"{argument}: the weight of layer {layer.name!r} is computed from others, whose largest are "
                "not those of the weight: choose other layers by keep_layers"
            )
        if not parameter.requires_grad:
            continue
        if id(parameter) not in own:
            raise ValueError(f"{argument}: no parameter group has the weight of layer {layer.name!r}")
        places.setdefault(id(parameter), {})[layer.place] = layer.name
    return places


def _places_of_parameter(parameter: Tensor, layers: LossLayers | None, own: set[int]) -> Places:
    shown = f"a parameter of shape {tuple(parameter.shape)}"
    if id(parameter) not in own:
        raise ValueError(f"keep_layers: no parameter group has {shown}")
    known = [] if layers is None else layers.loss._layers
    stacks = [layer for layer in known if layer.parameter is parameter and layer.place is not None]
    if stacks:
        stack = stacks[0].name.rpartition("[")[0]
        return {id(parameter): {place: f"{stack}[{place}]" for place in range(parameter.shape[0])}}
    if parameter.dim() < 2:
        raise ValueError(f"keep_layers must choose matrices, got {shown}")
    if parameter.dim() == 3:
        raise ValueError(
            f"keep_layers: it is not known whether {shown} is a stack of matrices or the kernel of a "
            "convolution: give the convolution itself, or choose a stack by name from the layers of a loss"
        )
    return {id(parameter): {None: shown}}
