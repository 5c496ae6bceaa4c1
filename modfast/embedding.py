"""Where the nodes of a matrix or a graph lie, so that clusters of them lie close together.

The coordinates are eigenvectors of the normalised similarities, found in float32 as far as that carries the
accuracy asked for, else in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .krylov import Eigen, block_width, largest_eigenvectors, one_thread, random_block
from .similarity import Similarity, SparseSimilarity

# A matrix with a side of at most so many is decomposed whole.
_EXACT = 128

# What float32 leaves of an eigenvalue's digits, as a number beside the largest eigenvalue, 1.
_FLOAT32_ERROR = 1e-7

# Degrees this far apart would not leave float32 enough of its range.
_FLOAT32_RANGE = 1e12

# Singular values below this come from rounding: they are roots of eigenvalues computed in float64.
_FLOAT64_ZERO = 1e-7


class Embedding(NamedTuple):
    """A place for each node that has ties, and how it was found."""

    points: Tensor  # (nodes with ties, dims), float32, on the CPU, of length one
    values: Tensor  # (count,), singular values or eigenvalues, float64
    residuals: Tensor  # (count,)
    passes: int
    converged: bool
    dtype: torch.dtype  # that was computed in


def row_scale(degrees: Tensor) -> Tensor:
    """``degrees^-1/2``, 0 for a node without ties."""
    return torch.where(degrees > 0, degrees.rsqrt(), 0.0)


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
    """Rows and columns of a matrix by the top singular vectors of ``D_row^-1/2 A D_col^-1/2``.

    Args:
        similarity: A.
        degrees: the sums of its rows and of its columns.
        count: how many singular vectors.
        tol: a singular triplet ``(s, u, v)`` has converged when ``|A^T u - s v| <= tol s``.
        max_iter: how many passes over the matrix at most.
        seed: of the start.
        rounding: singular values up to this are zero.
    """
    row_scales, col_scales = (row_scale(each) for each in degrees)
    generator = torch.Generator().manual_seed(seed)
    if _is_small(min(similarity.shape), count):
        left, values, right = _singular_vectors(similarity, row_scales, col_scales, count)
        residuals, passes, converged = torch.zeros_like(values), 1, True
        dtype = torch.float64
    else:

        def solve(dtype: torch.dtype, enough: Callable[[Tensor], bool] | None) -> Eigen:
            scale = col_scales.to(dtype)[:, None]
            row_weights = row_scales.square().to(dtype)

            def product(block: Tensor) -> Tensor:
                _, back = similarity.product(right=block * scale, row_weights=row_weights)
                return back.mul_(scale)

            return largest_eigenvectors(
                product,
                _start(degrees[1], count, dtype, generator),
                count,
                tolerance=lambda values: tol * values.clamp(min=_FLOAT64_ZERO**2),
                max_products=max_iter,
                capacity=_capacity(similarity, similarity.shape[1], count, dtype),
                generator=generator,
                enough=enough,
            )

        found, dtype, passes = _in_precision(solve, degrees, tol)
        values = found.values.clamp(min=0.0).sqrt()
        residuals = found.residuals / values.clamp(min=_FLOAT64_ZERO)
        converged, rounding = found.converged, max(rounding, _FLOAT64_ZERO)
        right = found.vectors[:, :count].to(torch.float64)
        forward, _ = similarity.product(right=found.vectors * col_scales.to(dtype)[:, None])
        passes += 1
        left = forward[:, :count].to(torch.float64) * row_scales[:, None]
        left /= values.to(left.device).clamp(min=_FLOAT64_ZERO)
    kept = int((values > rounding).sum())
    points = torch.cat(
        [
            (row_scales[:, None] * left[:, :kept])[degrees[0] > 0],
            (col_scales[:, None] * right[:, :kept])[degrees[1] > 0],
        ]
    )
    return Embedding(_on_sphere(points, degrees[0].sum(), dtype), values, residuals, passes, converged, dtype)


def embed_graph(
    similarity: SparseSimilarity, degrees: Tensor, count: int, *, tol: float, max_iter: int, seed: int
) -> Embedding:
    """The nodes of an undirected graph by the top eigenvectors of ``D^-1/2 A D^-1/2``.

    An eigenpair ``(l, v)`` has converged when ``|A v - l v| <= tol``; else as for :func:`embed_matrix`.
    """
    vectors, found, dtype = graph_eigenvectors(
        similarity, degrees, count, tol=tol, max_iter=max_iter, seed=seed
    )
    kept = int((found.values > 1e-12).sum())
    points = (row_scale(degrees).to(vectors.dtype)[:, None] * vectors[:, :kept])[degrees > 0]
    points = _on_sphere(points, degrees.sum(), dtype)
    return Embedding(points, found.values, found.residuals, found.products, found.converged, dtype)


def graph_eigenvectors(
    similarity: SparseSimilarity, degrees: Tensor, count: int, *, tol: float, max_iter: int, seed: int
) -> tuple[Tensor, Eigen, torch.dtype]:
    """The eigenvectors ``(n, count or more)`` behind :func:`embed_graph`, and what was computed in."""
    nodes, scales = similarity.shape[0], row_scale(degrees)
    generator = torch.Generator().manual_seed(seed)
    if _is_small(nodes, count):
        dense, _ = similarity.product(right=_identity(nodes, similarity.device))
        with one_thread():
            values, vectors = torch.linalg.eigh((scales[:, None] * dense[:, :nodes] * scales).cpu())
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count].to(similarity.device)
        return vectors, Eigen(values, vectors, torch.zeros_like(values), 1, True), torch.float64

    def solve(dtype: torch.dtype, enough: Callable[[Tensor], bool] | None) -> Eigen:
        scale = scales.to(dtype)[:, None]

        def product(block: Tensor) -> Tensor:
            forward, _ = similarity.product(right=block * scale)
            return forward.mul_(scale)

        return largest_eigenvectors(
            product,
            _start(degrees, count, dtype, generator),
            count,
            tolerance=lambda values: torch.full_like(values, tol),
            max_products=max_iter,
            capacity=_capacity(similarity, nodes, count, dtype),
            generator=generator,
        )

    found, dtype, _ = _in_precision(solve, (degrees,), tol)
    return found.vectors, found, dtype


def _is_small(side: int, count: int) -> bool:
    return side <= max(_EXACT, 4 * block_width(count))


def _identity(size: int, device: torch.device) -> Tensor:
    return torch.eye(size, block_width(size), dtype=torch.float64, device=device)


def _singular_vectors(
    similarity: Similarity, row_scales: Tensor, col_scales: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the whole matrix, in float64: left, values, right."""
    rows, cols = similarity.shape
    if cols <= rows:
        dense = similarity.product(right=_identity(cols, similarity.device))[0][:, :cols]
    else:
        dense = similarity.product(left=_identity(rows, similarity.device))[1][:, :rows].T
    with one_thread():
        left, values, right = torch.linalg.svd(
            (row_scales[:, None] * dense * col_scales).cpu(), full_matrices=False
        )
    device = similarity.device
    return left[:, :count].to(device), values[:count], right[:count].T.to(device)


def _start(degrees: Tensor, count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random vectors beside the first eigenvector, which is known: the roots of the degrees."""
    block = random_block(len(degrees), block_width(count), generator, degrees.to(dtype))
    block *= (degrees > 0)[:, None]
    block[:, 0] = degrees.sqrt()
    normalised: Tensor = block / torch.linalg.vector_norm(block, dim=0)
    return normalised


def _capacity(similarity: Similarity, length: int, count: int, dtype: torch.dtype) -> int:
    """How many vectors the basis may hold: half of what the matrix takes, within reason."""
    width = block_width(count)
    blocks = similarity.entries // (2 * length * width)
    return width * min(max(blocks, 4), 12, max(length // width - 1, 3))


def _in_precision(
    solve: Callable[[torch.dtype, Callable[[Tensor], bool] | None], Eigen],
    degrees: tuple[Tensor, ...],
    tol: float,
) -> tuple[Eigen, torch.dtype, int]:
    """Solves in float32 where that is accurate enough, else in float64; with the number of passes."""
    most = max(float(each.max()) for each in degrees)
    least = min(float(torch.where(each > 0, each, math.inf).min()) for each in degrees)
    passes = 0
    if tol >= 1e-5 and most / least < _FLOAT32_RANGE:

        def too_small(values: Tensor) -> bool:
            return float(values[-1]) * min(tol, 1e-3) < _FLOAT32_ERROR

        found = solve(torch.float32, too_small)
        passes += found.products
        if not too_small(found.values):
            return found, torch.float32, passes
    found = solve(torch.float64, None)
    return found, torch.float64, passes + found.products


def _on_sphere(points: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """The points at distance one from the origin, given the sum of all similarities.

    The nodes of a cluster lie in one direction, at a distance of about the inverse root of its total
    similarity. The length is never below the inverse root of the whole, but where there are more separate
    parts than vectors: a part that has none stays at the origin, a place of its own.
    """
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    shortest = total.rsqrt() * (1e-8 if dtype == torch.float64 else 1e-3)
    return (points / torch.where(lengths > shortest, lengths, torch.inf)).to("cpu", torch.float32)
