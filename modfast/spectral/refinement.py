"""Clusters of embedded nodes: k-means, then moves of single nodes that lower the normalised cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import operators as ops
from .embedding import Embedding
from .krylov import block_width
from .similarity import DenseSimilarity, Similarity, SparseSimilarity

# The maximum number of sweeps of single moves over all nodes. Usually no node moves after two or three.
_MAX_SWEEPS = 20

# The maximum number of Lloyd's iterations, which usually end earlier.
_MAX_LLOYD = 300


def cluster_places(
    found: Embedding, num_clusters: int, n_init: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Return the labels of the embedded nodes by k-means, its cost and its number of iterations.

    With the degrees as weights, the cost approximates the normalised cut by the vectors of the embedding; see
    :mod:`modfast.reference.spectral`.
    """
    same_place = 1e-6 if found.dtype == torch.float64 else 1e-4
    labels, cost, iterations = ops.k_means(
        found.points.contiguous(), found.weights, num_clusters, n_init, seed, _MAX_LLOYD, same_place
    )
    return labels, {"inertia": float(cost), "iterations": int(iterations)}


def _least_gain(dtype: torch.dtype) -> float:
    """Return by how much a move must lower the normalised cut, so that rounding moves no node to and fro."""
    return 1e-6 if dtype == torch.float32 else 1e-12


def _members(labels: Tensor, num_clusters: int, dtype: torch.dtype) -> Tensor:
    """Return the one-hot labels, ``(n, block width)``: 1 where a node is in a cluster."""
    members = torch.zeros(len(labels), block_width(num_clusters), dtype=dtype, device=labels.device)
    return members.scatter_(1, _own(labels), (labels >= 0)[:, None].to(dtype))


def _own(labels: Tensor) -> Tensor:
    """Return each node's cluster as an index, ``(n, 1)``, which is 0 for a node that is in none."""
    return labels.clamp(min=0)[:, None]


def sides_cut(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    labels: list[Tensor],
    num_clusters: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the terms of the normalised cut of clusters of rows and columns.

    Returns:
        Of each cluster the weight of the edges inside it, each counted at both ends, and the volume; then,
        for the rows and for the columns, the weight of the edges from each node to each cluster.
    """
    rows, cols = (_members(of_side, num_clusters, dtype) for of_side in labels)
    products = similarity.product(right=cols, left=rows)
    to_clusters = [product.to(torch.float64) for product in products]
    sums = []
    for members, of_side, to_each, of_nodes in zip((rows, cols), labels, to_clusters, degrees, strict=True):
        # The numbers to add up for each cluster, in the first columns of a block.
        terms = torch.zeros(len(of_side), ops.LANES, dtype=torch.float64, device=of_side.device)
        terms[:, 0] = of_nodes
        terms[:, 1] = to_each.gather(1, _own(of_side))[:, 0]
        sums.append(ops.basis_inner([terms], members.to(torch.float64), None)[:2, :num_clusters])
    return 2.0 * sums[0][1], sums[0][0] + sums[1][0], to_clusters


def refine_sides(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    labels: Tensor,
    num_clusters: int,
    dtype: torch.dtype,
) -> Tensor:
    """Move rows, then columns, in turn to the clusters that lower the normalised cut, until none moves.

    No edge joins two rows, so a row's edge weight to each cluster does not depend on the moves of other rows:
    one product computes it for all rows. The same holds for columns.

    Args:
        similarity: the matrix.
        degrees: the sums of its rows and of its columns.
        labels: of the rows, then of the columns.
        num_clusters: k.
        dtype: of the product.
    """
    if isinstance(similarity, DenseSimilarity) and ops.does_whole_steps(similarity.weight):
        return ops.move_sides(
            similarity.weight,
            similarity.affinity,
            similarity.scale,
            degrees,
            labels,
            num_clusters,
            dtype == torch.float64,
            _least_gain(dtype),
            _MAX_SWEEPS,
        )
    sides, current = list(labels.split(similarity.shape)), [True, True]
    inside, volume, to_clusters = sides_cut(similarity, degrees, sides, num_clusters, dtype)
    sizes = torch.zeros(num_clusters, dtype=torch.int64, device=similarity.device)
    for of_side in sides:
        sizes.index_add_(0, _own(of_side)[:, 0], (of_side >= 0).long())
    for turn in range(2 * _MAX_SWEEPS):
        side, other = turn % 2, 1 - turn % 2
        if not current[side]:
            members = _members(sides[other], num_clusters, dtype)
            product = (
                similarity.product(right=members)[0] if side == 0 else similarity.product(left=members)[1]
            )
            to_clusters[side] = product.to(torch.float64)
            current[side] = True
        elif turn > 1:
            break
        moved, inside, volume, sizes = ops.move_side(
            sides[side],
            inside,
            volume,
            sizes,
            to_clusters[side],
            degrees[side],
            None,
            _least_gain(dtype),
            _MAX_SWEEPS,
        )
        current[other] = current[other] and torch.equal(moved, sides[side])
        sides[side] = moved
    return torch.cat(sides)


def refine_graph(similarity: SparseSimilarity, labels: Tensor, num_clusters: int) -> Tensor:
    """Move single nodes of a graph to the clusters that lower the normalised cut, until none moves."""
    return ops.move_graph(similarity, labels, num_clusters, _least_gain(torch.float64), _MAX_SWEEPS)
