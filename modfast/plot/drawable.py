"""What users want drawn, as numbers and names that matplotlib can draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from torch import Tensor

from modfast.arrays import as_tensor, require_numbers

LARGEST = 1e300
"""Beyond it matplotlib's own arithmetic overflows: it adds margins, and takes differences of limits."""


def real_numbers(argument: str, values: Any, largest: float = LARGEST) -> Tensor:
    """Return a user's real numbers as float64 on the CPU; infinity and NaN pass.

    Args:
        argument: the argument's name, for messages.
        values: a tensor, an array, or a sequence of numbers or of tensors.
        largest: the largest magnitude that can be drawn.

    Raises:
        TypeError: ``values`` are no numbers, sparse or complex.
        ValueError: ``values`` are on the meta device, or a finite one is too large.

    Example:
        >>> real_numbers("values", [torch.ones(2), torch.zeros(2)])
        tensor([[1., 1.],
                [0., 0.]], dtype=torch.float64)
    """
    tensor = as_tensor(argument, _without_tensors(values))
    require_numbers(argument, tensor)
    if tensor.layout != torch.strided:
        raise TypeError(f"{argument} must be dense, got {tensor.layout}: give its to_dense()")
    if tensor.is_complex():
        raise TypeError(f"{argument} must hold real numbers, got {tensor.dtype}")
    numbers = tensor.cpu().to(torch.float64)
    beyond = numbers[(numbers.abs() > largest) & numbers.isfinite()]
    if len(beyond):
        raise ValueError(f"{argument} must lie within ±{largest:g} to be drawn, got {float(beyond[0])}")
    return numbers


def _without_tensors(values: Any) -> Any:
    """Return sequences with the numbers of the tensors in them, which may want gradients."""
    if isinstance(values, (list, tuple)):
        return [each.tolist() if isinstance(each, Tensor) else _without_tensors(each) for each in values]
    return values


def names_of(argument: str, names: Sequence[object] | None, count: int) -> list[str]:
    """Return names as text; None counts from 0.

    Raises:
        TypeError: they have no order, or are one text.
        ValueError: there are more or fewer.
    """
    if names is None:
        return [str(index) for index in range(count)]
    given: Any = names
    if hasattr(given, "tolist"):
        given = given.tolist()
    # A set has no order in which names could belong to rows.
    unfit = (str, bytes, bytearray, set, frozenset)
    if isinstance(given, unfit) or not hasattr(given, "__len__"):
        raise TypeError(f"{argument} must be a sequence of {count} names, got {type(names).__name__}")
    if len(given) != count:
        raise ValueError(f"{argument} must be {count} names, got {len(given)}")
    return [str(name) for name in given]


def plain_unless_formula(text: Text) -> None:
    r"""Have a text drawn as it is if it has dollars, but is no formula: matplotlib would fail when it draws.

    Example:
        >>> texts = [Text(text=each) for each in ("$x^2$", r"$\foo$")]
        >>> for each in texts:
        ...     plain_unless_formula(each)
        >>> [each.get_parse_math() for each in texts]
        [True, False]
    """
    try:
        MathTextParser("path").parse(text.get_text())
    except (ValueError, RuntimeError):
        text.set_parse_math(False)
