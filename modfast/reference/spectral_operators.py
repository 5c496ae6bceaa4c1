"""The specification of the operators behind spectral clustering, in plain PyTorch.

Arguments and results are those of :mod:`modfast.spectral.operators`, where they are described.
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
    """The sums of rows and of columns."""
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
    """A right, and A^T left or A^T (row_weights * (A right))."""
    given = right if right is not None else left
    if given is None:
        raise ValueError("right or left must be given")
    values = _similarity(weight, affinity, scale, given.dtype)
    nothing = given.new_empty(0, given.shape[1])
    forward = nothing if right is None else values @ right
    if row_weights is not None:
        left = row_weights[:, None] * forward
    return forward, nothing if left is None else values.T @ left


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
    """A right and A^T left, ones where they are not given."""
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
    """That of the dense matrix."""
    dense = _dense(starts, indices, values, cols)
    return similarity_product(dense, affinity, scale, right, left, row_weights)


def graph_product_(
    out: Tensor,
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    scale: float,
    right: Tensor,
    row_weights: Tensor,
) -> None:
    """row_weights * (scale A right)."""
    dense = _similarity(_dense(starts, indices, values, len(starts) - 1), 2, scale, right.dtype)
    out.copy_(row_weights[:, None] * (dense @ right))


def basis_inner(basis: list[Tensor], block: Tensor, weights: Tensor | None) -> Tensor:
    """V^T (weights * W), in float64: on a GPU float32 may stand for products rounded to 10 bits."""
    weighted = block.to(torch.float64)
    if weights is not None:
        weighted = weights[:, None] * weighted
    return torch.cat([each.to(torch.float64).T @ weighted for each in basis])


def basis_rotate_(basis: list[Tensor], factors: Tensor) -> None:
    """The first vectors of V become V factors, in float64 as well."""
    parts = factors.split([each.shape[1] for each in basis])
    rotated = torch.zeros(len(basis[0]), factors.shape[1], dtype=torch.float64, device=factors.device)
    for each, part in zip(basis, parts, strict=True):
        rotated += each.to(torch.float64) @ part
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
    """The tightest of so many starts."""
    from .spectral import first_centres, lloyd

    generator = torch.Generator("cpu").manual_seed(seed)
    values, masses = points.to(torch.float64), weights.to(torch.float64)
    found = [
        lloyd(values, masses, first_centres(values, masses, num_clusters, generator, same_place), max_iter)
        for _ in range(n_init)
    ]
    labels, cost, iterations = min(found, key=lambda each: each[1])
    return (
        labels,
        torch.tensor([cost], dtype=torch.float64, device="cpu"),
        torch.tensor([iterations], device="cpu"),
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
    """Sweeps over the nodes of one side."""
    from .spectral import Clusters

    labels = labels.clone()
    clusters = Clusters(inside.clone(), volume.clone(), sizes.clone())
    of_itself = torch.zeros_like(degrees) if loops is None else loops
    for _ in range(max_sweeps):
        before = labels.clone()
        for node in (labels >= 0).nonzero().flatten().tolist():
            ties_of_node = ties[node, : len(inside)]
            labels[node] = clusters.move(
                int(labels[node]), ties_of_node, degrees[node], of_itself[node], least
            )
        if torch.equal(labels, before):
            break
    return labels, clusters.inside, clusters.volume, clusters.sizes


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
    """Sweeps over the nodes."""
    from .spectral import refine

    tied = labels >= 0
    similarity = _dense(starts, indices, values, len(labels)).to(torch.float64) * scale
    moved = labels.clone()
    moved[tied] = refine(similarity[tied][:, tied], labels[tied], num_clusters, max_sweeps, least)
    return moved


def graph_cut(
    starts: Tensor, indices: Tensor, values: Tensor, scale: float, labels: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """What lies inside each cluster, and its volume."""
    from .spectral import inside_and_volume

    similarity = _dense(starts, indices, values, len(labels)).to(torch.float64) * scale
    return inside_and_volume(similarity, labels, num_clusters)


def edge_gradient(
    weight: Tensor, row_terms: Tensor, col_terms: Tensor, row_vectors: Tensor, col_vectors: Tensor
) -> Tensor:
    """sign(W[i, j]) (row_terms[i] + col_terms[j] - 2 row_vectors[i] . col_vectors[j])."""
    terms = row_terms[:, None] + col_terms - 2.0 * row_vectors @ col_vectors.T
    return (weight.sign().to(torch.float64) * terms).to(weight.dtype)
