"""modfast: train neural networks that fall apart into modules, find the modules, study their circuits."""

from __future__ import annotations

import importlib
import importlib.util
from threading import RLock
from typing import TYPE_CHECKING, Any

from .requirements import check_requirements
from .version import __version__

if TYPE_CHECKING:
    from . import compat as compat
    from . import estimators as estimators
    from . import integrations as integrations
    from . import optim as optim
    from . import plot as plot
    from . import reference as reference
    from . import tasks as tasks
    from .accuracies import class_accuracy, cluster_accuracy
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

# Which module each name comes from. It is imported when the name is first used, since that imports PyTorch.
_HOMES = {
    "accuracies": "class_accuracy cluster_accuracy",
    "circuit": "Circuit load_circuits save_circuits",
    "circuits.find": "find_circuit find_circuits",
    "circuits.measures": "circuit_overlap cluster_information cluster_shares random_circuits",
    "circuits.units.attribution": "unit_scores",
    "circuits.units.clusters": "cluster_ablation",
    "circuits.units.curves": "faithfulness_curve",
    "circuits.units.dependence": "ClusterDependence cluster_dependence",
    "circuits.units.faithfulness": "FaithfulnessCurve",
    "circuits.units.find": "find_unit_circuit",
    "circuits.units.lesions": "ClusterLesions cluster_lesions",
    "circuits.units.unit_circuit": "UnitCircuit load_unit_circuits save_unit_circuits",
    "energy.functional": "block_energy block_inner block_scale clusterability enmeshment",
    "energy.loss": "EnmeshmentLoss",
    "library": "backend",
    "metrics": "accuracy class_log_likelihood class_log_odds logit_difference next_token_log_likelihood",
    "network.ablation": "ablate_units",
    "network.affinity": "gradient_affinity",
    "network.description": "describe_layers",
    "network.following": "CannotFollowError",
    "network.graph": "network_graph network_nodes network_partitions",
    "network.reading": "read_network",
    "network.reduction": "search_space_reduction",
    "network.units": "Network NetworkLayer",
    "neurons": "LiveUnits label_semanticity live_units",
    "partition": "Partition load_partitions save_partitions",
    "spectral.clustering": "normalized_cut spectral_cluster spectral_cocluster",
    "spectral.eigengap": "Eigengap eigengap",
    "spectral.laplacian": "laplacian_eigenvalues",
    "spectral.shuffling": "ShuffleTest shuffle_test",
    "spectral.solver": "ConvergenceWarning",
}
# Modules for users, which are reached as attributes too.
_MODULES = ("compat", "estimators", "integrations", "optim", "plot", "reference", "tasks")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

check_requirements()


# Threads that first use names at once take turns: where two import a package and a module in it, Python gives
# one of them a module that is half imported. Our modules import each other without asking the package for a
# name (a test watches that), so no thread waits for the lock while another one waits for its import.
_lock = RLock()


if not TYPE_CHECKING:  # else type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is asked for: a public name, or a module of the package."""
        if name.startswith("_") or not name.isidentifier():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _lock:
            if name in _HOME_OF:
                value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
            elif importlib.util.find_spec(f"{__name__}.{name}"):
                value = importlib.import_module(f"{__name__}.{name}")
            else:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            globals()[name] = value
            return value


def __dir__() -> list[str]:
    """Return the public names and modules, whether or not they are imported yet."""
    return sorted({*globals(), *__all__, *_MODULES})
