"""modfast: train neural networks that fall apart into modules, find the modules, study their circuits."""

import importlib
from typing import TYPE_CHECKING, Any

from . import optim
from .circuit import Circuit, load_circuits, save_circuits
from .circuits.find import find_circuit, find_circuits
from .circuits.measures import circuit_overlap, cluster_information, cluster_shares, random_circuits
from .circuits.units.attribution import unit_scores
from .circuits.units.clusters import cluster_ablation
from .circuits.units.curves import faithfulness_curve
from .circuits.units.dependence import ClusterDependence, cluster_dependence
from .circuits.units.faithfulness import FaithfulnessCurve
from .circuits.units.find import find_unit_circuit
from .circuits.units.lesions import ClusterLesions, cluster_lesions
from .circuits.units.unit_circuit import UnitCircuit, load_unit_circuits, save_unit_circuits
from .class_accuracy import class_accuracy, cluster_accuracy
from .energy.functional import block_energy, block_inner, block_scale, clusterability, enmeshment
from .energy.loss import EnmeshmentLoss
from .library import backend
from .metrics import (
    accuracy,
    class_log_likelihood,
    class_log_odds,
    logit_difference,
    next_token_log_likelihood,
)
from .network.ablation import ablate_units
from .network.affinity import gradient_affinity
from .network.description import describe_layers
from .network.following import CannotFollowError
from .network.graph import network_graph, network_nodes, network_partitions
from .network.reading import read_network
from .network.reduction import search_space_reduction
from .network.units import Network, NetworkLayer
from .neurons import LiveUnits, label_semanticity, live_units
from .partition import Partition, load_partitions, save_partitions
from .spectral.clustering import normalized_cut, spectral_cluster, spectral_cocluster
from .spectral.eigengap import Eigengap, eigengap
from .spectral.laplacian import laplacian_eigenvalues
from .spectral.shuffling import ShuffleTest, shuffle_test
from .spectral.solver import ConvergenceWarning
from .version import __version__

if TYPE_CHECKING:
    from . import plot as plot

__all__ = [
    "CannotFollowError",
    "Circuit",
    "ClusterDependence",
    "ClusterLesions",
    "ConvergenceWarning",
    "Eigengap",
    "EnmeshmentLoss",
    "FaithfulnessCurve",
    "LiveUnits",
    "Network",
    "NetworkLayer",
    "Partition",
    "ShuffleTest",
    "UnitCircuit",
    "__version__",
    "ablate_units",
    "accuracy",
    "backend",
    "block_energy",
    "block_inner",
    "block_scale",
    "circuit_overlap",
    "class_accuracy",
    "class_log_likelihood",
    "class_log_odds",
    "cluster_ablation",
    "cluster_accuracy",
    "cluster_dependence",
    "cluster_information",
    "cluster_lesions",
    "cluster_shares",
    "clusterability",
    "describe_layers",
    "eigengap",
    "enmeshment",
    "faithfulness_curve",
    "find_circuit",
    "find_circuits",
    "find_unit_circuit",
    "gradient_affinity",
    "label_semanticity",
    "laplacian_eigenvalues",
    "live_units",
    "load_circuits",
    "load_partitions",
    "load_unit_circuits",
    "logit_difference",
    "network_graph",
    "network_nodes",
    "network_partitions",
    "next_token_log_likelihood",
    "normalized_cut",
    "optim",
    "random_circuits",
    "read_network",
    "save_circuits",
    "save_partitions",
    "save_unit_circuits",
    "search_space_reduction",
    "shuffle_test",
    "spectral_cluster",
    "spectral_cocluster",
    "unit_scores",
]


def __getattr__(name: str) -> Any:
    # matplotlib is optional, and slow to import.
    if name == "plot":
        return importlib.import_module(".plot", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
