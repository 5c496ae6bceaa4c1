"""Convert users' numbers to tensors: the one place where an array or a sequence becomes a tensor."""

from __future__ import annotations

from collections.abc import Iterator, ValuesView
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

# Types of numbers that PyTorch lacks, and the nearest that it has.
_NEAREST = {np.dtype(np.longdouble): np.dtype(np.float64), np.dtype(np.clongdouble): np.dtype(np.complex128)}


def as_tensor(name: str, values: Any) -> Tensor:
    """Convert a user's numbers to a tensor.

    Args:
        name: the argument's name, for messages.
        values: a tensor, which is detached; an array of any byte order, alignment and layout; a sequence or
            an iterator of numbers, a dict's values too. An array's memory is shared where PyTorch can use it.

    Raises:
        TypeError: ``values`` are a ``DTensor``, nested or quantised, or do not hold numbers.
        ValueError: ``values`` are ragged, or have masked elements.
    """
    if isinstance(values, Tensor):
        require_plain(name, values)
        return values.detach()
    if isinstance(values, (Iterator, ValuesView)):
        values = list(values)
    try:
        array = np.asanyarray(values)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must hold real numbers, got {type(values).__name__} ({error})") from error
    except ValueError as error:
        raise ValueError(f"{name} must have one shape, got {type(values).__name__} ({error})") from error
    return torch.from_numpy(native(name, array))


def require_plain(name: str, tensor: Tensor) -> None:
    """Raises for a tensor that is not one array of plain numbers in this process.

    Raises:
        TypeError: the tensor is a ``DTensor``, nested or quantised.
    """
    require_whole(name, tensor)
    if tensor.is_nested or tensor.is_quantized:
        kind = "a nested tensor" if tensor.is_nested else tensor.dtype
        raise TypeError(f"{name} must be one tensor of plain numbers, got {kind}")


def require_numbers(name: str, tensor: Tensor) -> None:
    """Raises for a tensor that has a shape, but no numbers.

    Raises:
        ValueError: the tensor is on the meta device.
    """
    if tensor.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device")


def to_int64(name: str, values: Tensor, allowed: str = "below 2**63") -> Tensor:
    """Convert integers of any type to int64.

    Args:
        name: the argument's name, for messages.
        values: integers.
        allowed: the range that they must lie in, for messages.

    Raises:
        ValueError: a number does not fit into int64, where it would become negative.
    """
    result = values.to(torch.int64)
    if values.dtype == torch.uint64 and not values.is_meta and bool((result < 0).any()):
        raise ValueError(f"{name} must lie {allowed}, got {int(result.min()) + 2**64}")
    return result


def native(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that PyTorch can share: the array itself, or a copy with strides as close as possible.

    Args:
        name: the argument's name, for messages.
        array: any array.

    Raises:
        TypeError: the array does not hold numbers.
        ValueError: the array has masked elements, for which there is no number.
    """
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if np.ma.is_masked(array):
        raise ValueError(f"{name} must have no masked elements, got {np.ma.count_masked(array)}")
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("=")
    dtype = _NEAREST.get(dtype, dtype)
    usable = (
        array.dtype == dtype
        and array.flags.writeable
        and array.flags.aligned
        and all(stride >= 0 and stride % dtype.itemsize == 0 for stride in array.strides)
    )
    return array if usable else np.array(array, dtype=dtype)


def is_sharded(weight: object) -> bool:
    """Whether a tensor is a ``DTensor``, found without importing its module, which is slow.

    Raises:
        TypeError: it is a ``DTensor`` within a transform of ``torch.func``.
    """
    # The usual types first: looking for a missing attribute takes longer.
    if type(weight) in (Tensor, torch.nn.Parameter):
        # A transform wraps a DTensor in a tensor that does not show what it stands for.
        if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
            inner: Any = weight
            while torch._C._functorch.is_functorch_wrapped_tensor(inner):
                inner = torch._C._functorch.get_unwrapped(inner)
            if inner is not weight and is_sharded(inner):
                raise_transformed()
        return False
    return isinstance(weight, Tensor) and hasattr(weight, "device_mesh") and hasattr(weight, "placements")


def raise_transformed() -> NoReturn:
    """Raises for a ``DTensor`` within a transform of ``torch.func``, where PyTorch shards no labels."""
    raise TypeError(
        "weight must be no DTensor within a transform of torch.func (grad, vjp, vmap): use torch.autograd, "
        "or give its full_tensor()"
    )


def require_whole(name: str, value: object) -> None:
    """Raises for a tensor of which this process holds only a piece, where the whole one is needed.

    Gathering it here would hang if one process calls alone.

    Args:
        name: the argument's name, for the message.
        value: anything.

    Raises:
        TypeError: the value is a ``DTensor``.
    """
    if is_sharded(value):
        raise TypeError(
            f"{name} must be a whole tensor, got a DTensor: give its full_tensor(), which all processes of "
            "its mesh call together"
        )
