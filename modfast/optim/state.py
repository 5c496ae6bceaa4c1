"""The state that a step keeps for each parameter: that of ``torch.optim.AdamW``, in float32 or better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the moments of a weight."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def new_state(parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step: moments of zeros with the layout of the parameter."""
    # Tensors that inference mode makes could never be changed outside it.
    with torch.inference_mode(False), torch.no_grad():
        wide = wide_dtype(parameter.dtype)
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format),
        }


def loaded_state(parameter: Tensor, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state with the values of another one, which fits, in memory of its own."""
    state = new_state(parameter)
    with torch.inference_mode(False), torch.no_grad():
        state["step"].fill_(float(values["step"]))
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].copy_(values[name])
    return state
