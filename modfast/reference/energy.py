"""The specification of the energy family, in plain PyTorch.

Definitions: "Training Neural Networks for Modularity aids Interpretability", arXiv 2409.15747.

Where these functions say float64, they mean float32 on a device that has no float64 (MPS, some XPUs): the
type that :func:`modfast.devices.widest_float` returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modfast.arrays import require_whole
from modfast.devices import widest_float
from modfast.memory import check_writable
from modfast.partition import Partition

# Without float64 no sum adds up many more numbers than this one after the other.
_LONGEST = 64


def labelled_block_inner(
    weight: Tensor, other: Tensor | None, row_labels: Tensor, col_labels: Tensor, num_clusters: int
) -> Tensor:
    """Specifies the operator ``block_inner``: the sums of ``weight * other`` over each block.

    ``other`` has the shape and dtype of ``weight``; None stands for ``weight`` itself.

    Returns:
        Float64, (num_clusters + 1, num_clusters + 1); the last row and column are for label -1.
    """
    wide = widest_float(weight.device)
    product = weight.to(wide) * (weight if other is None else other).to(wide)
    if product.dim() > 2:
        product = product.flatten(2).sum(2)
    rows, cols = (_numbered(labels, num_clusters) for labels in (row_labels, col_labels))
    by_row = _sum_lines(product, 0, rows, num_clusters + 1)
    return _sum_lines(by_row, 1, cols, num_clusters + 1)


def _numbered(labels: Tensor, none: int) -> Tensor:
    """Labels as indices: ``none`` stands for -1."""
    outside = labels < 0
    if labels.device.type != "cpu":
        # A CPU refuses a label that is too large. Elsewhere a check would wait for the device, and without a
        # check it would be an index: it counts as -1, as it does for the kernels for GPUs.
        outside = outside | (labels >= none)
    return torch.where(outside, none, labels)


def _sum_lines(values: Tensor, dim: int, labels: Tensor, count: int) -> Tensor:
    """Sum the rows (``dim`` 0) or columns (1) of a matrix that have the same label, of ``count`` labels."""
    lines, shape = values.shape[dim], list(values.shape)
    if values.dtype == torch.float64 or lines <= _LONGEST:
        shape[dim] = count
        return values.new_zeros(shape).index_add(dim, labels, values)
    # In float32 the error of a long sum shows. Lines are summed in groups, and then the groups' sums, which
    # PyTorch adds up in pairs. A group has so many lines that the sums take no more memory than the lines.
    length = max(_LONGEST, count)
    groups = -(-lines // length)
    places = torch.arange(lines, device=labels.device) // length * count + labels
    shape[dim] = groups * count
    sums: Tensor = values.new_zeros(shape).index_add(dim, places, values).unflatten(dim, (groups, count))
    return sums.sum(dim)


def labelled_block_scale(weight: Tensor, factors: Tensor, row_labels: Tensor, col_labels: Tensor) -> Tensor:
    """Specifies the operator ``block_scale``: each weight times the factor of its block.

    ``factors`` is float64, (num_clusters + 1, num_clusters + 1); the last row and column are for label -1.

    Returns:
        Shape and dtype of ``weight``.
    """
    rows, cols = (_numbered(labels, factors.shape[0] - 1) for labels in (row_labels, col_labels))
    factor = factors[rows[:, None], cols[None, :]]
    factor = factor.reshape(factor.shape + (1,) * (weight.dim() - 2))
    return (weight.to(widest_float(weight.device)) * factor).to(weight.dtype)


def labelled_enmeshment(
    weights: Sequence[Tensor],
    row_labels: Sequence[Tensor],
    col_labels: Sequence[Tensor],
    num_clusters: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Specifies the operator ``enmeshment`` of a model's weights.

    Returns:
        Each weight's enmeshment, float64, (n,); and its energy inside clusters and across them, (n, 2).
    """
    energies = torch.stack(
        [
            split_energies(labelled_block_inner(weight, None, rows, cols, count))
            for weight, rows, cols, count in zip(weights, row_labels, col_labels, num_clusters, strict=True)
        ]
    )
    return enmeshment_of_split(energies), energies


def enmeshment_grad(
    weights: Sequence[Tensor],
    energies: Tensor,
    slopes: Tensor,
    row_labels: Sequence[Tensor],
    col_labels: Sequence[Tensor],
    num_clusters: Sequence[int],
) -> list[Tensor]:
    """Specifies the operator of that name: ``slope * dE/dW`` for each weight, without autograd.

    Args:
        weights: of any supported dtype.
        energies: float64, (n, 2), from :func:`labelled_enmeshment`.
        slopes: float64, (n,).
        row_labels: the labels of each weight's rows.
        col_labels: the labels of each weight's columns.
        num_clusters: each weight's number of clusters.

    Returns:
        The gradients, in the weights' dtypes.
    """
    grads = []
    for weight, energy, slope, rows, cols, count in zip(
        weights, energies, slopes, row_labels, col_labels, num_clusters, strict=True
    ):
        factors = enmeshment_factors(energy, slope, count)
        grads.append(labelled_block_scale(weight, factors, rows, cols))
    return grads


def enmeshment_factors(energy: Tensor, slope: Tensor, num_clusters: int) -> Tensor:
    """Return the factor for each block of a weight: the weight times its factor is ``slope * dE/dW``.

    ``dE/dW[i, j] = 2 W[i, j] (C - [same cluster]) / sum(B)`` (arXiv 2409.15747), where ``C - 1`` is ``-E``.

    Args:
        energy: float64, (2,), inside clusters and across them.
        slope: float64, a scalar.
        num_clusters: k.

    Returns:
        Float64, (k + 1, k + 1), for :func:`labelled_block_scale`.
    """
    inside, across = energy.unbind()
    total = inside + across
    total = torch.where(total == 0, 1.0, total)
    same = _same_cluster(num_clusters, energy) > 0
    # As in the loss, each of the two is NaN if the other energy is infinite.
    E, C = across / total + 0.0 * inside, inside / total + 0.0 * across
    return torch.where(same, -E, C) * (2.0 * slope / total)


def add_enmeshment_grad_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    energies: Tensor,
    slopes: Tensor,
    row_labels: Sequence[Tensor],
    col_labels: Sequence[Tensor],
    num_clusters: Sequence[int],
) -> None:
    """Specifies the operator of that name: :func:`enmeshment_grad`, added to ``grads``.

    Raises:
        RuntimeError: a gradient shares memory with another one or with a weight.
    """
    check_writable(weights, grads, "weight", "gradient")
    wide = [weight.to(widest_float(weight.device)) for weight in weights]
    steps = enmeshment_grad(wide, energies, slopes, row_labels, col_labels, num_clusters)
    for grad, step in zip(grads, steps, strict=True):
        grad.copy_(grad.to(step.dtype) + step)


def accumulate_enmeshment_grad_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    row_labels: Sequence[Tensor],
    col_labels: Sequence[Tensor],
    num_clusters: Sequence[int],
    scale: float,
) -> Tensor:
    """Specifies the operator of that name: ``grad += scale * dE/dW`` for each weight.

    Returns:
        Each weight's enmeshment: float64, (number of weights,).
    """
    losses, energies = labelled_enmeshment(weights, row_labels, col_labels, num_clusters)
    slopes = torch.full_like(losses, scale)
    add_enmeshment_grad_(weights, grads, energies, slopes, row_labels, col_labels, num_clusters)
    return losses


def accumulate_packed_enmeshment_grad_(
    weights: Sequence[Tensor], grads: Sequence[Tensor], labels: Tensor, scale: float, mean: bool
) -> Tensor:
    """Specifies the operator of that name: :func:`accumulate_enmeshment_grad_` with all labels in one tensor.

    Args:
        weights: as there.
        grads: as there.
        labels: int32, 1-D: for each weight the number of clusters, the labels of its rows, those of its
            columns.
        scale: as there.
        mean: whether to return the mean of the enmeshments, not their sum.

    Returns:
        A scalar, float64 if any weight is float64, else float32.
    """
    sizes = [size for weight in weights for size in (1, *weight.shape[:2])]
    parts = labels.to(torch.int64).split(sizes)
    counts = [int(part) for part in parts[::3]]
    losses = accumulate_enmeshment_grad_(weights, grads, parts[1::3], parts[2::3], counts, scale)
    any_double = any(weight.dtype == torch.float64 for weight in weights)
    return (losses.mean() if mean else losses.sum()).to(torch.float64 if any_double else torch.float32)


def _same_cluster(num_clusters: int, like: Tensor) -> Tensor:
    """Return ones on the diagonal but for its last element: two unassigned neurons share no cluster."""
    # Made without writing to it: torch.func.linearize keeps a constant as it was before.
    clusters = torch.ones(num_clusters, dtype=widest_float(like.device), device=like.device)
    return torch.diag(torch.nn.functional.pad(clusters, (0, 1)))


def split_energies(blocks: Tensor) -> Tensor:
    """Sum block energies inside clusters and across them.

    The energy across clusters is a sum of blocks, as a difference from the total would lose the digits of a
    small E.

    Args:
        blocks: float64, (..., num_clusters + 1, num_clusters + 1), from :func:`labelled_block_inner`.

    Returns:
        Float64, (..., 2).
    """
    same = _same_cluster(blocks.shape[-1] - 1, blocks)
    return torch.stack([(blocks * same).sum((-2, -1)), (blocks * (1.0 - same)).sum((-2, -1))], dim=-1)


def enmeshment_of_split(energies: Tensor) -> Tensor:
    """Return the enmeshment of energies inside clusters and across them: the energy across over the total.

    If all energies are 0, so are E and all of its derivatives. Infinity or NaN in either energy gives NaN.

    Args:
        energies: (..., 2), as from :func:`split_energies`.

    Returns:
        (...).
    """
    inside, across = energies.unbind(-1)
    total = inside + across
    nothing = total == 0
    # Without any energy across / 1.0 is 0 as well, but its second derivative by the weights is not: hence the
    # outer where.
    share = torch.where(nothing, 0.0, across / torch.where(nothing, 1.0, total))
    # Infinity times zero is NaN, so that an infinite weight inside a cluster is not hidden.
    return share + 0.0 * inside


def enmeshment_of_energies(blocks: Tensor) -> Tensor:
    """Return the enmeshment of block energies, float64, (..., num_clusters + 1, num_clusters + 1)."""
    return enmeshment_of_split(split_energies(blocks))


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def block_inner(weight: Tensor, other: Tensor, partition: Partition) -> Tensor:
    """Return the sums of ``weight * other`` over each block: (k, k). See :func:`modfast.block_inner`."""
    require_whole("weight", weight)
    k = partition.num_clusters
    sums = labelled_block_inner(weight, other, partition.row_labels, partition.col_labels, k)
    return sums[:k, :k].to(_sum_dtype(weight))


def block_scale(weight: Tensor, factors: Tensor, partition: Partition) -> Tensor:
    """Return each weight times its block's factor, 0 outside all blocks. See :func:`modfast.block_scale`."""
    require_whole("weight", weight)
    padded = torch.nn.functional.pad(factors.to(widest_float(factors.device)), (0, 1, 0, 1))
    return labelled_block_scale(weight, padded, partition.row_labels, partition.col_labels)


def block_energy(weight: Tensor, partition: Partition) -> Tensor:
    """Return the squared weight of each block: (k, k). See :func:`modfast.block_energy`."""
    require_whole("weight", weight)
    k = partition.num_clusters
    energies = labelled_block_inner(weight, None, partition.row_labels, partition.col_labels, k)
    return energies[:k, :k].to(_sum_dtype(weight))


def enmeshment(weight: Tensor, partition: Partition) -> Tensor:
    """Return the share of squared weight that crosses clusters. See :func:`modfast.enmeshment`."""
    require_whole("weight", weight)
    rows, cols = partition.row_labels, partition.col_labels
    energies = labelled_block_inner(weight, None, rows, cols, partition.num_clusters)
    return enmeshment_of_energies(energies).to(_sum_dtype(weight))


def clusterability(weight: Tensor, partition: Partition) -> Tensor:
    """Return the share of squared weight inside clusters. See :func:`modfast.clusterability`."""
    require_whole("weight", weight)
    rows, cols = partition.row_labels, partition.col_labels
    energies = labelled_block_inner(weight, None, rows, cols, partition.num_clusters)
    return (1.0 - enmeshment_of_energies(energies)).to(_sum_dtype(weight))
