"""The spectral embedding of a matrix or a graph: coordinates in which nodes of a cluster lie close together.

The coordinates are eigenvectors of the normalised similarities, computed in float32 where that reaches the
requested accuracy, else in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from . import operators as ops
from .krylov import Eigen, Small, block_width, largest_eigenvectors, one_thread, random_block
from .similarity import DenseSimilarity, Similarity, SparseSimilarity

# A matrix whose smaller side is at most this is decomposed whole.
_EXACT = 64

# The error of an eigenvalue in float32; the largest eigenvalue is 1.
_FLOAT32_ERROR = 1e-7

# Where the largest degree is this many times the smallest, float32 has too small a range.
_FLOAT32_RANGE = 1e12

# A basis may take this many bytes, however small the matrix is.
_LITTLE_MEMORY = 32 * 2**20

# Blocks up to this width are left to the compiled solver. Wider ones need decompositions of matrices up to
# eight times as wide, for which LAPACK takes less time.
_COMPILED_WIDTH = 16

# Singular values below this come from rounding: they are roots of eigenvalues computed in float64.
_FLOAT64_ZERO = 1e-7


class Embedding(NamedTuple):
    """A point for each node that has edges, and how the solver got there."""

    points: Tensor  # (nodes with edges, dims), float32, on the device of the similarities
    weights: Tensor  # (nodes with edges,), float32: each node's degree, divided by their sum
    values: Tensor  # (count,), singular values or eigenvalues, float64
    residuals: Tensor  # (count,)
    passes: int
    converged: bool
    dtype: torch.dtype  # of the computation


def inverse(degrees: Tensor) -> Tensor:
    """Return ``1 / degrees``, and 0 for a node without edges."""
    return degrees.reciprocal().masked_fill_(degrees <= 0, 0.0)


class Singular(NamedTuple):
    """Top singular vectors of a matrix's normalised similarities, and how the solver got there."""

    # D_row^-1/2 times the left ones, then D_col^-1/2 times the right ones, (rows + cols, count), float64
    vectors: Tensor
    values: Tensor  # (count,), float64, on the CPU
    residuals: Tensor  # (count,)
    passes: int
    converged: bool
    dtype: torch.dtype  # of the computation
    zero: float  # values up to this come from rounding


def singular_vectors(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    count: int,
    *,
    tol: float,
    max_iter: int,
    seed: int,
) -> Singular:
    """Return the top singular vectors of ``N = D_row^-1/2 A D_col^-1/2``.

    Args:
        similarity: A.
        degrees: the sums of its rows and of its columns.
        count: the number of singular vectors.
        tol: a singular triplet ``(s, u, v)`` of N has converged when ``|N^T u - s v| <= tol s``.
        max_iter: the maximum number of passes over the matrix, in each precision.
        seed: seeds the starting vectors.
    """
    has_edges = [of_side > 0 for of_side in degrees]
    with_edges = [int(of_side.sum()) for of_side in has_edges]
    if _is_small(min(with_edges), count) and sum(with_edges) < sum(similarity.shape):
        part = similarity.part(*has_edges)
        of_part = singular_vectors(
            part, part.sums(), min(count, *part.shape), tol=tol, max_iter=max_iter, seed=seed
        )
        vectors = _spread(of_part.vectors, torch.cat(has_edges), count)
        values, residuals = (_padded(numbers, count) for numbers in (of_part.values, of_part.residuals))
        return of_part._replace(vectors=vectors, values=values, residuals=residuals)
    if _is_small(min(similarity.shape), count):
        vectors, values = _all_singular_vectors(similarity, degrees, count)
        return Singular(vectors, values, torch.zeros_like(values), 1, True, torch.float64, 1e-12)
    generator = torch.Generator("cpu").manual_seed(seed)
    capacity = _capacity(similarity.memory, with_edges[1], count)
    if _is_solved_at_once(similarity, capacity, count):
        random = torch.rand(
            similarity.shape[1], block_width(count), generator=generator, dtype=torch.float32, device="cpu"
        )
        vectors, values, residuals, outcome = ops.similarity_singular_vectors(
            similarity.weight,
            similarity.affinity,
            similarity.scale,
            degrees,
            random,
            count,
            tol,
            max_iter,
            capacity,
            seed,
        )
        passes, converged, in_double = outcome.tolist()
        dtype = torch.float64 if in_double else torch.float32
        return Singular(vectors, values, residuals, passes, bool(converged), dtype, _FLOAT64_ZERO)
    row_weights, col_weights = (inverse(of_side) for of_side in degrees)

    def solve(dtype: torch.dtype) -> Eigen:
        of_rows, of_cols = row_weights.to(dtype), col_weights.to(dtype)[:, None]

        def product(block: Tensor, out: Tensor) -> None:
            _, back = similarity.product(right=block, row_weights=of_rows)
            torch.mul(back, of_cols, out=out)

        return largest_eigenvectors(
            product,
            degrees[1].to(dtype),
            _start(degrees[1], count, dtype, generator),
            count,
            tolerance=lambda values: tol * np.maximum(values, _FLOAT64_ZERO**2),
            max_products=max_iter,
            capacity=capacity,
            generator=generator,
            # Once a value is too small for float32, stop, and start again in float64.
            enough=functools.partial(_too_small, tol) if dtype == torch.float32 else None,
        )

    eigen, dtype, passes = _in_precision(solve, degrees, tol)
    values = eigen.values.clamp(min=0.0).sqrt()
    at_least = values.clamp(min=_FLOAT64_ZERO)
    right = eigen.vectors[:, :count].to(torch.float64)
    forward, _ = similarity.product(right=eigen.vectors)
    left = forward[:, :count].to(torch.float64) * row_weights[:, None] / at_least.to(forward.device)
    return Singular(
        torch.cat([left, right]),
        values,
        eigen.residuals / at_least,
        passes + 1,
        eigen.converged,
        dtype,
        _FLOAT64_ZERO,
    )


def embed_matrix(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    count: int,
    *,
    tol: float,
    max_iter: int,
    seed: int,
    rounding: float,
) -> Embedding:
    """Embed rows and columns by the :func:`singular_vectors`; singular values up to ``rounding`` are zero."""
    singular = singular_vectors(similarity, degrees, count, tol=tol, max_iter=max_iter, seed=seed)
    # Vectors of singular value 0 say nothing about the matrix.
    dims = int((singular.values > max(rounding, singular.zero)).sum())
    points, total = singular.vectors[:, :dims], degrees[0].sum()
    weights = torch.cat(degrees)
    has_edges = weights > 0
    if not bool(has_edges.all()):
        points, weights = points[has_edges], weights[has_edges]
    return Embedding(
        _in_units(points, total, singular.dtype),
        (weights / total).to(torch.float32),
        singular.values,
        singular.residuals,
        singular.passes,
        singular.converged,
        singular.dtype,
    )


def embed_graph(
    similarity: SparseSimilarity, degrees: Tensor, count: int, *, tol: float, max_iter: int, seed: int
) -> Embedding:
    """Embed an undirected graph's nodes by the top eigenvectors of ``N = D^-1/2 A D^-1/2``.

    An eigenpair ``(l, v)`` has converged when ``|N v - l v| <= tol``. The rest is as for
    :func:`embed_matrix`.
    """
    vectors, eigen, dtype = graph_eigenvectors(
        similarity, degrees, count, tol=tol, max_iter=max_iter, seed=seed
    )
    dims = int((eigen.values > 1e-12).sum())
    has_edges = degrees > 0
    points = vectors[:, :dims] if bool(has_edges.all()) else vectors[has_edges, :dims]
    total = degrees.sum()
    points = _in_units(points, total, dtype)
    return Embedding(
        points,
        (degrees[has_edges] / total).to(torch.float32),
        eigen.values,
        eigen.residuals,
        eigen.products,
        eigen.converged,
        dtype,
    )


def without_vectors(found: Embedding, count: int) -> Embedding:
    """Return the embedding by the first ``count`` vectors alone."""
    points = found.points[:, :count]
    # As in an embedding that was made with so many: what none of its vectors reaches lies at 0.
    return found._replace(
        points=_without_rounding(points.clone(), found.dtype),
        values=found.values[:count],
        residuals=found.residuals[:count],
    )


def graph_eigenvectors(
    similarity: SparseSimilarity, degrees: Tensor, count: int, *, tol: float, max_iter: int, seed: int
) -> tuple[Tensor, Eigen, torch.dtype]:
    """Return the eigenvectors for :func:`embed_graph`, as :func:`normalised_eigenvectors` does."""
    has_edges = degrees > 0
    if _is_small(int(has_edges.sum()), count) and not bool(has_edges.all()):
        part = similarity.part(has_edges, has_edges)
        vectors, eigen, dtype = graph_eigenvectors(
            part, degrees[has_edges], min(count, part.cols), tol=tol, max_iter=max_iter, seed=seed
        )
        values, residuals = (_padded(numbers, count) for numbers in (eigen.values, eigen.residuals))
        return _spread(vectors, has_edges, count), eigen._replace(values=values, residuals=residuals), dtype
    return normalised_eigenvectors(
        similarity.product_into,
        degrees,
        count,
        similarity.memory,
        tol=tol,
        max_iter=max_iter,
        seed=seed,
    )


def normalised_eigenvectors(
    product: Callable[[Tensor, Tensor, Tensor], None],
    degrees: Tensor,
    count: int,
    memory: int,
    *,
    tol: float,
    max_iter: int,
    seed: int,
) -> tuple[Tensor, Eigen, torch.dtype]:
    """Return ``D^-1/2`` times the eigenvectors of ``N = D^-1/2 A D^-1/2`` with the largest eigenvalues.

    Args:
        product: ``product(out, block, row_weights)`` writes ``row_weights * (A block)`` to ``out``,
            ``(n, width)``.
        degrees: ``(n,)``, the sums of A's rows.
        count: the number of eigenvectors.
        memory: the size of A in bytes.
        tol: an eigenpair ``(l, v)`` of N has converged when ``|N v - l v| <= tol``.
        max_iter: the maximum number of products, in each precision.
        seed: seeds the starting vectors.

    Returns:
        The vectors, ``(n, count or more)``; the solver's result; the dtype of the computation.
    """
    has_edges = degrees > 0
    nodes = int(has_edges.sum())
    if _is_small(nodes, count):
        unit = torch.zeros(len(degrees), block_width(nodes), dtype=torch.float64, device=degrees.device)
        unit[has_edges, :nodes] = torch.eye(nodes, dtype=torch.float64, device=degrees.device)
        product(dense := torch.empty_like(unit), unit, inverse(degrees))
        roots = degrees[has_edges].sqrt()
        normalised = roots[:, None] * dense[has_edges, :nodes] / roots
        with one_thread():
            values, vectors = torch.linalg.eigh((normalised + normalised.T) / 2)
        values, vectors = _padded(values.flip(0)[:count].cpu(), count), vectors.flip(1)
        vectors = _spread(vectors / roots[:, None], has_edges, count)
        return vectors, Eigen(values, vectors, torch.zeros_like(values), 1, True), torch.float64
    generator = torch.Generator("cpu").manual_seed(seed)

    def solve(dtype: torch.dtype) -> Eigen:
        weights = inverse(degrees).to(dtype)
        return largest_eigenvectors(
            lambda block, out: product(out, block, weights),
            degrees.to(dtype),
            _start(degrees, count, dtype, generator),
            count,
            tolerance=lambda values: np.full_like(values, tol),
            max_products=max_iter,
            capacity=_capacity(memory, nodes, count),
            generator=generator,
        )

    eigen, dtype, _ = _in_precision(solve, (degrees,), tol)
    return eigen.vectors, eigen, dtype


def _spread(vectors: Tensor, has_edges: Tensor, count: int) -> Tensor:
    """Extend vectors of the nodes with edges by zeros: to all nodes, and to ``count`` vectors."""
    result = vectors.new_zeros(len(has_edges), count)
    result[has_edges, : vectors.shape[1]] = vectors[:, :count]
    return result


def _padded(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count - len(values))])


def _is_small(side: int, count: int) -> bool:
    return side <= max(_EXACT, 4 * block_width(count))


def _is_solved_at_once(similarity: Similarity, capacity: int, count: int) -> TypeGuard[DenseSimilarity]:
    """Return whether one compiled call finds the singular vectors: beside its basis it keeps A times it."""
    return (
        isinstance(similarity, DenseSimilarity)
        and ops.does_whole_steps(similarity.weight)
        and block_width(count) <= _COMPILED_WIDTH
        and 8 * (capacity + block_width(count)) * sum(similarity.shape) <= _LITTLE_MEMORY
    )


def _identity(size: int, device: torch.device) -> Tensor:
    return torch.eye(size, block_width(size), dtype=torch.float64, device=device)


def _all_singular_vectors(
    similarity: Similarity, degrees: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Decompose the whole matrix in float64; return the left and right vectors together, and the values."""
    rows, cols = similarity.shape
    if cols <= rows:
        dense = similarity.product(right=_identity(cols, similarity.device))[0][:, :cols]
    else:
        dense = similarity.product(left=_identity(rows, similarity.device))[1][:, :rows].T
    of_rows, of_cols = (inverse(of_side).sqrt()[:, None] for of_side in degrees)
    with one_thread():
        left, values, right = torch.linalg.svd(of_rows * dense * of_cols.T, full_matrices=False)
    return torch.cat([of_rows * left[:, :count], of_cols * right[:count].T]), values[:count].cpu()


def _start(degrees: Tensor, count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return starting vectors: the first eigenvector, which is known to be constant, and random ones."""
    scales = inverse(degrees).sqrt().to(dtype)[:, None]
    block = random_block(len(degrees), block_width(count), generator, scales).mul_(scales)
    # Scaled to about the length of the random ones.
    block[:, 0] = (scales[:, 0] > 0) / (12.0 * degrees.mean()).sqrt()
    return block


def _capacity(memory: int, length: int, count: int) -> int:
    """Return how many vectors the basis may hold: three to eight blocks.

    More than eight blocks save hardly a pass (benchmarks/spectral/solvers.py). Together with the block that
    is being computed they take 0.7 of the matrix's own memory (in float32), or ``_LITTLE_MEMORY`` if that is
    more.
    """
    width = block_width(count)
    blocks = int(max(0.7 * memory, _LITTLE_MEMORY) / (4 * length * width)) - 1
    return width * min(max(blocks, 3), 8, max(length // width - 1, 3))


def _in_precision(
    solve: Callable[[torch.dtype], Eigen], degrees: tuple[Tensor, ...], tol: float
) -> tuple[Eigen, torch.dtype, int]:
    """Solve in float32 where that is accurate enough, else in float64; return also the number of passes."""
    most = max(float(of_side.max()) for of_side in degrees)
    least = 1.0 / max(float(inverse(of_side).max()) for of_side in degrees)
    passes = 0
    if tol >= 1e-5 and most / least < _FLOAT32_RANGE:
        eigen = solve(torch.float32)
        passes += eigen.products
        if not _too_small(tol, eigen.values.numpy()):
            return eigen, torch.float32, passes
    eigen = solve(torch.float64)
    return eigen, torch.float64, passes + eigen.products


def _too_small(tol: float, values: Small) -> bool:
    """Return whether the rounding errors of float32 exceed the tolerance for the last eigenvalue."""
    return float(values[-1]) * min(tol, 1e-3) < _FLOAT32_ERROR


def _in_units(points: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale points by the root of the total similarity, so that none is nearer to the origin than 1.

    If the graph has more connected components than there are vectors, some components have no vector. Their
    points are set to exactly 0, rather than to a direction that rounding chose.
    """
    return _without_rounding((points * total.sqrt().to(points.dtype)).to(torch.float32), dtype)


def _without_rounding(points: Tensor, dtype: torch.dtype) -> Tensor:
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return points.masked_fill_(lengths <= (1e-8 if dtype == torch.float64 else 1e-3), 0.0)
