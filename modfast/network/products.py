"""Products of activations with a weight, as functions of PyTorch are called for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# A function's two factors: the place of each among the positional arguments, and its name.
_FACTORS: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {
    "linear": ((0, "input"), (1, "weight")),
    "matmul": ((0, "input"), (1, "other")),
    "__matmul__": ((0, "self"), (1, "other")),
    "__rmatmul__": ((1, "other"), (0, "self")),
    "mm": ((0, "input"), (1, "mat2")),
    "bmm": ((0, "input"), (1, "mat2")),
    "mv": ((0, "input"), (1, "vec")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
    "embedding": ((0, "input"), (1, "weight")),
    **{
        f"conv{kind}{places}d": ((0, "input"), (1, "weight"))
        for kind in ("", "_transpose")
        for places in (1, 2, 3)
    },
}


@dataclass(frozen=True)
class Product:
    """A product of activations with a weight.

    Attributes:
        activations, weight: the factors.
        contracted: the dimensions of the weight that the product sums over.
        aligned: for each dimension of the weight that activations have too, which one it is of theirs,
            counted from the end.
        place: where the activations are among the arguments: a position or a name, or those of a list.
        picks: whether the activations are indices of the weight's rows.
    """

    activations: Tensor
    weight: Tensor
    contracted: tuple[int, ...]
    aligned: Mapping[int, int] = field(default_factory=dict)
    place: tuple[int | str, ...] = ()
    picks: bool = False

    def with_activations(
        self, activations: Tensor, args: Sequence[Any], options: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the function with other activations."""
        given, named = list(args), dict(options)
        first, *rest = self.place
        if isinstance(first, str):
            named[first] = activations
        elif rest:
            operands = list(given[first])
            operands[int(rest[0])] = activations
            given[first] = operands
        else:
            given[first] = activations
        return given, named


def product_of(
    func: Any, args: Sequence[Any], options: Mapping[str, Any], holds: Callable[[Any], bool]
) -> Product | None:
    """The product that a call computes; None if it is another function, or none with one weight.

    Args:
        func: the function, as ``__torch_function__`` gets it.
        args: its positional arguments.
        options: its keyword arguments.
        holds: whether a value is a weight.
    """
    name = getattr(func, "__name__", "").split(".")[0]
    if name == "einsum":
        return _einsum(args, holds)
    if func is torch.embedding:
        factors = ((1, "indices"), (0, "weight"))
    elif name in _FACTORS:
        factors = _FACTORS[name]
    else:
        return None
    (one, one_place), (other, other_place) = (_argument(args, options, *factor) for factor in factors)
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or holds(one) == holds(other):
        return None
    if name == "embedding":
        return Product(one, other, (0,), {}, (one_place,), picks=True) if holds(other) else None
    if name.startswith("conv"):
        if not holds(other):
            return None
        contracted = 0 if "transpose" in name else 1
        return Product(one, other, (contracted,), {contracted: 1 - other.dim()}, (one_place,))
    if name == "linear":
        return Product(one, other, (1,), {1: -1}, (one_place,)) if holds(other) and other.dim() == 2 else None
    if holds(other):
        return _right_factor(one, other, one_place)
    return _left_factor(one, other, other_place)


def _right_factor(activations: Tensor, weight: Tensor, place: int | str) -> Product | None:
    """``x W``, with any batch dimensions before."""
    if weight.dim() < 2 or activations.dim() < 1:
        return None
    last = weight.dim() - 2
    batches = {dim: dim - weight.dim() for dim in range(last) if weight.dim() - dim <= activations.dim()}
    return Product(activations, weight, (last,), {last: -1, **batches}, (place,))


def _left_factor(weight: Tensor, activations: Tensor, place: int | str) -> Product | None:
    """``W x``, with any batch dimensions before; or of a vector."""
    if weight.dim() < 2 or activations.dim() < 1:
        return None
    last = weight.dim() - 1
    batches = {dim: dim - weight.dim() for dim in range(last - 1) if weight.dim() - dim <= activations.dim()}
    along = -1 if activations.dim() == 1 else -2
    return Product(activations, weight, (last,), {last: along, **batches}, (place,))


def _einsum(args: Sequence[Any], holds: Callable[[Any], bool]) -> Product | None:
    equation, operands = args[0], args[1:]
    listed = len(operands) == 1 and isinstance(operands[0], (list, tuple))
    factors = list(operands[0]) if listed else list(operands)
    if not isinstance(equation, str) or len(factors) != 2 or holds(factors[0]) == holds(factors[1]):
        return None
    terms, arrow, result = equation.replace(" ", "").partition("->")
    sides = terms.split(",")
    which = 0 if holds(factors[0]) else 1
    letters, others = sides[which], sides[1 - which]
    if not arrow or "." in letters or len(set(letters)) != len(letters) or len(sides) != 2:
        return None
    activations = factors[1 - which]
    before, dots, after = others.partition("...")
    if len(set(before + after)) != len(before + after):
        return None
    places = {letter: place - activations.dim() for place, letter in enumerate(before)}
    places |= {letter: place - len(after) for place, letter in enumerate(after)} if dots else {}
    aligned = {dim: places[letter] for dim, letter in enumerate(letters) if letter in places}
    contracted = tuple(dim for dim, letter in enumerate(letters) if letter not in result)
    if not contracted or any(dim not in aligned for dim in contracted):
        return None
    place = (1, 1 - which) if listed else (1 + 1 - which,)
    return Product(activations, factors[which], contracted, aligned, place)


def _argument(
    args: Sequence[Any], options: Mapping[str, Any], place: int, name: str
) -> tuple[Any, int | str]:
    """The value of an argument, and where it is."""
    if place < len(args):
        return args[place], place
    return options.get(name), name
