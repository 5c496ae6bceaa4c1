"""What the fake kernels of the operators ask of shapes and types before they tell those of the results.

The compiled kernels ask the same. Without it a traced or meta call with arguments that do not fit would get
results of some shape, or fail at whatever Python met first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPUTED_IN = (torch.float32, torch.float64)
INDICES = (torch.int32, torch.int64)


def require(good: bool | torch.SymBool, message: str) -> None:
    """Raises the compiled operators' kind of error, with their prefix, unless something holds.

    Raises:
        RuntimeError: it does not.
    """
    torch._check(good, lambda: f"modfast: {message}")


def check_shaped(
    name: str,
    tensor: Tensor | None,
    dtypes: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | torch.SymInt | None],
) -> Tensor:
    """The tensor itself, if it is dense, of one of the types and of a shape.

    Args:
        name: of the argument, for messages.
        tensor: what was given; an operator may get nothing for a tensor.
        dtypes: one, or several.
        shape: None stands for any size.

    Raises:
        RuntimeError: it is not.
    """
    if not isinstance(tensor, Tensor):
        raise RuntimeError(f"modfast: {name} must be a tensor, got {type(tensor).__name__}")
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    require(tensor.layout == torch.strided, f"{name} must be a dense (strided) tensor, got {tensor.layout}")
    require(tensor.dtype in allowed, f"{name} must be {' or '.join(map(str, allowed))}, got {tensor.dtype}")
    told = f"{name} must have shape {tuple('any' if size is None else size for size in shape)}"
    require(tensor.dim() == len(shape), f"{told}, got {tuple(tensor.shape)}")
    for size, wanted in zip(tensor.shape, shape, strict=True):
        if wanted is not None:
            require(size == wanted, f"{told}, got {tuple(tensor.shape)}")
    return tensor
