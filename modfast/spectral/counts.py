"""Clusters of one graph for many numbers of clusters, from one embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modfast.arguments import Integer, check

from . import operators as ops
from .clustering import read_graph
from .embedding import Embedding, embed_graph, without_vectors
from .refinement import cluster_places, refine_graph
from .solver import check_solver, warn_unless


class Clusterings(NamedTuple):
    """The clusters of a graph, for several numbers of them.

    Attributes:
        labels: the number of clusters to the cluster of each node, ``(n,)``, int64, -1 for a node without
            edges.
        normalized_cuts: the number of clusters to their normalised cut.
        eigenvalues: the largest of ``D^-1/2 A D^-1/2``, one more than the largest number of clusters where
            there are so many nodes; float64.
        converged: whether all of them have converged.
    """

    labels: dict[int, Tensor]
    normalized_cuts: dict[int, float]
    eigenvalues: list[float]
    converged: bool


def spectral_cluster_counts(
    adjacency: Any,
    num_clusters: Sequence[int],
    *,
    n_init: int = 10,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    on_count: Callable[[int], None] | None = None,
) -> Clusterings:
    """Cluster the nodes of a graph as :func:`modfast.spectral_cluster` does, for each number of clusters.

    The graph is read once and the eigenvectors are computed once, for the largest number; fewer clusters are
    found in the first of these vectors.

    Args:
        adjacency: as for :func:`modfast.spectral_cluster`.
        num_clusters: the numbers, each from 1 to the number of nodes.
        n_init: as there.
        tol: as there.
        max_iter: as there.
        seed: as there.
        on_count: called with each number before the nodes are divided into so many clusters.

    Returns:
        The :class:`Clusterings`.

    Raises:
        TypeError, ValueError: as there; there is no number of clusters.

    Warns:
        ConvergenceWarning: as there.

    Example:
        >>> pairs = torch.block_diag(*[torch.ones(2, 2)] * 4) + 0.1
        >>> found = spectral_cluster_counts(pairs, [2, 4])
        >>> found.labels[4].tolist(), round(found.normalized_cuts[4], 3)
        ([0, 0, 1, 1, 2, 2, 3, 3], 0.857)
    """
    similarity, degrees = read_graph(adjacency)
    nodes = similarity.shape[0]
    if not num_clusters:
        raise ValueError("num_clusters must hold at least one number, got none")
    for count in num_clusters:
        check("num_clusters", count, Integer(1, nodes), f" for {nodes} nodes")
    check_solver(n_init, tol, max_iter, seed)
    has_edges = degrees > 0
    most = min(max(num_clusters) + 1, nodes)
    embedding: Embedding | None = None
    if bool(has_edges.any()):
        embedding = embed_graph(
            similarity, degrees, most, tol=float(tol), max_iter=int(max_iter), seed=int(seed)
        )
        warn_unless(embedding.converged, embedding.passes, embedding.residuals)
    labels, cuts = {}, {}
    for count in map(int, num_clusters):
        if on_count is not None:
            on_count(count)
        found = torch.full((nodes,), -1, device=similarity.device)
        if embedding is not None:
            found[has_edges], _ = cluster_places(
                without_vectors(embedding, count), count, int(n_init), int(seed)
            )
            found = refine_graph(similarity, found, count)
        labels[count] = ops.numbered_as_met(found, count)
        inside, volume = ops.graph_cut(similarity, labels[count], count)
        cuts[count] = float(((volume - inside) / volume)[volume > 0].sum())
    values = [0.0] * most if embedding is None else embedding.values.tolist()
    return Clusterings(labels, cuts, values, embedding is None or embedding.converged)
