"""Circuits, the weights that a class needs: finding them, their overlap, and the clusters they lie in."""

from .find import find_circuit, find_circuits
from .measures import circuit_overlap, cluster_information, cluster_shares, random_circuits

__all__ = [
    "circuit_overlap",
    "cluster_information",
    "cluster_shares",
    "find_circuit",
    "find_circuits",
    "random_circuits",
]
