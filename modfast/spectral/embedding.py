"""Where the nodes of a matrix or a graph lie, so that clusters of them lie close together.

The coordinates are eigenvectors of the normalised similarities, found in float32 as far as that carries the
accuracy asked for, else in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .krylov import Eigen, Small, block_width, largest_eigenvectors, one_thread, random_block
from .similarity import Similarity, SparseSimilarity

# A matrix with a side of at most so many is decomposed whole.
_EXACT = 64

# What float32 leaves of an eigenvalue's digits, as a number beside the largest eigenvalue, 1.
_FLOAT32_ERROR = 1e-7

# Degrees this far apart would not leave float32 enough of its range.
_FLOAT32_RANGE = 1e12

# Bytes, beside which the matrix's own do not matter.
_LITTLE_MEMORY = 32 * 2**20

# Singular values below this come from rounding: they are roots of eigenvalues computed in float64.
_FLOAT64_ZERO = 1e-7


class Embedding(NamedTuple):
    """A place for each node that has ties, and how it was found."""

    points: Tensor  # (nodes with ties, dims), float32, on the CPU
    weights: Tensor  # (nodes with ties,), likewise: their degrees, as a share of all
    values: Tensor  # (count,), singular values or eigenvalues, float64
    residuals: Tensor  # (count,)
    passes: int
    converged: bool
    dtype: torch.dtype  # that was computed in


def inverse(degrees: Tensor) -> Tensor:
    """``1 / degrees``, 0 for a node without ties."""
    return degrees.reciprocal().masked_fill_(degrees <= 0, 0.0)


class Singular(NamedTuple):
    """Top singular vectors of a matrix's normalised similarities, and how they were found."""

    left: Tensor  # D_row^-1/2 times the left ones, (rows, count), float64
    values: Tensor  # (count,), float64, on the CPU
    right: Tensor  # D_col^-1/2 times the right ones, (cols, count), float64
    residuals: Tensor  # (count,)
    passes: int
    converged: bool
    dtype: torch.dtype  # that was computed in
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
    """The top singular vectors of ``D_row^-1/2 A D_col^-1/2``.

    Args:
        similarity: A.
        degrees: the sums of its rows and of its columns.
        count: how many singular vectors.
        tol: a singular triplet ``(s, u, v)`` has converged when ``|A^T u - s v| <= tol s``.
        max_iter: how many passes over the matrix at most.
        seed: of the start.
    """
    tied = [each > 0 for each in degrees]
    if _is_small(min(int(each.sum()) for each in tied), count) and not all(each.all() for each in tied):
        part = similarity.part(*tied)
        found = singular_vectors(
            part, part.sums(), min(count, *part.shape), tol=tol, max_iter=max_iter, seed=seed
        )
        left, right = (
            _spread(vectors, of_side, count)
            for vectors, of_side in zip((found.left, found.right), tied, strict=True)
        )
        values, residuals = (_padded(each, count) for each in (found.values, found.residuals))
        return found._replace(left=left, values=values, right=right, residuals=residuals)
    row_weights, col_weights = (inverse(each) for each in degrees)
    if _is_small(min(similarity.shape), count):
        left, values, right = _all_singular_vectors(similarity, row_weights, col_weights, count)
        return Singular(left, values, right, torch.zeros_like(values), 1, True, torch.float64, 1e-12)
    generator = torch.Generator("cpu").manual_seed(seed)

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
            capacity=_capacity(similarity.memory, int(tied[1].sum()), count),
            generator=generator,
            # What float32 cannot tell from zero is sought in float64 at once.
            enough=functools.partial(_too_small, tol) if dtype == torch.float32 else None,
        )

    eigen, dtype, passes = _in_precision(solve, degrees, tol)
    values = eigen.values.clamp(min=0.0).sqrt()
    at_least = values.clamp(min=_FLOAT64_ZERO)
    right = eigen.vectors[:, :count].to(torch.float64)
    forward, _ = similarity.product(right=eigen.vectors)
    left = forward[:, :count].to(torch.float64) * row_weights[:, None] / at_least.to(forward.device)
    return Singular(
        left, values, right, eigen.residuals / at_least, passes + 1, eigen.converged, dtype, _FLOAT64_ZERO
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
    """Rows and columns of a matrix by its :func:`singular_vectors`; values up to ``rounding`` are zero."""
    found = singular_vectors(similarity, degrees, count, tol=tol, max_iter=max_iter, seed=seed)
    # Vectors of singular value 0 say nothing about the matrix.
    kept = int((found.values > max(rounding, found.zero)).sum())
    points = torch.cat(
        [
            vectors[:, :kept][of_side > 0]
            for of_side, vectors in zip(degrees, (found.left, found.right), strict=True)
        ]
    )
    total = degrees[0].sum()
    weights = torch.cat([of_side[of_side > 0] for of_side in degrees]) / total
    points = _in_units(points, total, found.dtype)
    return Embedding(
        points, _small(weights), found.values, found.residuals, found.passes, found.converged, found.dtype
    )


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
    tied = degrees > 0
    points = vectors[:, :kept] if bool(tied.all()) else vectors[tied, :kept]
    total = degrees.sum()
    points = _in_units(points, total, dtype)
    return Embedding(
        points,
        _small(degrees[tied] / total),
        found.values,
        found.residuals,
        found.products,
        found.converged,
        dtype,
    )


def graph_eigenvectors(
    similarity: SparseSimilarity, degrees: Tensor, count: int, *, tol: float, max_iter: int, seed: int
) -> tuple[Tensor, Eigen, torch.dtype]:
    """The eigenvectors behind :func:`embed_graph`, as :func:`normalised_eigenvectors` returns them."""
    tied = degrees > 0
    if _is_small(int(tied.sum()), count) and not bool(tied.all()):
        part = similarity.part(tied, tied)
        vectors, found, dtype = graph_eigenvectors(
            part, degrees[tied], min(count, part.cols), tol=tol, max_iter=max_iter, seed=seed
        )
        values, residuals = (_padded(each, count) for each in (found.values, found.residuals))
        return _spread(vectors, tied, count), found._replace(values=values, residuals=residuals), dtype
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
    """``D^-1/2`` times the eigenvectors of ``D^-1/2 A D^-1/2`` with the largest eigenvalues.

    Args:
        product: writes ``row_weights * (A block)`` to its first argument, ``(n, width)``; the others are the
            block and the weights.
        degrees: ``(n,)``, the sums of A's rows.
        count: how many.
        memory: that A takes, in bytes.
        tol: ``|N v - l v|`` is at most this, N being the normalised matrix.
        max_iter: products at most.
        seed: of the start.

    Returns:
        ``(n, count or more)``; how they were found; what was computed in.
    """
    tied = degrees > 0
    nodes = int(tied.sum())
    if _is_small(nodes, count):
        unit = torch.zeros(len(degrees), block_width(nodes), dtype=torch.float64, device=degrees.device)
        unit[tied, :nodes] = torch.eye(nodes, dtype=torch.float64, device=degrees.device)
        product(dense := torch.empty_like(unit), unit, inverse(degrees))
        roots = degrees[tied].sqrt()
        normalised = roots[:, None] * dense[tied, :nodes] / roots
        with one_thread():
            values, vectors = torch.linalg.eigh((normalised + normalised.T) / 2)
        values, vectors = _padded(values.flip(0)[:count].cpu(), count), vectors.flip(1)
        vectors = _spread(vectors / roots[:, None], tied, count)
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

    found, dtype, _ = _in_precision(solve, (degrees,), tol)
    return found.vectors, found, dtype


def _spread(vectors: Tensor, tied: Tensor, count: int) -> Tensor:
    """The first vectors, of nodes that have ties; zeros for the others and for vectors that are missing."""
    result = vectors.new_zeros(len(tied), count)
    result[tied, : vectors.shape[1]] = vectors[:, :count]
    return result


def _padded(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count - len(values))])


def _is_small(side: int, count: int) -> bool:
    return side <= max(_EXACT, 4 * block_width(count))


def _identity(size: int, device: torch.device) -> Tensor:
    return torch.eye(size, block_width(size), dtype=torch.float64, device=device)


def _all_singular_vectors(
    similarity: Similarity, row_weights: Tensor, col_weights: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the whole matrix, in float64: left, values, right."""
    rows, cols = similarity.shape
    if cols <= rows:
        dense = similarity.product(right=_identity(cols, similarity.device))[0][:, :cols]
    else:
        dense = similarity.product(left=_identity(rows, similarity.device))[1][:, :rows].T
    of_rows, of_cols = row_weights.sqrt()[:, None], col_weights.sqrt()[:, None]
    with one_thread():
        left, values, right = torch.linalg.svd(of_rows * dense * of_cols.T, full_matrices=False)
    return of_rows * left[:, :count], values[:count].cpu(), of_cols * right[:count].T


def _start(degrees: Tensor, count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random vectors beside the first eigenvector, which is known: a constant."""
    scales = inverse(degrees).sqrt().to(dtype)[:, None]
    block = random_block(len(degrees), block_width(count), generator, scales).mul_(scales)
    # Of about the same length as the others.
    block[:, 0] = (scales[:, 0] > 0) / (12.0 * degrees.mean()).sqrt()
    return block


def _capacity(memory: int, length: int, count: int) -> int:
    """How many vectors the basis may hold: three to eight blocks.

    More than eight save hardly a pass (benchmarks/spectral/solvers.py). With the block that is being made
    they take 0.7 of the matrix's own memory (in float32), or as much as nobody would miss.
    """
    width = block_width(count)
    blocks = int(max(0.7 * memory, _LITTLE_MEMORY) / (4 * length * width)) - 1
    return width * min(max(blocks, 3), 8, max(length // width - 1, 3))


def _in_precision(
    solve: Callable[[torch.dtype], Eigen], degrees: tuple[Tensor, ...], tol: float
) -> tuple[Eigen, torch.dtype, int]:
    """Solves in float32 where that is accurate enough, else in float64; with the number of passes."""
    most = max(float(each.max()) for each in degrees)
    least = 1.0 / max(float(inverse(each).max()) for each in degrees)
    passes = 0
    if tol >= 1e-5 and most / least < _FLOAT32_RANGE:
        found = solve(torch.float32)
        passes += found.products
        if not _too_small(tol, found.values.numpy()):
            return found, torch.float32, passes
    found = solve(torch.float64)
    return found, torch.float64, passes + found.products


def _too_small(tol: float, values: Small) -> bool:
    """Whether the last of these eigenvalues is lost in the rounding of float32."""
    return float(values[-1]) * min(tol, 1e-3) < _FLOAT32_ERROR


def _small(values: Tensor) -> Tensor:
    return values.to("cpu", torch.float32)


def _in_units(points: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """The points in a unit in which none is nearer to the origin than 1, given the sum of all similarities.

    But where there are more separate parts than vectors: a part that has none is put at the origin, a
    place of its own.
    """
    points = _small(points * total.sqrt().to(points.dtype))
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return points.masked_fill_(lengths <= (1e-8 if dtype == torch.float64 else 1e-3), 0.0)
