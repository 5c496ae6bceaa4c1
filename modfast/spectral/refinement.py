"""Clusters of embedded nodes: k-means, then moves of single nodes that lower the normalised cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import operators as ops
from .embedding import Embedding
from .krylov import block_width
from .similarity import Similarity, SparseSimilarity

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


def numbered_as_met(labels: Tensor, num_clusters: int) -> Tensor:
    """Renumber clusters in the order of their first node; -1 stays."""
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


def _least_gain(dtype: torch.dtype) -> float:
    """Return by how much a move must lower the normalised cut, so that rounding moves no node to and fro."""
    return 1e-6 if dtype == torch.float32 else 1e-12


def _members(labels: Tensor, num_clusters: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the one-hot labels, ``(n, block width)``: 1 where a node is in a cluster."""
    members = torch.zeros(len(labels), block_width(num_clusters), dtype=dtype, device="cpu")
    clustered = (labels >= 0).nonzero().flatten()
    members[clustered, labels[clustered]] = 1.0
    return members.to(device)


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
    rows, cols = (_members(of_side, num_clusters, dtype, similarity.device) for of_side in labels)
    products = similarity.product(right=cols, left=rows)
    to_clusters = [product.to("cpu", torch.float64) for product in products]
    inside, volume = torch.zeros(2, num_clusters, dtype=torch.float64, device="cpu")
    for side, of_side in enumerate(labels):
        clustered = of_side >= 0
        volume.index_add_(0, of_side[clustered], degrees[side].cpu()[clustered])
    clustered = labels[0] >= 0
    own = labels[0][clustered]
    inside.index_add_(0, own, 2.0 * to_clusters[0][clustered, own])
    return inside, volume, to_clusters


def refine_sides(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    labels: list[Tensor],
    num_clusters: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Move rows, then columns, in turn to the clusters that lower the normalised cut, until none moves.

    No edge joins two rows, so a row's edge weight to each cluster does not depend on the moves of other rows:
    one product computes it for all rows. The same holds for columns.
    """
    inside, volume, to_clusters = sides_cut(similarity, degrees, labels, num_clusters, dtype)
    sizes = torch.bincount(torch.cat([side[side >= 0] for side in labels]), minlength=num_clusters)
    cpu_degrees = [of_side.cpu() for of_side in degrees]
    labels, current = list(labels), [True, True]
    for turn in range(2 * _MAX_SWEEPS):
        side, other = turn % 2, 1 - turn % 2
        if not current[side]:
            members = _members(labels[other], num_clusters, dtype, similarity.device)
            product = (
                similarity.product(right=members)[0] if side == 0 else similarity.product(left=members)[1]
            )
            to_clusters[side] = product.to("cpu", torch.float64)
            current[side] = True
        elif turn > 1:
            break
        moved, inside, volume, sizes = ops.move_side(
            labels[side],
            inside,
            volume,
            sizes,
            to_clusters[side],
            cpu_degrees[side],
            None,
            _least_gain(dtype),
            _MAX_SWEEPS,
        )
        current[other] = current[other] and torch.equal(moved, labels[side])
        labels[side] = moved
    return labels


def refine_graph(similarity: SparseSimilarity, degrees: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Move single nodes of a graph to the clusters that lower the normalised cut, until none moves.

    On the CPU, nodes move one after the other. On another device, where the graph stays, each round moves
    many nodes at once, no two of which share an edge; one product computes all nodes' edge weight to each
    cluster.
    """
    if similarity.device.type == "cpu":
        return ops.move_graph(similarity, labels, num_clusters, _least_gain(torch.float64), _MAX_SWEEPS)
    return refine_in_rounds(similarity, degrees, labels, num_clusters)


def refine_in_rounds(
    similarity: SparseSimilarity, degrees: Tensor, labels: Tensor, num_clusters: int
) -> Tensor:
    """Return the result of :func:`refine_graph` for a graph that is not on the CPU."""
    device, nodes = similarity.device, len(labels)
    starts, indices = similarity.starts.long(), similarity.indices.long()
    rows = torch.arange(nodes, device=device).repeat_interleave(starts.diff())
    off_diagonal = rows != indices
    values = similarity.values.to(torch.float64) * similarity.scale
    loops = torch.zeros(nodes, dtype=torch.float64, device=device)
    loops.index_add_(0, rows[~off_diagonal], values[~off_diagonal])
    rows, neighbours = rows[off_diagonal], indices[off_diagonal]
    degrees, loops = degrees.cpu(), loops.cpu()
    # A fixed, random order: if two neighbours both gain by a move, the one with the higher rank moves.
    rank = torch.randperm(nodes, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    rank = rank.to(device) + 1
    least = _least_gain(torch.float64)
    for _ in range(_MAX_SWEEPS):
        members = _members(labels, num_clusters, torch.float64, device)
        to_clusters = similarity.product(right=members)[0].cpu()[:, :num_clusters].contiguous()
        clustered = labels >= 0
        own = labels.clamp(min=0)[:, None]
        to_clusters.scatter_add_(1, own, torch.where(clustered, -loops, 0.0)[:, None])
        volume = torch.zeros(num_clusters, dtype=torch.float64, device="cpu").index_add_(
            0, labels[clustered], degrees[clustered]
        )
        within = (to_clusters.gather(1, own).squeeze(1) + loops)[clustered]
        inside = torch.zeros(num_clusters, dtype=torch.float64, device="cpu").index_add_(
            0, labels[clustered], within
        )
        sizes = torch.bincount(labels[clustered], minlength=num_clusters)
        gains = _gains_by_moving(labels, inside, volume, sizes, to_clusters, degrees, loops, least)
        if not gains.any():
            break
        own_rank = torch.where(gains.to(device), rank, 0)
        neighbour_rank = torch.zeros_like(rank).scatter_reduce_(0, rows, own_rank[neighbours], "amax")
        moves = (own_rank > neighbour_rank).cpu()
        moved, *_ = ops.move_side(
            torch.where(moves, labels, -1), inside, volume, sizes, to_clusters, degrees, loops, least, 1
        )
        labels = torch.where(moves, moved, labels)
    return labels


def _gains_by_moving(
    labels: Tensor,
    inside: Tensor,
    volume: Tensor,
    sizes: Tensor,
    to_clusters: Tensor,
    degrees: Tensor,
    loops: Tensor,
    least: float,
) -> Tensor:
    """Return which nodes would lower the normalised cut if they alone moved; (n,) bool."""
    own = labels.clamp(min=0)[:, None]
    share = torch.where(volume > 0, inside / volume, 0.0)
    joined = (inside + 2 * to_clusters + loops[:, None]) / (volume + degrees[:, None])
    reachable = (sizes > 0) & (to_clusters > 0)
    gain = torch.where(reachable, joined - share, -torch.inf).scatter_(1, own, -torch.inf)
    rest = (volume[own] - degrees[:, None]).squeeze(1)
    left = (inside[own] - 2 * to_clusters.gather(1, own) - loops[:, None]).squeeze(1) / rest
    loss = share[own.squeeze(1)] - left
    return (labels >= 0) & (sizes[own.squeeze(1)] > 1) & (gain.amax(1) > loss + least)
