"""The specification: every compiled operation in plain PyTorch, slow but easy to check.

Tests compare the compiled code with these functions, run in float64; nothing here calls compiled code of
modfast. ``MODFAST_BACKEND=reference`` runs the whole library on them.
"""

from .circuits import find_circuit
from .energy import (
    accumulate_enmeshment_grad_,
    accumulate_packed_enmeshment_grad_,
    add_enmeshment_grad_,
    block_energy,
    block_inner,
    block_scale,
    clusterability,
    enmeshment,
    enmeshment_factors,
    enmeshment_grad,
    enmeshment_of_energies,
    enmeshment_of_split,
    labelled_block_inner,
    labelled_block_scale,
    labelled_enmeshment,
    split_energies,
)
from .laplacian import laplacian_eigenvalues
from .optim import adamw_, labelled_energies
from .spectral import normalized_cut, spectral_cluster, spectral_cocluster

__all__ = [
    "accumulate_enmeshment_grad_",
    "accumulate_packed_enmeshment_grad_",
    "adamw_",
    "add_enmeshment_grad_",
    "block_energy",
    "block_inner",
    "block_scale",
    "clusterability",
    "enmeshment",
    "enmeshment_factors",
    "enmeshment_grad",
    "enmeshment_of_energies",
    "enmeshment_of_split",
    "find_circuit",
    "labelled_block_inner",
    "labelled_block_scale",
    "labelled_energies",
    "labelled_enmeshment",
    "laplacian_eigenvalues",
    "normalized_cut",
    "spectral_cluster",
    "spectral_cocluster",
    "split_energies",
]
