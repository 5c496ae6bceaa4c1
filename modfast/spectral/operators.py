"""The compiled operators of spectral clustering, and what stands in for them elsewhere.

The products with a matrix of similarities run on the matrix's device. What follows them is small beside the
matrix: sums over a basis of vectors, which on a GPU are PyTorch's own products of matrices, and the clusters
themselves, which are found on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modfast.library import BACKEND
from modfast.reference import spectral_operators as plain
from modfast.shapes import COMPUTED_IN, FLOATS, INDICES, check_shaped, require

AFFINITIES = ("abs", "square", "given")

# Blocks of vectors are a multiple of this wide; csrc/spectral.h.
LANES = 8

_OPS: Any = torch.ops.modfast if BACKEND == "compiled" else plain


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
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    cols: int,
    affinity: int,
    scale: float,
    right: Tensor | None = None,
    left: Tensor | None = None,
    of_cols: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same for compressed sparse rows.

    Given probes it is ``A right`` and ``A^T left`` in place of sums. Without ``of_cols`` the second is empty.
    """
    forward, backward = _OPS.sparse_similarity_sums(
        starts, indices, values, cols, affinity, scale, right, left, of_cols
    )
    return forward, backward


def sparse_similarity_product(
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    cols: int,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As :func:`similarity_product`, for compressed sparse rows."""
    forward, backward = _OPS.sparse_similarity_product(
        starts, indices, values, cols, affinity, scale, right, left, row_weights
    )
    return forward, backward


def graph_product_(
    out: Tensor,
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    scale: float,
    right: Tensor,
    row_weights: Tensor,
) -> None:
    """``out = row_weights * (scale A right)`` for a square sparse matrix."""
    if out.device.type == "cpu":
        _OPS.graph_product_(out, starts, indices, values, scale, right, row_weights)
    else:
        forward, _ = sparse_similarity_product(
            starts, indices, values, len(starts) - 1, 2, scale, right, None, None
        )
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
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    scale: float,
    labels: Tensor,
    num_clusters: int,
    least: float,
    max_sweeps: int,
) -> Tensor:
    """The same for the nodes of a symmetric graph, sweep after sweep until none moves; new labels."""
    moved: Tensor = _OPS.move_graph(starts, indices, values, scale, labels, num_clusters, least, max_sweeps)
    return moved


def graph_cut(
    starts: Tensor, indices: Tensor, values: Tensor, scale: float, labels: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """For each cluster what ties its nodes to each other, and the sum of their degrees, on the CPU.

    The labels are on the CPU as well, the graph may be on a GPU.
    """
    if values.device.type == "cpu":
        inside, volume = _OPS.graph_cut(starts, indices, values, scale, labels, num_clusters)
        return inside, volume
    nodes, beside = len(labels), labels.to(values.device)
    rows = torch.arange(nodes, device=values.device).repeat_interleave(starts.diff().long())
    same = beside[rows] == beside[indices.long()]
    tied = labels >= 0
    sums = []
    for kept in (values * same, values):
        of_nodes, _ = sparse_similarity_sums(starts, indices, kept, nodes, 2, scale, of_cols=False)
        none = torch.zeros(num_clusters, dtype=torch.float64, device="cpu")
        sums.append(none.index_add(0, labels[tied], of_nodes.cpu()[tied]))
    return sums[0], sums[1]


def edge_gradient(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    """``sign(W[i, j]) (row_terms[i] + col_terms[j] - 2 row_vectors[i] . col_vectors[j])``."""
    grad: Tensor = _OPS.edge_gradient(
        weight, row_terms, col_terms, row_vectors.contiguous(), col_vectors.contiguous()
    )
    return grad


# --- Shapes, for whoever traces these operators


def _check_matrix(weight: Tensor, affinity: int) -> tuple[int, int]:
    """What all ask of a dense matrix: its sizes."""
    check_shaped("weight", weight, FLOATS, (None, None))
    _check_affinity(affinity)
    return weight.shape[0], weight.shape[1]


def _check_affinity(affinity: int) -> None:
    require(0 <= affinity < len(AFFINITIES), f"affinity must be in [0, 2], got {affinity}")


def _check_sparse(starts: Tensor, indices: Tensor, values: Tensor, cols: int) -> int:
    """What all ask of a sparse matrix: its number of rows."""
    check_shaped("starts", starts, INDICES, (None,))
    check_shaped("indices", indices, starts.dtype, (None,))
    check_shaped("values", values, COMPUTED_IN, indices.shape)
    require(starts.shape[0] >= 1, "starts must hold at least one number")
    require(cols >= 0, f"cols must not be negative, got {cols}")
    return starts.shape[0] - 1


def _check_block(name: str, block: Tensor, dtypes: Any, rows: int | None) -> Tensor:
    check_shaped(name, block, dtypes, (rows, None))
    width = block.shape[1]
    require(width > 0 and width % LANES == 0, f"{name} must be as wide as a multiple of {LANES}, got {width}")
    return block


@torch.library.register_fake("modfast::similarity_sums")
def _similarity_sums_fake(weight: Tensor, affinity: int, scale: float) -> tuple[Tensor, Tensor]:
    rows, cols = _check_matrix(weight, affinity)
    return weight.new_empty(rows, dtype=torch.float64), weight.new_empty(cols, dtype=torch.float64)


def _products_fake(
    rows: int, cols: int, right: Tensor | None, left: Tensor | None, row_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    given = right if right is not None else left
    if given is None:
        raise RuntimeError("modfast: right or left must be given")
    require(
        row_weights is None or (right is not None and left is None),
        "row_weights go with right, without left",
    )
    width = _check_block("the block", given, COMPUTED_IN, None).shape[1]
    if right is not None:
        check_shaped("right", right, given.dtype, (cols, width))
    if left is not None:
        check_shaped("left", left, given.dtype, (rows, width))
    if row_weights is not None:
        check_shaped("row_weights", row_weights, given.dtype, (rows,))
    backward = left is not None or row_weights is not None
    return given.new_empty(rows if right is not None else 0, width), given.new_empty(
        cols if backward else 0, width
    )


@torch.library.register_fake("modfast::similarity_product")
def _similarity_product_fake(
    weight: Tensor,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _products_fake(*_check_matrix(weight, affinity), right, left, row_weights)


@torch.library.register_fake("modfast::sparse_similarity_sums")
def _sparse_similarity_sums_fake(
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    cols: int,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    of_cols: bool,
) -> tuple[Tensor, Tensor]:
    rows = _check_sparse(starts, indices, values, cols)
    _check_affinity(affinity)
    for name, probe, size in (("right", right, cols), ("left", left, rows)):
        if probe is not None:
            check_shaped(name, probe, torch.float64, (size,))
    sums = values.new_empty(rows, dtype=torch.float64)
    return sums, values.new_empty(cols if of_cols else 0, dtype=torch.float64)


@torch.library.register_fake("modfast::sparse_similarity_product")
def _sparse_similarity_product_fake(
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    cols: int,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows = _check_sparse(starts, indices, values, cols)
    _check_affinity(affinity)
    return _products_fake(rows, cols, right, left, row_weights)


@torch.library.register_fake("modfast::graph_product_")
def _graph_product_fake(
    out: Tensor,
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    scale: float,
    right: Tensor,
    row_weights: Tensor,
) -> None:
    rows = _check_sparse(starts, indices, values, 0)
    _check_block("right", right, COMPUTED_IN, rows)
    check_shaped("out", out, right.dtype, right.shape)
    check_shaped("row_weights", row_weights, right.dtype, (rows,))


def _check_basis(basis: list[Tensor], dtype: Any, length: int | None) -> int:
    """The number of vectors in it."""
    require(len(basis) > 0, "basis must hold at least one block")
    return sum(_check_block("basis", each, dtype, length).shape[1] for each in basis)


@torch.library.register_fake("modfast::basis_inner")
def _basis_inner_fake(basis: list[Tensor], block: Tensor, weights: Tensor | None) -> Tensor:
    length, width = _check_block("block", block, COMPUTED_IN, None).shape
    if weights is not None:
        check_shaped("weights", weights, block.dtype, (length,))
    return block.new_empty(_check_basis(basis, block.dtype, length), width, dtype=torch.float64)


@torch.library.register_fake("modfast::basis_rotate_")
def _basis_rotate_fake(basis: list[Tensor], factors: Tensor) -> None:
    require(len(basis) > 0, "basis must hold at least one block")
    length = _check_block("basis", basis[0], COMPUTED_IN, None).shape[0]
    _check_block("factors", factors, torch.float64, _check_basis(basis, basis[0].dtype, length))


@torch.library.register_fake("modfast::k_means")
def _k_means_fake(
    points: Tensor,
    weights: Tensor,
    num_clusters: int,
    n_init: int,
    seed: int,
    max_iter: int,
    same_place: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_shaped("points", points, torch.float32, (None, None))
    require(points.shape[0] >= 1, "points must hold at least one")
    check_shaped("weights", weights, torch.float32, (points.shape[0],))
    require(
        num_clusters >= 1 and n_init >= 1 and max_iter >= 1,
        f"num_clusters, n_init and max_iter must be positive, got {num_clusters}, {n_init}, {max_iter}",
    )
    labels = points.new_empty(points.shape[0], dtype=torch.int64)
    return labels, points.new_empty(1, dtype=torch.float64), points.new_empty(1, dtype=torch.int64)


@torch.library.register_fake("modfast::move_side")
def _move_side_fake(
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
    check_shaped("labels", labels, torch.int64, (None,))
    check_shaped("inside", inside, torch.float64, (None,))
    check_shaped("volume", volume, torch.float64, inside.shape)
    check_shaped("sizes", sizes, torch.int64, inside.shape)
    check_shaped("degrees", degrees, torch.float64, labels.shape)
    check_shaped("ties", ties, torch.float64, (labels.shape[0], None))
    require(
        1 <= inside.shape[0] <= ties.shape[1],
        f"ties must have a column for each cluster, got {tuple(ties.shape)} for {inside.shape[0]} clusters",
    )
    if loops is not None:
        check_shaped("loops", loops, torch.float64, labels.shape)
    moved, inside, volume, sizes = (torch.empty_like(each) for each in (labels, inside, volume, sizes))
    return moved, inside, volume, sizes


def _check_clustered(
    starts: Tensor, indices: Tensor, values: Tensor, labels: Tensor, num_clusters: int
) -> None:
    """What those ask that are given a graph and its clusters."""
    check_shaped("labels", labels, torch.int64, (_check_sparse(starts, indices, values, 0),))
    require(
        1 <= num_clusters < 2**31 - 1, f"num_clusters must be a positive 32-bit number, got {num_clusters}"
    )


@torch.library.register_fake("modfast::move_graph")
def _move_graph_fake(
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    scale: float,
    labels: Tensor,
    num_clusters: int,
    least: float,
    max_sweeps: int,
) -> Tensor:
    _check_clustered(starts, indices, values, labels, num_clusters)
    return torch.empty_like(labels)


@torch.library.register_fake("modfast::graph_cut")
def _graph_cut_fake(
    starts: Tensor, indices: Tensor, values: Tensor, scale: float, labels: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    _check_clustered(starts, indices, values, labels, num_clusters)
    inside = values.new_empty(num_clusters, dtype=torch.float64)
    return inside, torch.empty_like(inside)


@torch.library.register_fake("modfast::edge_gradient")
def _edge_gradient_fake(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    rows, cols = _check_matrix(weight, 0)
    check_shaped("row_terms", row_terms, torch.float64, (rows,))
    check_shaped("col_terms", col_terms, torch.float64, (cols,))
    check_shaped("row_vectors", row_vectors, torch.float64, (rows, None))
    check_shaped("col_vectors", col_vectors, torch.float64, (cols, row_vectors.shape[1]))
    return weight.new_empty(weight.shape)
