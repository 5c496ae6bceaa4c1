"""From the places of nodes to their clusters: k-means, and moves that lower the normalised cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import operators as ops
from .embedding import Embedding
from .krylov import block_width
from .similarity import Similarity, SparseSimilarity

# Sweeps of single moves over all nodes; they end by themselves, as a rule after two or three.
_MAX_SWEEPS = 20

# Lloyd's iterations, which end by themselves as well.
_MAX_LLOYD = 300


def cluster_places(
    found: Embedding, num_clusters: int, n_init: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """The labels of the embedded nodes, and how tight their clusters are.

    Weighted by degrees, the cost of k-means is the normalised cut as far as the vectors tell it; see
    :mod:`modfast.reference.spectral`.
    """
    same_place = 1e-6 if found.dtype == torch.float64 else 1e-4
    labels, cost, iterations = ops.k_means(
        found.points.contiguous(), found.weights, num_clusters, n_init, seed, _MAX_LLOYD, same_place
    )
    return labels, {"inertia": float(cost), "iterations": int(iterations)}


def numbered_as_met(labels: Tensor, num_clusters: int) -> Tensor:
    """The same clusters, numbered by their first node; -1 stays."""
    tied = labels >= 0
    nodes = len(labels)
    # Nodes without a cluster count for one more.
    places = torch.where(tied, labels, num_clusters)
    first = torch.full((num_clusters + 1,), nodes, device="cpu").scatter_reduce(
        0, places, torch.arange(nodes, device="cpu"), "amin"
    )
    numbers = torch.empty(num_clusters + 1, dtype=torch.int64, device="cpu")
    numbers[first[:num_clusters].argsort(stable=True)] = torch.arange(num_clusters, device="cpu")
    numbers[num_clusters] = -1
    return numbers[places]


def _least_gain(dtype: torch.dtype) -> float:
    """By how much a move must lower the normalised cut, lest rounding move nodes to and fro."""
    return 1e-6 if dtype == torch.float32 else 1e-12


def _members(labels: Tensor, num_clusters: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(n, block width)``: 1 where a node is in a cluster."""
    members = torch.zeros(len(labels), block_width(num_clusters), dtype=dtype, device="cpu")
    tied = (labels >= 0).nonzero().flatten()
    members[tied, labels[tied]] = 1.0
    return members.to(device)


def sides_cut(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    labels: list[Tensor],
    num_clusters: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What lies inside each cluster of rows and columns, its volume, and the ties of rows and of columns."""
    rows, cols = (_members(each, num_clusters, dtype, similarity.device) for each in labels)
    ties = [each.to("cpu", torch.float64) for each in similarity.product(right=cols, left=rows)]
    inside, volume = torch.zeros(2, num_clusters, dtype=torch.float64, device="cpu")
    for side, of_side in enumerate(labels):
        tied = of_side >= 0
        volume.index_add_(0, of_side[tied], degrees[side].cpu()[tied])
    tied = labels[0] >= 0
    inside.index_add_(0, labels[0][tied], 2.0 * ties[0][tied, labels[0][tied]])
    return inside, volume, ties


def refine_sides(
    similarity: Similarity,
    degrees: tuple[Tensor, Tensor],
    labels: list[Tensor],
    num_clusters: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Moves rows, then columns, to where each lowers the normalised cut, until none moves.

    Rows are not tied to each other, so that one product tells the ties of all of them, whoever moves.
    """
    inside, volume, ties = sides_cut(similarity, degrees, labels, num_clusters, dtype)
    sizes = torch.bincount(torch.cat([each[each >= 0] for each in labels]), minlength=num_clusters)
    on_cpu = [each.cpu() for each in degrees]
    labels, current = list(labels), [True, True]
    for turn in range(2 * _MAX_SWEEPS):
        side, other = turn % 2, 1 - turn % 2
        if not current[side]:
            members = _members(labels[other], num_clusters, dtype, similarity.device)
            product = (
                similarity.product(right=members)[0] if side == 0 else similarity.product(left=members)[1]
            )
            ties[side] = product.to("cpu", torch.float64)
            current[side] = True
        elif turn > 1:
            break
        moved, inside, volume, sizes = ops.move_side(
            labels[side],
            inside,
            volume,
            sizes,
            ties[side],
            on_cpu[side],
            None,
            _least_gain(dtype),
            _MAX_SWEEPS,
        )
        current[other] = current[other] and torch.equal(moved, labels[side])
        labels[side] = moved
    return labels


def refine_graph(similarity: SparseSimilarity, degrees: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Moves single nodes of a graph to where each lowers the normalised cut, until none moves.

    On the CPU one after the other. On another device, whose graph stays there, all at once that want to move
    and are not tied to each other; one product tells their ties.
    """
    if similarity.device.type == "cpu":
        return ops.move_graph(similarity, labels, num_clusters, _least_gain(torch.float64), _MAX_SWEEPS)
    return refine_in_rounds(similarity, degrees, labels, num_clusters)


def refine_in_rounds(
    similarity: SparseSimilarity, degrees: Tensor, labels: Tensor, num_clusters: int
) -> Tensor:
    """What :func:`refine_graph` does where the graph is not on the CPU."""
    device, nodes = similarity.device, len(labels)
    starts, indices = similarity.starts.long(), similarity.indices.long()
    rows = torch.arange(nodes, device=device).repeat_interleave(starts.diff())
    off_diagonal = rows != indices
    values = similarity.values.to(torch.float64) * similarity.scale
    loops = torch.zeros(nodes, dtype=torch.float64, device=device)
    loops.index_add_(0, rows[~off_diagonal], values[~off_diagonal])
    rows, neighbours = rows[off_diagonal], indices[off_diagonal]
    degrees, loops = degrees.cpu(), loops.cpu()
    # A fixed order of precedence: of nodes that are tied and both want to move, the first one may.
    rank = torch.randperm(nodes, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    rank = rank.to(device) + 1
    least = _least_gain(torch.float64)
    for _ in range(_MAX_SWEEPS):
        members = _members(labels, num_clusters, torch.float64, device)
        ties = similarity.product(right=members)[0].cpu()[:, :num_clusters].contiguous()
        tied = labels >= 0
        own = labels.clamp(min=0)[:, None]
        ties.scatter_add_(1, own, torch.where(tied, -loops, 0.0)[:, None])
        volume = torch.zeros(num_clusters, dtype=torch.float64, device="cpu").index_add_(
            0, labels[tied], degrees[tied]
        )
        within = (ties.gather(1, own).squeeze(1) + loops)[tied]
        inside = torch.zeros(num_clusters, dtype=torch.float64, device="cpu").index_add_(
            0, labels[tied], within
        )
        sizes = torch.bincount(labels[tied], minlength=num_clusters)
        wants = _wants_to_move(labels, inside, volume, sizes, ties, degrees, loops, least)
        if not wants.any():
            break
        wishes = torch.where(wants.to(device), rank, 0)
        before = torch.zeros_like(rank).scatter_reduce_(0, rows, wishes[neighbours], "amax")
        may = (wishes > before).cpu()
        moved, *_ = ops.move_side(
            torch.where(may, labels, -1), inside, volume, sizes, ties, degrees, loops, least, 1
        )
        labels = torch.where(may, moved, labels)
    return labels


def _wants_to_move(
    labels: Tensor,
    inside: Tensor,
    volume: Tensor,
    sizes: Tensor,
    ties: Tensor,
    degrees: Tensor,
    loops: Tensor,
    least: float,
) -> Tensor:
    """Which nodes would lower the normalised cut if they alone moved; (n,) bool."""
    own = labels.clamp(min=0)[:, None]
    share = torch.where(volume > 0, inside / volume, 0.0)
    joined = (inside + 2 * ties + loops[:, None]) / (volume + degrees[:, None])
    gain = torch.where((sizes > 0) & (ties > 0), joined - share, -torch.inf).scatter_(1, own, -torch.inf)
    rest = (volume[own] - degrees[:, None]).squeeze(1)
    left = (inside[own] - 2 * ties.gather(1, own) - loops[:, None]).squeeze(1) / rest
    stays = share[own.squeeze(1)] - left
    return (labels >= 0) & (sizes[own.squeeze(1)] > 1) & (gain.amax(1) > stays + least)
