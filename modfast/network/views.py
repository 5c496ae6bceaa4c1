"""Parameters that are weights, and how tensors lie in them of which they are views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from modfast.layers.layer import Layer


@dataclass
class Held:
    """A parameter whose reads are caught: where its matrix lies in it, and the units of both sides."""

    name: str
    layer: Layer
    parameter: Tensor
    stack_dim: int | None
    sides: dict[int, tuple[str, Tensor]]  # dimension of the parameter -> key and units


@dataclass(frozen=True)
class View:
    """How a tensor lies in the parameter that it is a view of.

    Attributes:
        dims: for each of its dimensions the parameter's, and the index where it begins.
        stack: its dimension that counts the matrices of a stack; -1 if it has one matrix.
        place: the matrix of the stack, if it has one.
        reshaped: whether a dimension of it is none of the parameter's.
    """

    dims: Mapping[int, tuple[int, int]]
    stack: int = -1
    place: int = 0
    reshaped: bool = False

    def matrix_dim(self, contracted: tuple[int, ...]) -> int:
        """The one dimension of those that a product sums over that does not count matrices; -1 if several."""
        of_matrix = [dim for dim in contracted if dim != self.stack]
        return of_matrix[0] if len(of_matrix) == 1 else -1

    @classmethod
    def of(cls, held: Held, weight: Tensor) -> View:
        """How a tensor lies in the parameter that is held."""
        whole, stack_dim = held.parameter, held.stack_dim
        if weight.shape == whole.shape and weight.stride() == whole.stride():
            return cls({dim: (dim, 0) for dim in range(whole.dim())}, -1 if stack_dim is None else stack_dim)
        begins = _indices(whole, int(weight.storage_offset() - whole.storage_offset()))
        dims: dict[int, tuple[int, int]] = {}
        for dim, (size, stride) in enumerate(zip(weight.shape, weight.stride(), strict=True)):
            if size == 1 or stride == 0:
                continue
            fitting = [
                own
                for own in range(whole.dim())
                if whole.stride(own) == stride and 1 < begins[own] + size <= whole.shape[own]
            ]
            if len(fitting) != 1:
                return cls(dims, reshaped=True)
            dims[dim] = fitting[0], begins[fitting[0]]
        first = 0 if stack_dim is None else 1
        taken = {own for own, _ in dims.values()}
        free = [own for own in (first, first + 1) if own not in taken]
        if len(free) == 1:  # one row or one column
            for dim, size in enumerate(weight.shape):
                if size == 1:
                    dims.setdefault(dim, (free[0], begins[free[0]]))
        stacks = [dim for dim, (own, _) in dims.items() if own == stack_dim]
        place = 0 if stack_dim is None else begins[stack_dim]
        return cls(dims, stacks[0] if stacks else -1, place)


def _indices(whole: Tensor, offset: int) -> list[int]:
    """The index along each dimension of the number that lies at an offset."""
    found, strides = [0] * whole.dim(), list(whole.stride())
    for dim in sorted(range(whole.dim()), key=lambda d: -strides[d]):
        if strides[dim] > 0 and whole.shape[dim] > 1:
            found[dim], offset = divmod(offset, strides[dim])
    return found
