"""What the optimiser refuses: options that it does not have, parameters and loaded states that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def check_loaded(state_dict: Mapping[str, Any]) -> None:
    """Raises for a state that is not that of an AdamW with these options, before anything is loaded.

    Raises:
        ValueError: it has options or tensors that this optimiser does not have, or lacks some.
    """
    for number, group in enumerate(state_dict["param_groups"]):
        unfused = {name: value for name, value in group.items() if name in _WITHOUT}
        check_options(unfused, f" in group {number} of the loaded state")
    for key, values in state_dict["state"].items():
        if values and set(values) != set(STATE_KEYS):
            raise ValueError(
                f"the loaded state of parameter {key} must hold {', '.join(STATE_KEYS)}, "
                f"got {', '.join(sorted(map(str, values)))}"
            )
