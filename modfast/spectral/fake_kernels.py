"""The fake kernels of the spectral operators: the shapes and dtypes of their results.

PyTorch calls them in place of the kernels when it traces, for ``torch.compile`` and on the meta device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from modfast.library import fake_kernel
from modfast.shapes import COMPUTED_IN, FLOATS, INDICES, check_shaped, require

AFFINITIES = ("abs", "square", "given")

# The width of a block of vectors is a multiple of this; csrc/spectral/spectral.h.
LANES = 8


def _check_matrix(weight: Tensor, affinity: int) -> tuple[int, int]:
    """Check a dense matrix and its affinity; return its numbers of rows and columns."""
    check_shaped("weight", weight, FLOATS, (None, None))
    _check_affinity(affinity)
    return weight.shape[0], weight.shape[1]


def _check_affinity(affinity: int) -> None:
    require(0 <= affinity < len(AFFINITIES), f"affinity must be in [0, 2], got {affinity}")


def _check_sparse(starts: Tensor, indices: Tensor, values: Tensor, cols: int) -> int:
    """Check a sparse matrix; return its number of rows."""
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


@fake_kernel("similarity_sums")
def _similarity_sums_fake(weight: Tensor, affinity: int, scale: float) -> tuple[Tensor, Tensor]:
    rows, cols = _check_matrix(weight, affinity)
    return weight.new_empty(rows, dtype=torch.float64), weight.new_empty(cols, dtype=torch.float64)


def _products_fake(
    rows: int, cols: int, right: Tensor | None, left: Tensor | None, row_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    block = right if right is not None else left
    if block is None:
        raise RuntimeError("modfast: right or left must be given")
    require(
        row_weights is None or (right is not None and left is None),
        "row_weights go with right, without left",
    )
    width = _check_block("the block", block, COMPUTED_IN, None).shape[1]
    if right is not None:
        check_shaped("right", right, block.dtype, (cols, width))
    if left is not None:
        check_shaped("left", left, block.dtype, (rows, width))
    if row_weights is not None:
        check_shaped("row_weights", row_weights, block.dtype, (rows,))
    backward = left is not None or row_weights is not None
    return block.new_empty(rows if right is not None else 0, width), block.new_empty(
        cols if backward else 0, width
    )


@fake_kernel("similarity_product")
def _similarity_product_fake(
    weight: Tensor,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _products_fake(*_check_matrix(weight, affinity), right, left, row_weights)


@fake_kernel("sparse_similarity_sums")
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


@fake_kernel("sparse_similarity_product")
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


@fake_kernel("sparse_transpose")
def _sparse_transpose_fake(
    starts: Tensor, indices: Tensor, values: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check_sparse(starts, indices, values, cols)
    return starts.new_empty(cols + 1), torch.empty_like(indices), torch.empty_like(values)


@fake_kernel("graph_product_")
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
    """Check a basis; return its number of vectors."""
    require(len(basis) > 0, "basis must hold at least one block")
    return sum(_check_block("basis", block, dtype, length).shape[1] for block in basis)


@fake_kernel("basis_inner")
def _basis_inner_fake(basis: list[Tensor], block: Tensor, weights: Tensor | None) -> Tensor:
    length, width = _check_block("block", block, COMPUTED_IN, None).shape
    if weights is not None:
        check_shaped("weights", weights, block.dtype, (length,))
    return block.new_empty(_check_basis(basis, block.dtype, length), width, dtype=torch.float64)


@fake_kernel("basis_rotate_")
def _basis_rotate_fake(basis: list[Tensor], factors: Tensor) -> None:
    require(len(basis) > 0, "basis must hold at least one block")
    length = _check_block("basis", basis[0], COMPUTED_IN, None).shape[0]
    _check_block("factors", factors, torch.float64, _check_basis(basis, basis[0].dtype, length))


def _check_degrees(weight: Tensor, affinity: int, row_degrees: Tensor, col_degrees: Tensor) -> int:
    """Check a matrix that is not empty, and its degrees; return its number of rows and columns together."""
    rows, cols = _check_matrix(weight, affinity)
    require(rows > 0 and cols > 0, f"weight must not be empty, got shape {(rows, cols)}")
    check_shaped("row_degrees", row_degrees, torch.float64, (rows,))
    check_shaped("col_degrees", col_degrees, torch.float64, (cols,))
    return rows + cols


@fake_kernel("similarity_singular_vectors")
def _similarity_singular_vectors_fake(
    weight: Tensor,
    affinity: int,
    scale: float,
    row_degrees: Tensor,
    col_degrees: Tensor,
    random: Tensor,
    count: int,
    tol: float,
    max_passes: int,
    capacity: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nodes = _check_degrees(weight, affinity, row_degrees, col_degrees)
    cols, width = _check_block("random", random, torch.float32, weight.shape[1]).shape
    require(1 <= count <= width, f"count must be from 1 to the width of random, {width}, got {count}")
    require(math.isfinite(tol) and tol > 0, f"tol must be a finite number above 0, got {tol}")
    require(max_passes >= 1, f"max_passes must be positive, got {max_passes}")
    require(
        capacity % width == 0 and 3 * width <= capacity <= cols - width,
        f"capacity must be a multiple of {width}, from three times that to {cols - width}, got {capacity}",
    )
    values = row_degrees.new_empty(count)
    outcome = row_degrees.new_empty(3, dtype=torch.int64)
    return row_degrees.new_empty(nodes, count), values, torch.empty_like(values), outcome


@fake_kernel("k_means")
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


@fake_kernel("move_side")
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
    moved, inside, volume, sizes = (torch.empty_like(state) for state in (labels, inside, volume, sizes))
    return moved, inside, volume, sizes


@fake_kernel("move_sides")
def _move_sides_fake(
    weight: Tensor,
    affinity: int,
    scale: float,
    row_degrees: Tensor,
    col_degrees: Tensor,
    labels: Tensor,
    num_clusters: int,
    in_double: bool,
    least: float,
    max_sweeps: int,
) -> Tensor:
    nodes = _check_degrees(weight, affinity, row_degrees, col_degrees)
    check_shaped("labels", labels, torch.int64, (nodes,))
    _check_num_clusters(num_clusters)
    require(
        num_clusters <= nodes,
        f"num_clusters must be at most the number of nodes, {nodes}, got {num_clusters}",
    )
    require(0 < least < float("inf"), f"least must be a finite number above 0, got {least}")
    require(
        0 <= max_sweeps < 2**31, f"max_sweeps must be a 32-bit number that is not negative, got {max_sweeps}"
    )
    return torch.empty_like(labels)


@fake_kernel("numbered_as_met")
def _numbered_as_met_fake(labels: Tensor, num_clusters: int) -> Tensor:
    check_shaped("labels", labels, torch.int64, (None,))
    _check_num_clusters(num_clusters)
    return torch.empty_like(labels)


def _check_num_clusters(num_clusters: int) -> None:
    require(
        1 <= num_clusters < 2**31 - 1, f"num_clusters must be a positive 32-bit number, got {num_clusters}"
    )


def _check_clustered(
    starts: Tensor, indices: Tensor, values: Tensor, labels: Tensor, num_clusters: int
) -> None:
    """Check a graph, its labels and the number of clusters."""
    check_shaped("labels", labels, torch.int64, (_check_sparse(starts, indices, values, 0),))
    _check_num_clusters(num_clusters)


@fake_kernel("move_graph")
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


@fake_kernel("graph_cut")
def _graph_cut_fake(
    starts: Tensor, indices: Tensor, values: Tensor, scale: float, labels: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    _check_clustered(starts, indices, values, labels, num_clusters)
    inside = values.new_empty(num_clusters, dtype=torch.float64)
    return inside, torch.empty_like(inside)


@fake_kernel("edge_gradient")
def _edge_gradient_fake(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    rows, cols = _check_matrix(weight, 0)
    check_shaped("row_terms", row_terms, torch.float64, (rows,))
    check_shaped("col_terms", col_terms, torch.float64, (cols,))
    check_shaped("row_vectors", row_vectors, torch.float64, (rows, None))
    check_shaped("col_vectors", col_vectors, torch.float64, (cols, row_vectors.shape[1]))
    return weight.new_empty(weight.shape)
