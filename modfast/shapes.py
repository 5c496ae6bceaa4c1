"""Checks of shapes and types that the operators' fake kernels make before they return results.

The compiled kernels make the same checks. Without them a traced or meta call with arguments that do not fit
would get results of some shape, or fail with an unrelated Python error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPUTED_IN = (torch.float32, torch.float64)
INDICES = (torch.int32, torch.int64)


def require(good: bool | torch.SymBool, message: str) -> None:
    """Raises the error type of the compiled operators, with their prefix, unless a condition holds.

    Raises:
        RuntimeError: the condition does not hold.
    """
    torch._check(good, lambda: f"modfast: {message}")


def check_shaped(
    name: str,
    tensor: Tensor | None,
    dtypes: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | torch.SymInt | None],
) -> Tensor:
    """Return the tensor if it is dense and has one of the dtypes and the shape.

    Args:
        name: the argument's name, for messages.
        tensor: the argument; an operator may get None for a tensor.
        dtypes: one, or several.
        shape: None stands for any size.

    Raises:
        RuntimeError: the tensor does not fit.
    """
    if not isinstance(tensor, Tensor):
        raise RuntimeError(f"modfast: {name} must be a tensor, got {type(tensor).__name__}")
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    require(tensor.layout == torch.strided, f"{name} must be a dense (strided) tensor, got {tensor.layout}")
    require(tensor.dtype in allowed, f"{name} must be {' or '.join(map(str, allowed))}, got {tensor.dtype}")
    required = f"{name} must have shape {tuple('any' if size is None else size for size in shape)}"
    require(tensor.dim() == len(shape), f"{required}, got {tuple(tensor.shape)}")
    for size, wanted in zip(tensor.shape, shape, strict=True):
        if wanted is not None:
            require(size == wanted, f"{required}, got {tuple(tensor.shape)}")
    return tensor
