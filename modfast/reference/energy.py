"""The specification of the energy family, in plain PyTorch.

Definitions: "Training Neural Networks for Modularity aids Interpretability", arXiv 2409.15747.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..partition import Partition


def labelled_block_inner(
    weight: Tensor, other: Tensor | None, row_labels: Tensor, col_labels: Tensor, num_clusters: int
) -> Tensor:
    """Specifies the operator ``block_inner``: the sums of ``weight * other`` over each block.

    ``other`` has the shape and dtype of ``weight``; None stands for ``weight`` itself.

    Returns:
        Float64, (num_clusters + 1, num_clusters + 1); the last row and column are for label -1.
    """
    product = weight.to(torch.float64) * (weight if other is None else other).to(torch.float64)
    if product.dim() > 2:
        product = product.flatten(2).sum(2)
    count = num_clusters + 1
    rows = torch.where(row_labels < 0, num_clusters, row_labels)
    cols = torch.where(col_labels < 0, num_clusters, col_labels)
    by_row = product.new_zeros(count, product.shape[1]).index_add(0, rows, product)
    return product.new_zeros(count, count).index_add(1, cols, by_row)


def labelled_block_scale(weight: Tensor, factors: Tensor, row_labels: Tensor, col_labels: Tensor) -> Tensor:
    """Specifies the operator ``block_scale``: each weight times the factor of its block.

    ``factors`` is float64, (num_clusters + 1, num_clusters + 1); the last row and column are for label -1.

    Returns:
        Shape and dtype of ``weight``.
    """
    unassigned = factors.shape[0] - 1
    rows = torch.where(row_labels < 0, unassigned, row_labels)
    cols = torch.where(col_labels < 0, unassigned, col_labels)
    factor = factors[rows[:, None], cols[None, :]]
    factor = factor.reshape(factor.shape + (1,) * (weight.dim() - 2))
    return (weight.to(torch.float64) * factor).to(weight.dtype)


def accumulate_enmeshment_grad_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    row_labels: Sequence[Tensor],
    col_labels: Sequence[Tensor],
    num_clusters: Sequence[int],
    scale: float,
) -> Tensor:
    """Specifies the operator of that name: ``grad += scale * dE/dW`` for each weight.

    Uses ``dE/dW[i, j] = 2 W[i, j] (C - [same cluster]) / sum(B)`` (arXiv 2409.15747), not autograd.

    Returns:
        Each weight's enmeshment: float64, (number of weights,).
    """
    losses = []
    for weight, grad, rows, cols, count in zip(
        weights, grads, row_labels, col_labels, num_clusters, strict=True
    ):
        energies = labelled_block_inner(weight, None, rows, cols, count)
        loss = enmeshment_of_energies(energies)
        total = energies.sum()
        factors = ((1.0 - loss) - _same_cluster(energies)) * 2.0 / torch.where(total == 0, 1.0, total)
        scaled = labelled_block_scale(weight.to(torch.float64), scale * factors, rows, cols)
        grad.copy_(grad.to(torch.float64) + scaled)
        losses.append(loss)
    return torch.stack(losses)


def _same_cluster(energies: Tensor) -> Tensor:
    """One on the diagonal but for its last element: two unassigned neurons share no cluster."""
    same = torch.ones(energies.shape[-1], dtype=energies.dtype, device=energies.device)
    same[-1] = 0.0
    return torch.diag(same)


def enmeshment_of_energies(energies: Tensor) -> Tensor:
    """Enmeshment as a function of block energies: crossing energy over all energy.

    The crossing blocks are summed, rather than taken as 1 - C, which would lose the digits of a small E.
    Without any energy E is 0 and so is its gradient. Infinity or NaN in any block gives NaN.

    Args:
        energies: float64, (..., num_clusters + 1, num_clusters + 1), from :func:`labelled_block_inner`.

    Returns:
        Float64, (...).
    """
    total = energies.sum((-2, -1))
    crossing = (energies * (1.0 - _same_cluster(energies))).sum((-2, -1))
    return crossing / torch.where(total == 0, 1.0, total)


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def block_inner(weight: Tensor, other: Tensor, partition: Partition) -> Tensor:
    """Sums of ``weight * other`` over each pair of clusters: (k, k). See :func:`modfast.block_inner`."""
    k = partition.num_clusters
    sums = labelled_block_inner(weight, other, partition.row_labels, partition.col_labels, k)
    return sums[:k, :k].to(_sum_dtype(weight))


def block_scale(weight: Tensor, factors: Tensor, partition: Partition) -> Tensor:
    """Each weight times the factor of its block, 0 outside all. See :func:`modfast.block_scale`."""
    padded = torch.nn.functional.pad(factors.to(torch.float64), (0, 1, 0, 1))
    return labelled_block_scale(weight, padded, partition.row_labels, partition.col_labels)


def block_energy(weight: Tensor, partition: Partition) -> Tensor:
    """Squared weight of each block: (k, k). See :func:`modfast.block_energy`."""
    k = partition.num_clusters
    energies = labelled_block_inner(weight, None, partition.row_labels, partition.col_labels, k)
    return energies[:k, :k].to(_sum_dtype(weight))


def enmeshment(weight: Tensor, partition: Partition) -> Tensor:
    """The share of squared weight that crosses clusters. See :func:`modfast.enmeshment`."""
    rows, cols = partition.row_labels, partition.col_labels
    energies = labelled_block_inner(weight, None, rows, cols, partition.num_clusters)
    return enmeshment_of_energies(energies).to(_sum_dtype(weight))


def clusterability(weight: Tensor, partition: Partition) -> Tensor:
    """The share of squared weight inside clusters. See :func:`modfast.clusterability`."""
    rows, cols = partition.row_labels, partition.col_labels
    energies = labelled_block_inner(weight, None, rows, cols, partition.num_clusters)
    return (1.0 - enmeshment_of_energies(energies)).to(_sum_dtype(weight))
