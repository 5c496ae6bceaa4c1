"""modfast: train neural networks that fall apart into modules, find the modules, study their circuits."""

from .circuits import class_accuracy, cluster_accuracy
from .energy import block_energy, block_inner, block_scale, clusterability, enmeshment
from .energy_loss import EnmeshmentLoss
from .library import backend
from .partition import Partition, load_partitions, save_partitions
from .spectral import normalized_cut, spectral_cluster, spectral_cocluster
from .version import __version__

__all__ = [
    "EnmeshmentLoss",
    "Partition",
    "__version__",
    "backend",
    "block_energy",
    "block_inner",
    "block_scale",
    "class_accuracy",
    "cluster_accuracy",
    "clusterability",
    "enmeshment",
    "load_partitions",
    "normalized_cut",
    "save_partitions",
    "spectral_cluster",
    "spectral_cocluster",
]
