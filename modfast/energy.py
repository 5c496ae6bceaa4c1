"""Block energy, clusterability and enmeshment: the compiled operators, their derivatives, and the functions.

Two operators carry everything, and the derivatives of each are the other: ``block_inner(W, V)`` sums
``W * V`` over each pair of clusters, ``block_scale(W, G)`` multiplies each weight by its block's number.
Labels of -1 stand for one more cluster, whose row and column come last in the operators' matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import reference
from .library import BACKEND
from .partition import Partition

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# The operators are registered with fake kernels, derivatives and batching rules below, for whoever calls
# torch.ops.modfast. The functions here reach them through autograd.Function, with the same formulas,
# because torch.func's transforms do not see through torch.library.register_autograd.

# --- block_inner(weight, other, row_labels, col_labels, num_clusters) -> float64 (k + 1, k + 1)
# Without other it is the weight itself, the block energies: one tensor to read and one derivative.


@torch.library.register_fake("modfast::block_inner")
def _block_inner_fake(
    weight: Tensor, other: Tensor | None, row_labels: Tensor, col_labels: Tensor, num_clusters: int
) -> Tensor:
    return weight.new_empty((num_clusters + 1, num_clusters + 1), dtype=torch.float64)


def _block_inner_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _block_inner_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, other, row_labels, col_labels = ctx.saved_tensors
    if other is None:
        return scale_blocks(weight, 2.0 * grad, row_labels, col_labels), None, None, None, None
    to_weight = scale_blocks(other, grad, row_labels, col_labels) if ctx.needs_input_grad[0] else None
    to_other = scale_blocks(weight, grad, row_labels, col_labels) if ctx.needs_input_grad[1] else None
    return to_weight, to_other, None, None, None


class _BlockInner(torch.autograd.Function):
    generate_vmap_rule = True
    setup_context = staticmethod(_block_inner_setup)
    backward = staticmethod(_block_inner_backward)

    @staticmethod
    def forward(
        weight: Tensor, other: Tensor | None, rows: Tensor, cols: Tensor, num_clusters: int
    ) -> Tensor:
        sums: Tensor = torch.ops.modfast.block_inner(weight, other, rows, cols, num_clusters)
        return sums


# --- block_scale(weight, factors, row_labels, col_labels) -> like weight; factors: float64 (k + 1, k + 1)


@torch.library.register_fake("modfast::block_scale")
def _block_scale_fake(weight: Tensor, factors: Tensor, row_labels: Tensor, col_labels: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _block_scale_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _block_scale_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, factors, row_labels, col_labels = ctx.saved_tensors
    to_weight = scale_blocks(grad, factors, row_labels, col_labels) if ctx.needs_input_grad[0] else None
    to_factors = None
    if ctx.needs_input_grad[1]:
        to_factors = inner_blocks(grad, weight, row_labels, col_labels, factors.shape[0] - 1)
    return to_weight, to_factors, None, None


class _BlockScale(torch.autograd.Function):
    generate_vmap_rule = True
    setup_context = staticmethod(_block_scale_setup)
    backward = staticmethod(_block_scale_backward)

    @staticmethod
    def forward(weight: Tensor, factors: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        scaled: Tensor = torch.ops.modfast.block_scale(weight, factors, rows, cols)
        return scaled


# --- accumulate_enmeshment_grad_(weights, grads!, row_labels, col_labels, num_clusters, scale): float64 (n,)


@torch.library.register_fake("modfast::accumulate_enmeshment_grad_")
def _accumulate_fake(
    weights: list[Tensor],
    grads: list[Tensor],
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
    scale: float,
) -> Tensor:
    return weights[0].new_empty((len(weights),), dtype=torch.float64)


def _one_by_one(op: Any) -> Any:
    """The batching rule: one call for each element of the batch, as each is a pass over its own memory."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        results = [
            op(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(results), 0

    return rule


for _name, _setup, _backward in (
    ("block_inner", _block_inner_setup, _block_inner_backward),
    ("block_scale", _block_scale_setup, _block_scale_backward),
):
    torch.library.register_autograd(f"modfast::{_name}", _backward, setup_context=_setup)
    torch.library.register_vmap(f"modfast::{_name}", _one_by_one(getattr(torch.ops.modfast, _name)))

if BACKEND == "reference":
    inner_blocks: Any = reference.labelled_block_inner
    scale_blocks: Any = reference.labelled_block_scale
    accumulate_enmeshment_grad_: Any = reference.accumulate_enmeshment_grad_
else:
    inner_blocks = _BlockInner.apply
    scale_blocks = _BlockScale.apply
    accumulate_enmeshment_grad_ = torch.ops.modfast.accumulate_enmeshment_grad_.default


def check_weight(weight: object, partition: object, name: str = "weight") -> None:
    """Raises unless ``weight`` is a dense floating tensor that ``partition`` fits."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(weight).__name__}")
    if not isinstance(partition, Partition):
        raise TypeError(f"partition must be a modfast.Partition, got {type(partition).__name__}")
    if weight.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {weight.dtype}")
    if weight.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {weight.layout}")
    if weight.dim() < 2 or weight.shape[:2] != partition.shape:
        raise ValueError(
            f"{name} must have shape (out, in, *kernel) with (out, in) = {partition.shape} as its partition, "
            f"got {tuple(weight.shape)}"
        )


def energies_with_unassigned(weight: Tensor, partition: Partition) -> Tensor:
    """Block energies with a last row and column for "in no cluster", after the checks."""
    check_weight(weight, partition)
    placed = partition.to(weight.device)
    energies: Tensor = inner_blocks(weight, None, placed.row_labels, placed.col_labels, placed.num_clusters)
    return energies


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def block_inner(weight: Tensor, other: Tensor, partition: Partition) -> Tensor:
    """Sums of ``weight * other`` over each pair of clusters.

    Args:
        weight: dense float32, float64, float16 or bfloat16, ``(out, in, *kernel)``, in any memory layout.
        other: shape, dtype and device of ``weight``.
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
    placed, k = partition.to(weight.device), partition.num_clusters
    sums: Tensor = inner_blocks(weight, other, placed.row_labels, placed.col_labels, k)
    return sums[:k, :k].to(_sum_dtype(weight))


def block_scale(weight: Tensor, factors: Tensor, partition: Partition) -> Tensor:
    """Each weight times the factor of its block.

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
    if not factors.is_floating_point():
        raise TypeError(f"factors must be floating, got {factors.dtype}")
    if factors.shape != (k, k) or factors.device != weight.device:
        raise ValueError(
            f"factors must have shape ({k}, {k}) on {weight.device}, "
            f"got {tuple(factors.shape)} on {factors.device}"
        )
    placed = partition.to(weight.device)
    scaled: Tensor = scale_blocks(
        weight, pad(factors.to(torch.float64), (0, 1, 0, 1)), placed.row_labels, placed.col_labels
    )
    return scaled


def block_energy(weight: Tensor, partition: Partition) -> Tensor:
    """Squared weight of each block, ``B[a, b]`` = sum of ``W[i, j]^2`` over rows of a and columns of b.

    Args:
        weight: dense float32, float64, float16 or bfloat16, ``(out, in, *kernel)``, in any memory layout;
            a kernel's positions share their channel's cluster.
        partition: fits ``(out, in)``.

    Returns:
        ``(k, k)``, float64 for a float64 weight and float32 otherwise (summed in float64 in any case);
        unassigned rows and columns are left out. Differentiable any number of times.

    Raises:
        TypeError: ``weight`` is no tensor or of another dtype.
        ValueError: its shape does not fit the partition.

    Source: arXiv 2409.15747, section 2.

    Example:
        >>> block_energy(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Partition([0, 1], [0, 1], 2))
        tensor([[ 1.,  4.],
                [ 9., 16.]])
    """
    k = partition.num_clusters if isinstance(partition, Partition) else 0
    return energies_with_unassigned(weight, partition)[:k, :k].to(_sum_dtype(weight))


def enmeshment(weight: Tensor, partition: Partition) -> Tensor:
    """The share of squared weight that crosses clusters: ``E = 1 - trace(B) / sum(B)``, in [0, 1].

    The denominator counts every weight; a weight of an unassigned row or column always crosses.
    Scaling the weight changes nothing. An all-zero weight has E 0 and gradient 0; NaN or infinity in the
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
    return reference.enmeshment_of_energies(energies_with_unassigned(weight, partition)).to(
        _sum_dtype(weight)
    )


def clusterability(weight: Tensor, partition: Partition) -> Tensor:
    """The share of squared weight inside clusters: ``C = trace(B) / sum(B) = 1 - E``, in [0, 1].

    About ``1 / k`` for k equal clusters in a matrix without structure. Arguments, result, errors and
    source as for :func:`enmeshment`; an all-zero weight has C 1.

    Example:
        >>> clusterability(torch.ones(4, 4), Partition.blocks((4, 4), 2))
        tensor(0.5000)
    """
    return (1.0 - reference.enmeshment_of_energies(energies_with_unassigned(weight, partition))).to(
        _sum_dtype(weight)
    )
