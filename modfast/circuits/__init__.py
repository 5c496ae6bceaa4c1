"""Circuits: which weights a class needs, how circuits overlap, and how they lie in the clusters."""

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
