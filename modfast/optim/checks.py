"""What the optimiser refuses: options that it does not have, parameters and loaded states that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modfast.arrays import is_sharded
from modfast.shapes import FLOATS

STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")

_WITHOUT = ("amsgrad", "maximize", "differentiable")


def check_options(options: Mapping[str, Any], where: str = "") -> None:
    """Raises for options of ``torch.optim.AdamW`` that change its step into another one.

    Args:
        options: by name, those of a parameter group or of the constructor; missing ones are not checked.
        where: words for the message that say where the options are.

    Raises:
        ValueError: one of them is set.
    """
    for name in _WITHOUT:
        if options.get(name):
            raise ValueError(
                f"{name} must be False{where}, got {options[name]!r}: modfast.optim.AdamW has no such step, "
                "torch.optim.AdamW has"
            )
    if options.get("foreach"):
        raise ValueError(
            f"foreach must be None or False{where}, got {options['foreach']!r}: every step is fused"
        )
    if options.get("fused", True) not in (True, None):
        raise ValueError(f"fused must be True{where}, got {options['fused']!r}: every step is fused")


def check_parameter(parameter: Tensor, where: str) -> None:
    """Raises for a parameter that a step could never update.

    Frozen parameters of any type pass, as quantised models have them: they never have a gradient.

    Raises:
        TypeError: it is of another type than float32, float64, float16 and bfloat16.
    """
    if parameter.dtype in FLOATS or (isinstance(parameter, nn.Parameter) and not parameter.requires_grad):
        return
    raise TypeError(f"{where} must be float32, float64, float16 or bfloat16, got {parameter.dtype}")


def check_gradient(parameter: Tensor, grad: Tensor, where: str) -> None:
    """Raises for a gradient that is not dense, or not spread over processes as its parameter is.

    Raises:
        TypeError: the parameter is of a type that cannot be updated.
        ValueError: the gradient does not fit.
    """
    if parameter.dtype not in FLOATS:
        raise TypeError(f"{where} must be float32, float64, float16 or bfloat16, got {parameter.dtype}")
    if grad.layout != torch.strided:
        raise ValueError(
            f"the gradient of {where} must be dense, got {grad.layout}: use sparse=False, or "
            "torch.optim.SparseAdam"
        )
    wanted, given = getattr(parameter, "placements", None), getattr(grad, "placements", None)
    if wanted != given:
        raise ValueError(
            f"the gradient of {where} must be spread over processes as its parameter is, by {wanted}, "
            f"got {given}"
        )


def check_loaded(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises for a state that is not that of an AdamW with these options, before anything is loaded.

    Args:
        state_dict: the state.
        groups: the parameter groups that get it.

    Raises:
        ValueError: it has options or tensors that this optimiser does not have, lacks some, or they are of
            another shape than the parameters, or only one of both is a ``DTensor``.
    """
    for number, (saved, group) in enumerate(zip(state_dict["param_groups"], groups, strict=False)):
        unknown = {name: value for name, value in saved.items() if name in _WITHOUT}
        check_options(unknown, f" in group {number} of the loaded state")
        for key, parameter in zip(saved["params"], group["params"], strict=False):
            if values := state_dict["state"].get(key):
                _check_loaded_of(key, values, parameter)


def _check_loaded_of(key: object, values: Mapping[str, Any], parameter: Tensor) -> None:
    if set(values) != set(STATE_KEYS):
        raise ValueError(
            f"the loaded state of parameter {key} must hold {', '.join(STATE_KEYS)}, "
            f"got {', '.join(sorted(map(str, values)))}"
        )
    for name in ("exp_avg", "exp_avg_sq"):
        value = values[name]
        if value.shape != parameter.shape:
            raise ValueError(
                f"the loaded {name} of parameter {key} must have shape {tuple(parameter.shape)}, "
                f"got {tuple(value.shape)}"
            )
        if is_sharded(value) != is_sharded(parameter):
            raise ValueError(
                f"the loaded {name} of parameter {key} must be a {type(parameter.data).__name__} as the "
                f"parameter is, got a {type(value).__name__}: load it by torch.distributed.checkpoint"
            )
