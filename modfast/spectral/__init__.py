"""Spectral clustering and co-clustering of weights and graphs, and a test of the clusters against chance."""

from .clustering import graph_embedding, normalized_cut, spectral_cluster, spectral_cocluster
from .laplacian import laplacian_eigenvalues
from .shuffling import ShuffleTest, shuffle_test
from .solver import ConvergenceWarning

__all__ = [
    "ConvergenceWarning",
    "ShuffleTest",
    "graph_embedding",
    "laplacian_eigenvalues",
    "normalized_cut",
    "shuffle_test",
    "spectral_cluster",
    "spectral_cocluster",
]
