"""Matrices of similarities, dense and sparse, with the products and sums that spectral clustering needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from modfast.without_kernels import on_host

from . import operators as ops
from .matrices import CompressedRows, widened
from .operators import AFFINITIES


@dataclass(frozen=True)
class DenseSimilarity:
    """The similarities ``|scale W|``, ``(scale W)^2`` or ``scale W`` of a dense weight W; never stored."""

    weight: Tensor  # (rows, cols), its rows contiguous
    affinity: int
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the matrix."""
        return self.weight.device

    @property
    def memory(self) -> int:
        """The size of the matrix in bytes."""
        return self.weight.numel() * self.weight.element_size()

    def part(self, rows: Tensor, cols: Tensor) -> DenseSimilarity:
        """Return the rows and columns that two bool masks select."""
        return replace(self, weight=self.weight[rows][:, cols].contiguous())

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the sums of the rows and of the columns, float64."""
        return ops.similarity_sums(self.weight, self.affinity, self.scale)

    def product(
        self, right: Tensor | None = None, left: Tensor | None = None, row_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``A right``, and ``A^T left`` or ``A^T (row_weights * (A right))``, in one pass."""
        return ops.similarity_product(self.weight, self.affinity, self.scale, right, left, row_weights)


class SparseSimilarity(ops.SparseMatrix):
    """A matrix of similarities in compressed sparse rows, none of which is negative."""

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return len(self.starts) - 1, self.cols

    @property
    def device(self) -> torch.device:
        """The device of the matrix."""
        return self.values.device

    @property
    def memory(self) -> int:
        """The size of the matrix in bytes."""
        arrays = (self.starts, self.indices, self.values)
        return sum(array.numel() * array.element_size() for array in arrays)

    @cached_property
    def transpose(self) -> SparseSimilarity:
        """The transpose, kept as long as the matrix: making it takes as long as many products."""
        starts, indices, values = ops.sparse_transpose(self.starts, self.indices, self.values, self.cols)
        return self._replace(starts=starts, indices=indices, values=values, cols=len(self.starts) - 1)

    def part(self, rows: Tensor, cols: Tensor) -> SparseSimilarity:
        """Return the rows and columns that two bool masks select; the others must have no nonzero entry."""
        selected = rows.repeat_interleave(self.starts.diff().long()) & cols[self.indices.long()]
        # The number of selected entries before each entry; a row without entries begins where it ends.
        counts = torch.cat([selected.new_zeros(1), selected]).cumsum(0).to(self.starts.dtype)
        new_cols = cols.cumsum(0) - 1
        return self._replace(
            starts=counts[self.starts.long()][torch.cat([rows.new_ones(1), rows])],
            indices=new_cols[self.indices[selected].long()].to(self.indices),
            values=self.values[selected],
            cols=int(cols.sum()),
        )

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the sums of the rows and of the columns, float64."""
        return self._sums(None, None, True)

    def row_sums(self) -> Tensor:
        """Return the sums of the rows, float64."""
        return self._sums(None, None, False)[0]

    def probe(self, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``A right`` and ``A^T left``, float64, for one vector each."""
        return self._sums(right, left, True)

    def _sums(self, right: Tensor | None, left: Tensor | None, of_cols: bool) -> tuple[Tensor, Tensor]:
        if not of_cols or not ops.has_gpu_kernels(self.values):
            return ops.sparse_similarity_sums(self, right, left, of_cols)
        of_rows, _ = ops.sparse_similarity_sums(self, right, None, False)
        return of_rows, ops.sparse_similarity_sums(self.transpose, left, None, False)[0]

    def product_into(self, out: Tensor, right: Tensor, row_weights: Tensor) -> None:
        """Write ``row_weights * (A right)`` to ``out``, for a square matrix with the affinity ``"given"``."""
        ops.graph_product_(out, self, right, row_weights)

    def product(
        self, right: Tensor | None = None, left: Tensor | None = None, row_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``A right``, and ``A^T left`` or ``A^T (row_weights * (A right))``."""
        if (left is None and row_weights is None) or not ops.has_gpu_kernels(self.values):
            return ops.sparse_similarity_product(self, right, left, row_weights)
        if right is not None:
            forward, _ = ops.sparse_similarity_product(self, right, None, None)
            left = left if row_weights is None else row_weights[:, None] * forward
        assert left is not None
        backward, _ = ops.sparse_similarity_product(self.transpose, left, None, None)
        return left.new_empty(0, left.shape[1]) if right is None else forward, backward


Similarity: TypeAlias = DenseSimilarity | SparseSimilarity


def read_similarity(matrix: Tensor | CompressedRows, affinity: str, name: str = "weight") -> Similarity:
    """Check a weight and return its similarities.

    Raises:
        TypeError: ``matrix`` is complex.
        ValueError: ``matrix`` is empty or has fewer than two dimensions, holds NaN, infinity or, as a given
            similarity, a negative number; or ``affinity`` is unknown.
    """
    if affinity not in AFFINITIES:
        raise ValueError(f"affinity must be one of {AFFINITIES}, got {affinity!r}")
    if matrix.dtype.is_complex:
        raise TypeError(f"{name} must be real, got {matrix.dtype}")
    if len(matrix.shape) < 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must have shape (out, in, *kernel), none 0, got {tuple(matrix.shape)}")
    if isinstance(matrix, CompressedRows):
        return _read_sparse(matrix, affinity, name)
    return _read_dense(on_host(matrix), affinity, name)


def _read_dense(weight: Tensor, affinity: str, name: str) -> DenseSimilarity:
    weight = widened(weight)
    scale = _scale(weight, affinity, name)
    if weight.dim() > 2:
        # The similarities at a kernel's positions are added.
        planes = weight.flatten(2).to(torch.float64) * scale
        weight = (planes.square() if affinity == "square" else planes.abs()).sum(2)
        affinity, scale = "given", 1.0
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    return DenseSimilarity(weight, AFFINITIES.index(affinity), scale)


def _read_sparse(matrix: CompressedRows, affinity: str, name: str) -> SparseSimilarity:
    starts, indices, values, (_, cols) = matrix
    values = widened(values)
    if values.dtype != torch.float64:
        values = values.to(torch.float32)
    scale = _scale(values, affinity, f"{name}'s values") if len(values) else 1.0
    return SparseSimilarity(
        starts.contiguous(),
        indices.contiguous(),
        values.contiguous(),
        cols,
        AFFINITIES.index(affinity),
        scale,
    )


def _scale(values: Tensor, affinity: str, name: str) -> float:
    """Return a power of two that brings the largest value near one; raise for values that are not allowed."""
    low, high = (float(extreme) for extreme in torch.aminmax(values))
    if not (math.isfinite(low) and math.isfinite(high)) or (affinity == "given" and low < 0):
        bad = ~values.isfinite() | (values < 0) if affinity == "given" else ~values.isfinite()
        position = tuple(bad.nonzero()[0].tolist())
        allowed = "finite and, as a given similarity, not negative" if affinity == "given" else "finite"
        raise ValueError(f"{name} must be {allowed}, got {values[position].item()} at {position}")
    largest = max(-low, high)
    if largest == 0:
        return 1.0
    # The scale must be representable in the dtype in which the values are multiplied by it.
    most = 1000 if values.dtype == torch.float64 else 126
    return 2.0 ** -min(max(math.frexp(largest)[1], -most), most)
