"""A whole network: what its weights join, the graph that they make, what its loss depends on, its parts."""

from .affinity import gradient_affinity
from .following import CannotFollowError
from .graph import network_graph, network_nodes, network_partitions
from .reading import read_network
from .reduction import search_space_reduction
from .units import Network, NetworkLayer

__all__ = [
    "CannotFollowError",
    "Network",
    "NetworkLayer",
    "gradient_affinity",
    "network_graph",
    "network_nodes",
    "network_partitions",
    "read_network",
    "search_space_reduction",
]
