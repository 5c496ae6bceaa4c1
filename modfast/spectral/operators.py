"""The compiled operators of spectral clustering, and their substitutes in plain PyTorch.

Every operator runs on the device of its arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from modfast.library import BACKEND
from modfast.reference import spectral_operators as plain

from .fake_kernels import AFFINITIES as AFFINITIES
from .fake_kernels import LANES as LANES

_OPS: Any = plain if BACKEND == "reference" else torch.ops.modfast


class SparseMatrix(NamedTuple):
    """A matrix of similarities in compressed sparse rows; operators take its fields as arguments, in order.

    Attributes:
        starts: row i has the entries from ``starts[i]`` to before ``starts[i + 1]``, ``(rows + 1,)``; int32
            or int64.
        indices: the column of each entry, ``(entries,)``, of the same dtype.
        values: the value of each entry, ``(entries,)``; float32 or float64.
        cols: the number of columns.
        affinity: index into ``AFFINITIES``, as for :func:`similarity_product`.
        scale: as for :func:`similarity_product`.
    """

    starts: Tensor
    indices: Tensor
    values: Tensor
    cols: int
    affinity: int
    scale: float


def has_gpu_kernels(tensor: Tensor) -> bool:
    """Return whether operators on the tensor run the kernels for GPUs.

    These add up entries of a sparse matrix in the order of its rows only. For sums over columns they need its
    transpose, which the kernels for the CPU do not.
    """
    return BACKEND != "reference" and (tensor.device.type != "cpu" or BACKEND == "emulated")


def does_whole_steps(tensor: Tensor) -> bool:
    """Return whether operators that do a whole step of co-clustering run on the tensor.

    They are :func:`similarity_singular_vectors`, :func:`move_sides` and :func:`numbered_as_met`. GPUs have
    none of them.
    """
    return BACKEND == "compiled" and tensor.device.type == "cpu"


def similarity_sums(weight: Tensor, affinity: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the sums of the rows and of the columns of a dense matrix of similarities, float64."""
    rows, cols = _OPS.similarity_sums(weight, affinity, scale)
    return rows, cols


def similarity_product(
    weight: Tensor,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return ``A right``, and ``A^T left`` or ``A^T (row_weights * (A right))``, in one pass over the weight.

    Args:
        weight: ``(rows, cols)``, its rows contiguous.
        affinity: index into ``AFFINITIES``: A is ``|scale W|``, ``(scale W)^2`` or ``scale W``.
        scale: a number that brings the weights near one.
        right: ``(cols, width)``, width a multiple of ``LANES``; its dtype, float32 or float64, is that of the
            computation. None omits the forward product.
        left: ``(rows, width)``, or None.
        row_weights: ``(rows,)``, an alternative to ``left``; or None.

    Returns:
        ``(rows, width)`` and ``(cols, width)``; a product that is omitted has no rows.
    """
    forward, backward = _OPS.similarity_product(weight, affinity, scale, right, left, row_weights)
    return forward, backward


def similarity_singular_vectors(
    weight: Tensor,
    affinity: int,
    scale: float,
    degrees: tuple[Tensor, Tensor],
    random: Tensor,
    count: int,
    tol: float,
    max_passes: int,
    capacity: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the top singular vectors of ``N = D_row^-1/2 A D_col^-1/2``; see :func:`similarity_product`.

    Args:
        weight: ``(rows, cols)``, its rows contiguous.
        affinity: as for :func:`similarity_product`.
        scale: as for :func:`similarity_product`.
        degrees: float64, the sums of A's rows, ``(rows,)``, and of its columns, ``(cols,)``.
        random: float32 ``(cols, width)``, numbers from 0 to 1 for the starting vectors; the width is a
            multiple of ``LANES``.
        count: the number of singular vectors, at most the width.
        tol: a singular triplet ``(s, u, v)`` has converged when ``|N^T u - s v| <= tol s``.
        max_passes: the maximum number of passes over the weight, in each precision.
        capacity: the size of the solver's basis in vectors, a multiple of the width.
        seed: seeds directions that replace those which are in the basis already.

    Returns:
        All but the last float64: ``(rows + cols, count)``, ``D_row^-1/2`` times the left vectors, then
        ``D_col^-1/2`` times the right ones; the singular values; their residuals ``|N^T u - s v|``; and int64
        ``(3,)``: the number of passes, whether the solver has converged, and whether it took float64.
    """
    vectors, values, residuals, outcome = _OPS.similarity_singular_vectors(
        weight, affinity, scale, *degrees, random, count, tol, max_passes, capacity, seed
    )
    return vectors, values, residuals, outcome


def sparse_similarity_sums(
    matrix: SparseMatrix, right: Tensor | None = None, left: Tensor | None = None, of_cols: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the sums of the rows and of the columns of a sparse matrix of similarities, float64.

    With the vectors ``right`` and ``left``, return ``A right`` and ``A^T left`` instead. Without ``of_cols``
    the second result is empty.
    """
    forward, backward = _OPS.sparse_similarity_sums(*matrix, right, left, of_cols)
    return forward, backward


def sparse_similarity_product(
    matrix: SparseMatrix, right: Tensor | None, left: Tensor | None, row_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what :func:`similarity_product` does, for compressed sparse rows."""
    forward, backward = _OPS.sparse_similarity_product(*matrix, right, left, row_weights)
    return forward, backward


def sparse_transpose(
    starts: Tensor, indices: Tensor, values: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the starts, indices and values of the transpose of a matrix in compressed sparse rows.

    The entries of each row of the transpose have the order of the matrix's rows. The dtypes stay the same.
    """
    starts, indices, values = _OPS.sparse_transpose(starts, indices, values, cols)
    return starts, indices, values


def graph_product_(out: Tensor, matrix: SparseMatrix, right: Tensor, row_weights: Tensor) -> None:
    """Write ``row_weights * (A right)`` to ``out``, for a square matrix with the affinity ``"given"``."""
    _OPS.graph_product_(out, *matrix[:3], matrix.scale, right, row_weights)


def basis_inner(basis: list[Tensor], block: Tensor, weights: Tensor | None) -> Tensor:
    """Return ``V^T (weights * block)``, float64, or ``V^T block``; V is the basis, blocks side by side."""
    products: Tensor = _OPS.basis_inner(basis, block, weights)
    return products


def basis_rotate_(basis: list[Tensor], factors: Tensor) -> None:
    """Overwrite the first vectors of the basis V by ``V factors``, which fill some of its first blocks."""
    _OPS.basis_rotate_(basis, factors.contiguous())


def k_means(
    points: Tensor,
    weights: Tensor,
    num_clusters: int,
    n_init: int,
    seed: int,
    max_iter: int,
    same_place: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster float32 points ``(n, dims)`` with positive weights ``(n,)`` by weighted k-means.

    Returns:
        Of the start with the lowest cost, on the device of the points: the labels; the cost, ``(1,)``, which
        is the weighted sum of the points' squared distances from their cluster's mean; and the number of
        Lloyd's iterations, ``(1,)``. The compiled kernels draw the same starts on every device.
    """
    labels, cost, iterations = _OPS.k_means(points, weights, num_clusters, n_init, seed, max_iter, same_place)
    return labels, cost, iterations


def move_side(
    labels: Tensor,
    inside: Tensor,
    volume: Tensor,
    sizes: Tensor,
    ties: Tensor,
    degrees: Tensor,
    loops: Tensor | None,
    least: float,
    max_sweeps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move each node of a set without edges inside it to the cluster that lowers the normalised cut most.

    Args:
        labels: ``(n,)``; -1 stays.
        inside: ``(k,)``, the weight of the edges inside each cluster of the graph, each counted at both ends.
        volume: ``(k,)``, the sum of the degrees of each cluster's nodes.
        sizes: ``(k,)``, the number of each cluster's nodes.
        ties: float64 ``(n, k or more)``, the weight of the edges from each node to the other nodes of each
            cluster.
        degrees: ``(n,)``.
        loops: ``(n,)``, the weight of each node's edge to itself; None if there are none.
        least: by how much a move must lower the cut.
        max_sweeps: the maximum number of sweeps over all nodes, even if another move would help.

    Returns:
        The labels, ``inside``, ``volume`` and ``sizes`` after the moves.
    """
    moved, inside, volume, sizes = _OPS.move_side(
        labels, inside, volume, sizes, ties, degrees, loops, least, max_sweeps
    )
    return moved, inside, volume, sizes


def move_sides(
    weight: Tensor,
    affinity: int,
    scale: float,
    degrees: tuple[Tensor, Tensor],
    labels: Tensor,
    num_clusters: int,
    in_double: bool,
    least: float,
    max_sweeps: int,
) -> Tensor:
    """Return labels after moves as in :func:`move_side`, of the rows and of the columns in turn.

    Args:
        weight: ``(rows, cols)``, its rows contiguous.
        affinity: as for :func:`similarity_product`.
        scale: as for :func:`similarity_product`.
        degrees: as for :func:`similarity_singular_vectors`.
        labels: ``(rows + cols,)``, of the rows, then of the columns; -1 stays.
        num_clusters: k.
        in_double: whether similarities are added up in float64, else in float32.
        least: by how much a move must lower the cut.
        max_sweeps: the maximum number of turns of each side, and of sweeps in each turn.
    """
    moved: Tensor = _OPS.move_sides(
        weight, affinity, scale, *degrees, labels, num_clusters, in_double, least, max_sweeps
    )
    return moved


def move_graph(
    matrix: SparseMatrix, labels: Tensor, num_clusters: int, least: float, max_sweeps: int
) -> Tensor:
    """Return labels after moves as in :func:`move_side`, for all nodes of a symmetric graph."""
    moved: Tensor = _OPS.move_graph(*matrix[:3], matrix.scale, labels, num_clusters, least, max_sweeps)
    return moved


def numbered_as_met(labels: Tensor, num_clusters: int) -> Tensor:
    """Renumber clusters in the order of their first node; -1 stays."""
    numbered: Tensor = (_OPS if does_whole_steps(labels) else plain).numbered_as_met(labels, num_clusters)
    return numbered


def graph_cut(matrix: SparseMatrix, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Return for each cluster the weight of the edges within it, and the sum of its nodes' degrees."""
    inside, volume = _OPS.graph_cut(*matrix[:3], matrix.scale, labels, num_clusters)
    return inside, volume


def edge_gradient(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    """Return ``sign(W[i, j]) (row_terms[i] + col_terms[j] - 2 row_vectors[i] . col_vectors[j])``."""
    grad: Tensor = _OPS.edge_gradient(
        weight, row_terms, col_terms, row_vectors.contiguous(), col_vectors.contiguous()
    )
    return grad
