"""A whole network: the order of its layers, the graph that they make, what its loss depends on, its parts."""

from .affinity import gradient_affinity
from .graph import network_graph, network_nodes, network_partitions
from .reduction import search_space_reduction

__all__ = [
    "gradient_affinity",
    "network_graph",
    "network_nodes",
    "network_partitions",
    "search_space_reduction",
]
