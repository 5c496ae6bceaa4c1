"""Products with matrices in disguise: numbers are repeated, multiplied by a parameter, and added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from .marks import Weight

# Operators that may exchange dimensions of the same size.
_TURNING = ("permute", "transpose", "t", "movedim", "rot90")


class Spread:
    """Which values come from a parameter that met numbers repeated along one of its dimensions.

    ``(x[:, None] * w).sum(-1)`` is what a matrix does, and so is the distance of numbers from the rows of a
    codebook; whose units its rows and columns have is not known of a table of numbers.
    """

    def __init__(self) -> None:
        # The parameter's name, and the dimensions, from the last one, that both had; None where numbers have
        # been moved since.
        self._found: dict[fx.Node, tuple[str, frozenset[int] | None]] = {}

    def meet(self, node: fx.Node, values: Sequence[Any], numbers: Sequence[Any], dims: int) -> None:
        """Note if one of two values that meet is a parameter, and the other one is repeated for it.

        Args:
            node: the operation.
            values: what is known of both.
            numbers: both, as the operator gets them.
            dims: the number of dimensions of the result.
        """
        for value, ours, theirs in zip(values, numbers, numbers[::-1], strict=True):
            if not isinstance(value, Weight) or not isinstance(theirs, Tensor):
                continue
            one, other = ([1] * (dims - each.dim()) + list(each.shape) for each in (ours, theirs))
            shared = {dim - dims for dim in range(dims) if one[dim] > 1 and other[dim] > 1}
            if shared and any(one[dim] > 1 and other[dim] == 1 for dim in range(dims)):
                self._found[node] = value.name, frozenset(shared)

    def pass_on(self, node: fx.Node, name: str, shape: Sequence[int]) -> None:
        """Note the same of a result whose numbers are those of an argument, each by itself or moved.

        Args:
            node: the operation.
            name: of its operator.
            shape: of the result.
        """
        for each in node.all_input_nodes:
            if each in self._found and node not in self._found:
                parameter, shared = self._found[each]
                value = each.meta.get("val")
                same = isinstance(value, Tensor) and tuple(value.shape) == tuple(shape)
                self._found[node] = parameter, shared if same and name not in _TURNING else None

    def added_up(self, node: Any, dims: Sequence[int]) -> str | None:
        """The parameter that acts as a matrix if a value is added up along dimensions, from the last one."""
        name, shared = self._found.get(node, (None, frozenset()))
        return name if shared is None or not shared.isdisjoint(dims) else None
