"""Block energy, clusterability and enmeshment of one weight.

They have derivatives of every order in reverse and in forward mode. In forward mode (``torch.func.jvp``,
``jacfwd``, ``hessian``, dual numbers), and in a transform of ``torch.func`` that ``torch.compile`` traces,
they run in plain PyTorch: with the same results, more slowly, and with float64 copies of the weight. For a
Hessian-vector product of a large weight, reverse mode twice is faster.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from modfast.arrays import is_sharded, require_plain
from modfast.devices import widest_float
from modfast.partition import Partition
from modfast.shapes import FLOATS

from . import sharded
from .operators import enmeshments, inner_blocks, scale_blocks


def check_weight(weight: object, partition: object, name: str = "weight") -> None:
    """Raises unless ``weight`` is a dense floating tensor that ``partition`` fits."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(weight).__name__}")
    if not isinstance(partition, Partition):
        raise TypeError(f"partition must be a modfast.Partition, got {type(partition).__name__}")
    if weight.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {weight.dtype}")
    if weight.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {weight.layout}")
    if not is_sharded(weight):
        require_plain(name, weight)
    if weight.dim() < 2 or weight.shape[:2] != partition.shape:
        raise ValueError(
            f"{name} must have shape (out, in, *kernel) with (out, in) = {partition.shape} as its partition, "
            f"got {tuple(weight.shape)}"
        )


def _inner_blocks(weight: Tensor, other: Tensor | None, partition: Partition) -> Tensor:
    """Sums by block over all processes that share a weight; the last row and column are for no cluster."""
    k = partition.num_clusters
    sums: Tensor
    if is_sharded(weight):
        rows, cols, group = sharded.piece_of(weight, partition)
        other = None if other is None else sharded.local(other)
        sums = inner_blocks(sharded.local(weight), other, rows, cols, k)
        return sharded.sum_over(sums, group)
    placed = partition.to(weight.device)
    sums = inner_blocks(weight, other, placed.row_labels, placed.col_labels, k)
    return sums


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def block_inner(weight: Tensor, other: Tensor, partition: Partition) -> Tensor:
    """Return the sums of ``weight * other`` over each pair of clusters.

    Args:
        weight: dense float32, float64, float16 or bfloat16, ``(out, in, *kernel)``, in any memory layout.
        other: a tensor of the same shape, dtype and device as ``weight``.
        partition: fits ``(out, in)``.

    Returns:
        ``S[a, b]``, the sum over rows of cluster ``a`` and columns of cluster ``b``: ``(k, k)``, float64 for
        float64 operands and float32 otherwise. Unassigned rows and columns are left out. Differentiable
        any number of times.

    Raises:
        TypeError: an operand is no tensor or of another dtype.
        ValueError: a shape does not fit.

    Example:
        >>> partition = Partition([0, 1], [0, 1], 2)
        >>> block_inner(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2), partition)
        tensor([[1., 2.],
                [3., 4.]])
    """
    check_weight(weight, partition)
    check_weight(other, partition, "other")
    if (other.shape, other.dtype, other.device) != (weight.shape, weight.dtype, weight.device):
        raise ValueError(
            f"other must match weight ({tuple(weight.shape)}, {weight.dtype}, {weight.device}), "
            f"got ({tuple(other.shape)}, {other.dtype}, {other.device})"
        )
    if getattr(other, "placements", None) != getattr(weight, "placements", None):
        raise ValueError("other must be spread over processes as weight is")
    k = partition.num_clusters
    return _inner_blocks(weight, other, partition)[:k, :k].to(_sum_dtype(weight))


def block_scale(weight: Tensor, factors: Tensor, partition: Partition) -> Tensor:
    """Multiply each weight by the factor of its block.

    Args:
        weight: as for :func:`block_inner`.
        factors: ``(k, k)``, on the weight's device; any floating dtype.
        partition: fits ``(out, in)``.

    Returns:
        ``weight[i, j] * factors[cluster of i, cluster of j]``, 0 where either is unassigned; shape and
        dtype of ``weight``. Differentiable any number of times.

    Raises:
        TypeError: an operand is no tensor or of another dtype.
        ValueError: a shape does not fit.

    Example:
        >>> partition = Partition([0, 1], [0, 1], 2)
        >>> block_scale(torch.ones(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), partition)
        tensor([[1., 2.],
                [3., 4.]])
    """
    check_weight(weight, partition)
    k = partition.num_clusters
    if not isinstance(factors, Tensor):
        raise TypeError(f"factors must be a torch.Tensor, got {type(factors).__name__}")
    require_plain("factors", factors)
    if not factors.is_floating_point():
        raise TypeError(f"factors must be floating, got {factors.dtype}")
    if factors.shape != (k, k) or factors.device != weight.device:
        raise ValueError(
            f"factors must have shape ({k}, {k}) on {weight.device}, "
            f"got {tuple(factors.shape)} on {factors.device}"
        )
    padded = pad(factors.to(widest_float(factors.device)), (0, 1, 0, 1))
    scaled: Tensor
    if is_sharded(weight):
        rows, cols, group = sharded.piece_of(weight, partition)
        scaled = scale_blocks(sharded.local(weight), sharded.spread_over(padded, group), rows, cols)
        return sharded.like(scaled, weight)
    placed = partition.to(weight.device)
    scaled = scale_blocks(weight, padded, placed.row_labels, placed.col_labels)
    return scaled


def block_energy(weight: Tensor, partition: Partition) -> Tensor:
    """Squared weight of each block, ``B[a, b]`` = sum of ``W[i, j]^2`` over rows of a and columns of b.

    Args:
        weight: dense float32, float64, float16 or bfloat16, ``(out, in, *kernel)``, in any memory layout;
            a kernel's positions share their channel's cluster.
        partition: fits ``(out, in)``.

    Returns:
        ``(k, k)``, float64 for a float64 weight and float32 otherwise (summed in float64, where the device
        has that); unassigned rows and columns are left out. Differentiable any number of times.

    Raises:
        TypeError: ``weight`` is no tensor or of another dtype.
        ValueError: its shape does not fit the partition.

    Source: arXiv 2409.15747, section 2.

    Example:
        >>> block_energy(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Partition([0, 1], [0, 1], 2))
        tensor([[ 1.,  4.],
                [ 9., 16.]])
    """
    check_weight(weight, partition)
    k = partition.num_clusters
    return _inner_blocks(weight, None, partition)[:k, :k].to(_sum_dtype(weight))


def enmeshment(weight: Tensor, partition: Partition) -> Tensor:
    """The share of squared weight that crosses clusters: ``E = 1 - trace(B) / sum(B)``, in [0, 1].

    The denominator counts every weight; a weight of an unassigned row or column always crosses.
    Scaling the weight changes nothing. An all-zero weight has E 0 and derivatives 0; NaN or infinity in the
    weight gives NaN.

    Args:
        weight: as for :func:`block_energy`.
        partition: fits ``(out, in)``.

    Returns:
        A scalar, float64 for a float64 weight and float32 otherwise. Differentiable any number of times.

    Raises:
        TypeError: ``weight`` is no tensor or of another dtype.
        ValueError: its shape does not fit the partition.

    Source: arXiv 2409.15747 (there ``-C`` is minimised: the same gradient).

    Example:
        >>> enmeshment(torch.tensor([[3.0, 1.0], [1.0, 3.0]]), Partition([0, 1], [0, 1], 2))
        tensor(0.1000)
    """
    return _enmeshment(weight, partition).to(_sum_dtype(weight))


def _enmeshment(weight: Tensor, partition: Partition) -> Tensor:
    check_weight(weight, partition)
    if is_sharded(weight):
        rows, cols, group = sharded.piece_of(weight, partition)
        return enmeshments([sharded.local(weight)], [rows], [cols], [partition.num_clusters], (group,))[0]
    placed = partition.to(weight.device)
    return enmeshments([weight], [placed.row_labels], [placed.col_labels], [placed.num_clusters])[0]


def clusterability(weight: Tensor, partition: Partition) -> Tensor:
    """The share of squared weight inside clusters: ``C = trace(B) / sum(B) = 1 - E``, in [0, 1].

    About ``1 / k`` for k equal clusters in a matrix without structure. Arguments, result, errors and
    source as for :func:`enmeshment`; an all-zero weight has C 1.

    Example:
        >>> clusterability(torch.ones(4, 4), Partition.blocks((4, 4), 2))
        tensor(0.5000)
    """
    return (1.0 - _enmeshment(weight, partition)).to(_sum_dtype(weight))
