"""The enmeshment loss: the share of squared weight that crosses the borders of clusters, and its gradient."""

from .functional import block_energy, block_inner, block_scale, check_weight, clusterability, enmeshment
from .loss import EnmeshmentLoss

__all__ = [
    "EnmeshmentLoss",
    "block_energy",
    "block_inner",
    "block_scale",
    "check_weight",
    "clusterability",
    "enmeshment",
]
