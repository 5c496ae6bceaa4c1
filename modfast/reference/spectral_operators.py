"""The specification of the operators behind spectral clustering, in plain PyTorch.

:mod:`modfast.spectral.operators` describes their arguments and results.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _similarity(weight: Tensor, affinity: int, scale: float, dtype: torch.dtype) -> Tensor:
    values = (weight.to(torch.float64) * scale).to(dtype)
    return (values.abs(), values.square(), values)[affinity]


def _dense(starts: Tensor, indices: Tensor, values: Tensor, cols: int) -> Tensor:
    dense = values.new_zeros(len(starts) - 1, cols)
    rows = torch.arange(len(dense), device=dense.device).repeat_interleave(starts.diff().long())
    return dense.index_put_((rows, indices.long()), values, accumulate=True)


def similarity_sums(weight: Tensor, affinity: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the sums of rows and of columns."""
    values = _similarity(weight, affinity, scale, torch.float64)
    return values.sum(1), values.sum(0)


def similarity_product(
    weight: Tensor,
    affinity: int,
    scale: float,
    right: Tensor | None,
    left: Tensor | None,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return A right, and A^T left or A^T (row_weights * (A right))."""
    block = right if right is not None else left
    if block is None:
        raise ValueError("right or left must be given")
    values = _similarity(weight, affinity, scale, block.dtype)
    empty = block.new_empty(0, block.shape[1])
    forward = empty if right is None else values @ right
    if row_weights is not None:
        left = row_weights[:, None] * forward
    return forward, empty if left is None else values.T @ left


def similarity_singular_vectors(
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
    """Return the top singular vectors of the whole matrix, decomposed in float64."""
    values = _similarity(weight, affinity, scale, torch.float64)
    of_rows, of_cols = (
        torch.where(degrees > 0, degrees.rsqrt(), 0.0)[:, None] for degrees in (row_degrees, col_degrees)
    )
    left, singular, right = torch.linalg.svd(of_rows * values * of_cols.T, full_matrices=False)
    vectors = torch.cat([of_rows * left[:, :count], of_cols * right[:count].T])
    outcome = torch.tensor([1, 1, 1], device=weight.device)
    return vectors, singular[:count], torch.zeros_like(singular[:count]), outcome


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
    """Return A right and A^T left, with ones in place of a vector that is None."""
    dense = _similarity(_dense(starts, indices, values, cols), affinity, scale, torch.float64)
    forward = dense.sum(1) if right is None else dense @ right
    if not of_cols:
        return forward, forward.new_empty(0)
    return forward, dense.sum(0) if left is None else dense.T @ left


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
    """Return the product of :func:`similarity_product` for the dense matrix."""
    dense = _dense(starts, indices, values, cols)
    return similarity_product(dense, affinity, scale, right, left, row_weights)


def sparse_transpose(
    starts: Tensor, indices: Tensor, values: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transpose, the entries of each of its rows in the order of the matrix's rows."""
    rows = torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff().long())
    order = indices.argsort(stable=True)
    per_column = torch.bincount(indices, minlength=cols)
    turned_starts = torch.cat([per_column.new_zeros(1), per_column.cumsum(0)])
    return turned_starts.to(starts.dtype), rows[order].to(indices.dtype), values[order]


def graph_product_(
    out: Tensor,
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    scale: float,
    right: Tensor,
    row_weights: Tensor,
) -> None:
    """Write row_weights * (scale A right) to out."""
    dense = _similarity(_dense(starts, indices, values, len(starts) - 1), 2, scale, right.dtype)
    out.copy_(row_weights[:, None] * (dense @ right))


def basis_inner(basis: list[Tensor], block: Tensor, weights: Tensor | None) -> Tensor:
    """Return V^T (weights * block), in float64: on a GPU, float32 products may be rounded to 10 bits."""
    weighted = block.to(torch.float64)
    if weights is not None:
        weighted = weights[:, None] * weighted
    return torch.cat([of_basis.to(torch.float64).T @ weighted for of_basis in basis])


def basis_rotate_(basis: list[Tensor], factors: Tensor) -> None:
    """Overwrite the first vectors of V by V factors, in float64 as well."""
    parts = factors.split([block.shape[1] for block in basis])
    rotated = torch.zeros(len(basis[0]), factors.shape[1], dtype=torch.float64, device=factors.device)
    for block, part in zip(basis, parts, strict=True):
        rotated += block.to(torch.float64) @ part
    for block in basis:
        if rotated.shape[1] == 0:
            break
        block.copy_(rotated[:, : block.shape[1]])
        rotated = rotated[:, block.shape[1] :]


def k_means(
    points: Tensor,
    weights: Tensor,
    num_clusters: int,
    n_init: int,
    seed: int,
    max_iter: int,
    same_place: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of the start with the lowest cost."""
    from .spectral import first_centres, lloyd

    generator = torch.Generator("cpu").manual_seed(seed)
    values, masses = points.to(torch.float64), weights.to(torch.float64)
    starts = [
        lloyd(values, masses, first_centres(values, masses, num_clusters, generator, same_place), max_iter)
        for _ in range(n_init)
    ]
    labels, cost, iterations = min(starts, key=lambda result: result[1])
    return (
        labels,
        torch.tensor([cost], dtype=torch.float64, device=points.device),
        torch.tensor([iterations], device=points.device),
    )


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
    """Move the nodes of one side, sweep after sweep, until none moves."""
    from .spectral import Clusters

    labels = labels.clone()
    clusters = Clusters(inside.clone(), volume.clone(), sizes.clone())
    node_loops = torch.zeros_like(degrees) if loops is None else loops
    for _ in range(max_sweeps):
        before = labels.clone()
        for node in (labels >= 0).nonzero().flatten().tolist():
            to_clusters = ties[node, : len(inside)]
            labels[node] = clusters.move(
                int(labels[node]), to_clusters, degrees[node], node_loops[node], least
            )
        if torch.equal(labels, before):
            break
    return labels, clusters.inside, clusters.volume, clusters.sizes


def move_sides(
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
    """Move the rows until none moves, then the columns, and so on in turn until none moves."""
    from .spectral import bipartite, inside_and_volume

    values = _similarity(weight, affinity, scale, torch.float64 if in_double else torch.float32).double()
    sides, degrees = list(labels.split(weight.shape)), (row_degrees, col_degrees)
    inside, _ = inside_and_volume(bipartite(values), labels, num_clusters)
    volume, sizes = torch.zeros_like(inside), torch.zeros_like(inside, dtype=torch.int64)
    for of_side, of_nodes in zip(sides, degrees, strict=True):
        volume.index_add_(0, of_side.clamp(min=0), torch.where(of_side >= 0, of_nodes, 0.0))
        sizes.index_add_(0, of_side.clamp(min=0), (of_side >= 0).long())
    for turn in range(2 * max_sweeps):
        side, other = turn % 2, 1 - turn % 2
        members = (sides[other][:, None] == torch.arange(num_clusters, device=labels.device)).double()
        ties = (values if side == 0 else values.T) @ members
        moved, inside, volume, sizes = move_side(
            sides[side], inside, volume, sizes, ties, degrees[side], None, least, max_sweeps
        )
        if turn > 0 and torch.equal(moved, sides[side]):
            break
        sides[side] = moved
    return torch.cat(sides)


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
    """Move the nodes of a graph, sweep after sweep, until none moves."""
    from .spectral import refine

    similarity = _dense(starts, indices, values, len(labels)).to(torch.float64) * scale
    return refine(similarity, labels, num_clusters, max_sweeps, least)


def numbered_as_met(labels: Tensor, num_clusters: int) -> Tensor:
    """Renumber clusters in the order of their first node."""
    nodes = len(labels)
    # Nodes in no cluster get a number of their own.
    clusters = torch.where(labels >= 0, labels, num_clusters)
    first = torch.full((num_clusters + 1,), nodes, device=labels.device).scatter_reduce(
        0, clusters, torch.arange(nodes, device=labels.device), "amin"
    )
    numbers = torch.empty(num_clusters + 1, dtype=torch.int64, device=labels.device)
    numbers[first[:num_clusters].argsort(stable=True)] = torch.arange(num_clusters, device=labels.device)
    numbers[num_clusters] = -1
    return numbers[clusters]


def graph_cut(
    starts: Tensor, indices: Tensor, values: Tensor, scale: float, labels: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """Return each cluster's edge weight inside, and its volume."""
    from .spectral import inside_and_volume

    similarity = _dense(starts, indices, values, len(labels)).to(torch.float64) * scale
    return inside_and_volume(similarity, labels, num_clusters)


def edge_gradient(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    """Return sign(W[i, j]) (row_terms[i] + col_terms[j] - 2 row_vectors[i] . col_vectors[j])."""
    terms = row_terms[:, None] + col_terms - 2.0 * row_vectors @ col_vectors.T
    return (weight.sign().to(torch.float64) * terms).to(weight.dtype)
