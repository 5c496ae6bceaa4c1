"""Helpers for the derivatives of all families: where PyTorch would lose them, and a batching rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents: within ``torch.func.jvp``, ``jacfwd``, ``hessian`` or a dual level.

    PyTorch keeps the level of nesting for the whole process, and torch.compile has a guard on it.
    """
    return forward_ad._current_level >= 0


def compiles_a_transform() -> bool:
    """Whether ``torch.compile`` traces a transform of ``torch.func``.

    It then uses only the forward pass of an autograd.Function, whose gradient would silently be 0.
    """
    return torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def one_by_one(function: Callable[..., Any]) -> Any:
    """A batching rule: one call for each element of the batch, each a pass over memory of its own.

    Args:
        function: returns a tensor or a tuple of tensors.

    Returns:
        What ``torch.library.register_vmap`` and the ``vmap`` of an autograd.Function take.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            function(
                *(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])

    return rule
