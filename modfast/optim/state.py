"""The state that a step keeps for each parameter: that of ``torch.optim.AdamW``, in float32 or better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast.arrays import is_sharded


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


def is_rehearsal(groups: Sequence[Mapping[str, Any]], rate: Any) -> bool:
    """Whether the first step is the one by which ``torch.distributed.checkpoint`` makes an empty state.

    It gives every trained parameter a gradient of zeros, takes the learning rates of all groups away, and
    relies on a step that changes no weight then. The loss and sparsity would.

    Args:
        groups: the parameter groups.
        rate: the learning rate of the constructor: who gave 0 there means a step that has it.
    """
    trained = [each for group in groups for each in group["params"] if each.requires_grad]
    if any(each.is_cuda for each in trained) and torch.cuda.is_current_stream_capturing():
        return False  # where no number can be read
    if float(rate) == 0.0 or any(float(group["lr"]) != 0.0 for group in groups):
        return False
    return bool(trained) and all(each.grad is not None and _is_zero(each.grad) for each in trained)


def _is_zero(grad: Tensor) -> bool:
    if grad.layout != torch.strided:
        return False
    total: Any = grad.detach().abs().sum()
    # All processes have to answer alike, whatever is in their pieces.
    return not bool(total.full_tensor() if is_sharded(total) else total)


def rehearsed_states(groups: Sequence[Mapping[str, Any]]) -> dict[Tensor, dict[str, Tensor]]:
    """The states after such a step: as ``torch.optim.AdamW`` has them then."""
    trained = [each for group in groups for each in group["params"] if each.requires_grad]
    states = {parameter: new_state(parameter) for parameter in trained}
    for state in states.values():
        with torch.inference_mode(False), torch.no_grad():
            state["step"].fill_(1.0)
    return states
