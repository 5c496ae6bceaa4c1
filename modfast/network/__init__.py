"""A whole network: the order of its layers, the graph that they make, and what its loss depends on."""

from .affinity import gradient_affinity
from .graph import network_graph, network_nodes, network_partitions

__all__ = ["gradient_affinity", "network_graph", "network_nodes", "network_partitions"]
