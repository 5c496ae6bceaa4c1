"""The compiled operators of spectral clustering, and what stands in for them elsewhere.

The products with a matrix of similarities run on the matrix's device. What follows them is small beside the
matrix: sums over a basis of vectors, which on a GPU are PyTorch's own products of matrices, and the clusters
themselves, which are found on the CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from modfast.library import BACKEND
from modfast.reference import spectral_operators as plain

from .fake_kernels import AFFINITIES as AFFINITIES
from .fake_kernels import LANES as LANES

_OPS: Any = torch.ops.modfast if BACKEND == "compiled" else plain


class SparseMatrix(NamedTuple):
    """A matrix of similarities in compressed sparse rows, as the operators take it: these arguments in turn.

    Attributes:
        starts: where each row begins in the other two, and the end, ``(rows + 1,)``; int32 or int64.
        indices: the column of each entry, ``(entries,)``, of the same dtype.
        values: of each entry, ``(entries,)``; float32 or float64.
        cols: the number of columns.
        affinity: index into ``AFFINITIES``, as for :func:`similarity_product`.
        scale: as there.
    """

    starts: Tensor
    indices: Tensor
    values: Tensor
    cols: int
    affinity: int
    scale: float


def similarity_sums(weight: Tensor, affinity: int, scale: float) -> tuple[Tensor, Tensor]:
    """The sums of the rows and of the columns of a dense matrix of similarities, float64."""
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
    """``A right``, and ``A^T left`` or ``A^T (row_weights * (A right))``, in one pass over the weight.

    Args:
        weight: ``(rows, cols)``, its rows contiguous.
        affinity: index into ``AFFINITIES``: A is ``|scale W|``, ``(scale W)^2`` or ``scale W``.
        scale: a number that brings the weights near one.
        right: ``(cols, width)``, float32 or float64, in which all is computed; width a multiple of
            ``LANES``. Without it there is no forward product.
        left: ``(rows, width)``.
        row_weights: ``(rows,)``, in place of left.

    Returns:
        ``(rows, width)`` and ``(cols, width)``; what was not asked for has no rows.
    """
    forward, backward = _OPS.similarity_product(weight, affinity, scale, right, left, row_weights)
    return forward, backward


def sparse_similarity_sums(
    matrix: SparseMatrix, right: Tensor | None = None, left: Tensor | None = None, of_cols: bool = True
) -> tuple[Tensor, Tensor]:
    """The sums of the rows and of the columns of a sparse matrix of similarities, float64.

    Given probes it is ``A right`` and ``A^T left`` in place of sums. Without ``of_cols`` the second is empty.
    """
    forward, backward = _OPS.sparse_similarity_sums(*matrix, right, left, of_cols)
    return forward, backward


def sparse_similarity_product(
    matrix: SparseMatrix, right: Tensor | None, left: Tensor | None, row_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`similarity_product`, for compressed sparse rows."""
    forward, backward = _OPS.sparse_similarity_product(*matrix, right, left, row_weights)
    return forward, backward


def graph_product_(out: Tensor, matrix: SparseMatrix, right: Tensor, row_weights: Tensor) -> None:
    """``out = row_weights * (A right)`` for a square matrix of given similarities."""
    if out.device.type == "cpu":
        _OPS.graph_product_(out, *matrix[:3], matrix.scale, right, row_weights)
    else:
        forward, _ = sparse_similarity_product(matrix, right, None, None)
        torch.mul(forward, row_weights[:, None], out=out)


def basis_inner(basis: list[Tensor], block: Tensor, weights: Tensor | None) -> Tensor:
    """``V^T (weights * W)``, float64, for a basis V in blocks ``(n, width)`` side by side; or ``V^T W``."""
    ops = _OPS if block.device.type == "cpu" else plain
    products: Tensor = ops.basis_inner(basis, block, weights)
    return products


def basis_rotate_(basis: list[Tensor], factors: Tensor) -> None:
    """The first vectors of the basis become ``V factors``, and fill some of its first blocks."""
    (_OPS if basis[0].device.type == "cpu" else plain).basis_rotate_(basis, factors.contiguous())


def k_means(
    points: Tensor,
    weights: Tensor,
    num_clusters: int,
    n_init: int,
    seed: int,
    max_iter: int,
    same_place: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of float32 points ``(n, dims)`` of positive weights ``(n,)``, of the tightest of so many starts.

    All on the CPU. Also the weighted sum of their squared distances from their means, ``(1,)``, and the
    number of Lloyd's iterations, ``(1,)``.
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
    """Moves nodes that have no ties to each other to where each lowers the normalised cut most.

    Args:
        labels: ``(n,)``; -1 stays.
        inside: ``(k,)``, what ties the nodes of each cluster of the graph to each other.
        volume: ``(k,)``, the sum of their degrees.
        sizes: ``(k,)``, their number.
        ties: float64 ``(n, k or more)``, of each node to each cluster, itself left out.
        degrees: ``(n,)``.
        loops: ``(n,)``, what ties each node to itself; None if nothing does.
        least: by how much a move must lower the cut.
        max_sweeps: over all nodes, after which it ends even if another move would help.

    Returns:
        The first four as they are after the moves.
    """
    moved, inside, volume, sizes = _OPS.move_side(
        labels, inside, volume, sizes, ties, degrees, loops, least, max_sweeps
    )
    return moved, inside, volume, sizes


def move_graph(
    matrix: SparseMatrix, labels: Tensor, num_clusters: int, least: float, max_sweeps: int
) -> Tensor:
    """The same for the nodes of a symmetric graph, sweep after sweep until none moves; new labels."""
    moved: Tensor = _OPS.move_graph(*matrix[:3], matrix.scale, labels, num_clusters, least, max_sweeps)
    return moved


def graph_cut(matrix: SparseMatrix, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """For each cluster the weight of the edges within it, and the sum of its nodes' degrees, on the CPU.

    The labels are on the CPU as well, the graph may be on a GPU.
    """
    if matrix.values.device.type == "cpu":
        inside, volume = _OPS.graph_cut(*matrix[:3], matrix.scale, labels, num_clusters)
        return inside, volume
    beside = labels.to(matrix.values.device)
    rows = torch.arange(len(labels), device=beside.device).repeat_interleave(matrix.starts.diff().long())
    same = beside[rows] == beside[matrix.indices.long()]
    clustered = labels >= 0
    sums = []
    for kept in (matrix.values * same, matrix.values):
        of_nodes, _ = sparse_similarity_sums(matrix._replace(values=kept), of_cols=False)
        none = torch.zeros(num_clusters, dtype=torch.float64, device="cpu")
        sums.append(none.index_add(0, labels[clustered], of_nodes.cpu()[clustered]))
    return sums[0], sums[1]


def edge_gradient(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    """``sign(W[i, j]) (row_terms[i] + col_terms[j] - 2 row_vectors[i] . col_vectors[j])``."""
    grad: Tensor = _OPS.edge_gradient(
        weight, row_terms, col_terms, row_vectors.contiguous(), col_vectors.contiguous()
    )
    return grad
