"""The gradients that a pass without autograd adds to, and the factor by which they are scaled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState


def scale_of(scaler: torch.amp.GradScaler) -> float:
    """The factor by which a ``GradScaler`` has scaled the gradients."""
    if not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler must be a torch.amp.GradScaler or None, got {type(scaler).__name__}")
    if not scaler.is_enabled():
        return 1.0
    if any(state["stage"] is OptState.UNSCALED for state in scaler._per_optimizer_states.values()):
        raise ValueError(
            "scaler has unscaled gradients already: leave it out after scaler.unscale_(optimizer)"
        )
    return float(scaler.get_scale())


def grad_of(weight: Tensor) -> Tensor:
    """The weight's ``.grad``, made dense, or made of zeros if it is missing."""
    grad = weight.grad
    if grad is not None and grad.layout != torch.strided:
        # Autograd does the same when it adds to the sparse gradient of an embedding with sparse=True.
        grad = weight.grad = grad.to_dense()
    if grad is None:
        # A grad_dtype of None stands for a gradient of any dtype.
        dtype = getattr(weight, "grad_dtype", None) or weight.dtype
        grad = weight.grad = torch.zeros_like(weight, dtype=dtype)
    return grad
