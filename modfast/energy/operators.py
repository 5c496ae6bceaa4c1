"""The compiled operators for energies, with what PyTorch needs for them: shapes, derivatives, batching.

Two operators compute with block energies, and each gives the derivatives of the other: ``block_inner(W, V)``
sums ``W * V`` over each pair of clusters, ``block_scale(W, G)`` multiplies each weight by its block's factor.
Labels of -1 stand for one more cluster, whose row and column come last in the operators' matrices. Where
float64 is said, it is float32 on a device that has no float64.

The other operators compute the loss of a whole model in one pass over all of its weights: ``enmeshment``, its
gradient as new tensors (``enmeshment_grad``) or added to existing ones (``add_enmeshment_grad_``), and loss
and gradient at once (``accumulate_enmeshment_grad_``; ``accumulate_packed_enmeshment_grad_`` takes all labels
in one int32 tensor, for each weight its number of clusters, its rows' labels and its columns', and returns
the sum or the mean of the losses: this is faster to call).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

import modfast.reference as reference
from modfast.derivatives import compiles_a_transform, in_forward_mode, one_by_one
from modfast.devices import widest_float
from modfast.library import BACKEND, HAS_OPERATORS, fake_kernel
from modfast.shapes import FLOATS, check_shaped, require
from modfast.without_kernels import Formula, register_formulas

from .sharded import ALONE, Group, spread_over, sum_all_over, sum_over

# The operators for one weight are registered with fake kernels, derivatives and batching rules below, for
# whoever calls torch.ops.modfast. The package reaches them through autograd.Function, with the same formulas,
# because torch.func's transforms do not see through torch.library.register_autograd.
#
# Where PyTorch does not use the derivative of an autograd.Function, the specification runs in its place: in
# forward mode, where defining a jvp would not help (PyTorch silently takes the derivative of a jvp for 0, and
# torch.compile breaks at one), and in a transform that torch.compile traces.


def _check_matrix(weight: Tensor) -> None:
    """Check a weight, as all fake kernels do."""
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise RuntimeError(f"modfast: weight must have shape (out, in, *kernel), got {got}")
    check_shaped("weight", weight, FLOATS, weight.shape)


def _wide(tensor: Tensor | None) -> torch.dtype:
    """The type of sums on the device of a tensor, for which an operator may get None."""
    return widest_float(tensor.device) if isinstance(tensor, Tensor) else torch.float64


def _check_labelled(weight: Tensor, row_labels: Tensor, col_labels: Tensor, num_clusters: int) -> None:
    """Check a weight and its labels, as all fake kernels do."""
    _check_matrix(weight)
    check_shaped("row_labels", row_labels, torch.int64, (weight.shape[0],))
    check_shaped("col_labels", col_labels, torch.int64, (weight.shape[1],))
    require(
        1 <= num_clusters < 2**31 - 1, f"num_clusters must be a positive 32-bit number, got {num_clusters}"
    )


def _check_all_labelled(
    weights: list[Tensor],
    grads: list[Tensor] | None,
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
) -> None:
    require(len(weights) > 0, "weights must hold at least one tensor")
    lengths = {len(weights), len(row_labels), len(col_labels), len(num_clusters)}
    lengths |= set() if grads is None else {len(grads)}
    require(len(lengths) == 1, "weights, grads, row_labels, col_labels and num_clusters must have one length")
    for weight, rows, cols, count in zip(weights, row_labels, col_labels, num_clusters, strict=True):
        _check_labelled(weight, rows, cols, count)
    for weight, grad in zip(weights, grads, strict=True) if grads is not None else ():
        check_shaped("grads", grad, weight.dtype, weight.shape)


# --- block_inner(weight, other, row_labels, col_labels, num_clusters) -> float64 (k + 1, k + 1)
# Without other the weight takes its place (block energies): one tensor to read and one derivative.


@fake_kernel("block_inner")
def _block_inner_fake(
    weight: Tensor, other: Tensor | None, row_labels: Tensor, col_labels: Tensor, num_clusters: int
) -> Tensor:
    _check_labelled(weight, row_labels, col_labels, num_clusters)
    if other is not None:
        check_shaped("other", other, weight.dtype, weight.shape)
    return weight.new_empty((num_clusters + 1, num_clusters + 1), dtype=widest_float(weight.device))


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


@fake_kernel("block_scale")
def _block_scale_fake(weight: Tensor, factors: Tensor, row_labels: Tensor, col_labels: Tensor) -> Tensor:
    check_shaped("factors", factors, _wide(weight), (None, None))
    require(
        factors.shape[0] == factors.shape[1] >= 2,
        f"factors must be square, with a row for each cluster and one more, got {tuple(factors.shape)}",
    )
    _check_labelled(weight, row_labels, col_labels, 1)
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


# --- The operators of a whole model, on lists of weights (n) and of their labels.
# energies: float64 (n, 2), inside clusters and across them; losses, slopes (dL/dE of each): float64 (n,).


def _check_energies(energies: Tensor, slopes: Tensor, count: int) -> None:
    wide = _wide(energies)
    check_shaped("energies", energies, wide, (count, 2))
    check_shaped("slopes", slopes, wide, (count,))


@fake_kernel("enmeshment")
def _enmeshment_fake(
    weights: list[Tensor], row_labels: list[Tensor], col_labels: list[Tensor], num_clusters: list[int]
) -> tuple[Tensor, Tensor]:
    _check_all_labelled(weights, None, row_labels, col_labels, num_clusters)
    count, wide = len(weights), widest_float(weights[0].device)
    return weights[0].new_empty((count,), dtype=wide), weights[0].new_empty((count, 2), dtype=wide)


@fake_kernel("enmeshment_grad")
def _enmeshment_grad_fake(
    weights: list[Tensor],
    energies: Tensor,
    slopes: Tensor,
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
) -> list[Tensor]:
    _check_all_labelled(weights, None, row_labels, col_labels, num_clusters)
    _check_energies(energies, slopes, len(weights))
    return [torch.empty_like(weight) for weight in weights]


@fake_kernel("add_enmeshment_grad_")
def _add_enmeshment_grad_fake(
    weights: list[Tensor],
    grads: list[Tensor],
    energies: Tensor,
    slopes: Tensor,
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
) -> None:
    _check_all_labelled(weights, grads, row_labels, col_labels, num_clusters)
    _check_energies(energies, slopes, len(weights))


@fake_kernel("accumulate_enmeshment_grad_")
def _accumulate_fake(
    weights: list[Tensor],
    grads: list[Tensor],
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
    scale: float,
) -> Tensor:
    _check_all_labelled(weights, grads, row_labels, col_labels, num_clusters)
    return weights[0].new_empty((len(weights),), dtype=widest_float(weights[0].device))


@fake_kernel("accumulate_packed_enmeshment_grad_")
def _accumulate_packed_fake(
    weights: list[Tensor], grads: list[Tensor], labels: Tensor, scale: float, mean: bool
) -> Tensor:
    require(len(weights) > 0, "weights must hold at least one tensor")
    require(len(grads) == len(weights), "weights and grads must have one length")
    for weight, grad in zip(weights, grads, strict=True):
        _check_matrix(weight)
        check_shaped("grads", grad, weight.dtype, weight.shape)
    expected = sum(1 + weight.shape[0] + weight.shape[1] for weight in weights)
    check_shaped("labels", labels, torch.int32, (expected,))
    any_double = any(weight.dtype == torch.float64 for weight in weights)
    return weights[0].new_empty((), dtype=torch.float64 if any_double else torch.float32)


# On devices that have no kernels these run the specification.
_formulas = register_formulas(
    {
        "block_inner": Formula(reference.labelled_block_inner, _block_inner_fake),
        "block_scale": Formula(reference.labelled_block_scale, _block_scale_fake),
        "enmeshment": Formula(reference.labelled_enmeshment, _enmeshment_fake),
        "enmeshment_grad": Formula(reference.enmeshment_grad, _enmeshment_grad_fake),
        "add_enmeshment_grad_": Formula(reference.add_enmeshment_grad_, _add_enmeshment_grad_fake),
        "accumulate_enmeshment_grad_": Formula(reference.accumulate_enmeshment_grad_, _accumulate_fake),
        "accumulate_packed_enmeshment_grad_": Formula(
            reference.accumulate_packed_enmeshment_grad_, _accumulate_packed_fake
        ),
    }
)


def _enmeshment_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.rows, ctx.cols, ctx.num_clusters, ctx.groups, *weights = inputs
    ctx.save_for_backward(output[1], *weights)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


class _Enmeshment(torch.autograd.Function):
    """``apply(row_labels, col_labels, num_clusters, groups, *weights)``: losses, and constant energies.

    ``groups``: for each weight the processes that hold its pieces; empty if the weights are whole.
    """

    generate_vmap_rule = True
    setup_context = staticmethod(_enmeshment_setup)

    @staticmethod
    def forward(
        row_labels: tuple[Tensor, ...],
        col_labels: tuple[Tensor, ...],
        num_clusters: tuple[int, ...],
        groups: tuple[Group, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        losses, energies = torch.ops.modfast.enmeshment(weights, row_labels, col_labels, num_clusters)
        if groups:
            energies = sum_all_over(energies, groups)
            losses = reference.enmeshment_of_split(energies)
        return losses, energies

    @staticmethod
    def backward(ctx: Any, slopes: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if slopes is None:
            return (None,) * len(ctx.needs_input_grad)
        needed = ctx.needs_input_grad[4:]
        return (None, None, None, None, *_needed_grads(ctx, ctx.saved_tensors, needed, slopes, ctx.groups))


def _needed_grads(
    ctx: Any,
    saved: Sequence[Tensor],
    needed: Sequence[bool],
    slopes: Tensor,
    groups: tuple[Group, ...] = (),
) -> list[Tensor | None]:
    """The gradient of each weight that needs one, given the slopes of the losses.

    ``saved`` are ``ctx.saved_tensors``, which torch.utils.checkpoint gives only once.
    """
    energies, *weights = saved
    rows, cols, counts = ctx.rows, ctx.cols, ctx.num_clusters
    # With create_graph, or in forward mode, the gradient is differentiated again.
    if torch.is_grad_enabled() or in_forward_mode():
        return [
            _differentiable_grad(
                weights[i], slopes[i], rows[i], cols[i], counts[i], groups[i] if groups else ALONE
            )
            if is_needed
            else None
            for i, is_needed in enumerate(needed)
        ]
    if all(needed):
        grads = torch.ops.modfast.enmeshment_grad.default(
            weights, energies, slopes.contiguous(), rows, cols, counts
        )
        return list(grads)
    weights, rows, cols, counts = (list(compress(values, needed)) for values in (weights, rows, cols, counts))
    wanted = [i for i, is_needed in enumerate(needed) if is_needed]
    energies, slopes = energies[wanted], slopes[wanted].contiguous()
    grads = torch.ops.modfast.enmeshment_grad.default(weights, energies, slopes, rows, cols, counts)
    next_grad = iter(grads)
    return [next(next_grad) if is_needed else None for is_needed in needed]


class _ReducedEnmeshment(torch.autograd.Function):
    """``apply(row_labels, col_labels, num_clusters, mean, dtype, *weights)``: the losses' sum or mean.

    One node of the graph in place of several, and without the forms that transforms of ``torch.func`` ask
    for: for a small weight these take longer than the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        row_labels: list[Tensor],
        col_labels: list[Tensor],
        num_clusters: list[int],
        mean: bool,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        losses, energies = torch.ops.modfast.enmeshment.default(weights, row_labels, col_labels, num_clusters)
        ctx.save_for_backward(energies, *weights)
        ctx.rows, ctx.cols, ctx.num_clusters = row_labels, col_labels, num_clusters
        ctx.mean = mean
        ctx.set_materialize_grads(False)
        reduced: Tensor = losses.mean(dtype=dtype) if mean else losses.sum(dtype=dtype)
        return reduced

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[5:]
        if slope is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors
        slopes = slope.to(saved[0].dtype)
        if ctx.mean and len(needed) > 1:
            slopes = slopes / len(needed)
        slopes = slopes.reshape(1).expand(len(needed))
        return (None, None, None, None, None, *_needed_grads(ctx, saved, needed, slopes))


# PyTorch asks for the signature at each call, and making it takes longer than the arithmetic on two sums.
_Enmeshment.forward.__signature__ = inspect.signature(_Enmeshment.forward)  # type: ignore[attr-defined]


def _differentiable_grad(
    weight: Tensor, slope: Tensor, rows: Tensor, cols: Tensor, count: int, group: Group
) -> Tensor:
    """``slope * dE/dW``, computed by operators that are differentiable themselves."""
    energies = reference.split_energies(inner_blocks(weight, None, rows, cols, count))
    factors = reference.enmeshment_factors(sum_over(energies, group), slope, count)
    scaled: Tensor = scale_blocks(weight, spread_over(factors, group), rows, cols)
    return scaled


# One pass over memory cannot serve a batch of whole models, so the batching rules take one weight at a time.


def _enmeshment_batched(
    weights: list[Tensor], row_labels: list[Tensor], col_labels: list[Tensor], num_clusters: list[int]
) -> tuple[Tensor, Tensor]:
    energies = torch.stack(
        [
            reference.split_energies(torch.ops.modfast.block_inner(weight, None, rows, cols, count))
            for weight, rows, cols, count in zip(weights, row_labels, col_labels, num_clusters, strict=True)
        ]
    )
    return reference.enmeshment_of_split(energies), energies


def _enmeshment_grad_batched(
    weights: list[Tensor],
    energies: Tensor,
    slopes: Tensor,
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
) -> list[Tensor]:
    return [
        torch.ops.modfast.block_scale(
            weight, reference.enmeshment_factors(energies[i], slopes[i], num_clusters[i]), rows, cols
        )
        for i, (weight, rows, cols) in enumerate(zip(weights, row_labels, col_labels, strict=True))
    ]


_rules = torch.library.Library("modfast", "FRAGMENT")
if HAS_OPERATORS:
    for _name, _setup, _backward in (
        ("block_inner", _block_inner_setup, _block_inner_backward),
        ("block_scale", _block_scale_setup, _block_scale_backward),
    ):
        torch.library.register_autograd(f"modfast::{_name}", _backward, setup_context=_setup)
        torch.library.register_vmap(f"modfast::{_name}", one_by_one(getattr(torch.ops.modfast, _name)))

    # torch.vmap's key, and that of autograd.grad(is_grads_batched=True).
    for _key in ("FuncTorchBatched", "Batched"):
        _rules.impl("enmeshment", _enmeshment_batched, _key)
        _rules.impl("enmeshment_grad", _enmeshment_grad_batched, _key)


def _by_reference() -> bool:
    return BACKEND == "reference" or in_forward_mode() or compiles_a_transform()


def inner_blocks(
    weight: Tensor, other: Tensor | None, row_labels: Tensor, col_labels: Tensor, num_clusters: int
) -> Tensor:
    """:func:`reference.labelled_block_inner`, differentiable any number of times in either mode."""
    function = reference.labelled_block_inner if _by_reference() else _BlockInner.apply
    sums: Tensor = function(weight, other, row_labels, col_labels, num_clusters)
    return sums


def scale_blocks(weight: Tensor, factors: Tensor, row_labels: Tensor, col_labels: Tensor) -> Tensor:
    """:func:`reference.labelled_block_scale`, differentiable any number of times in either mode."""
    function = reference.labelled_block_scale if _by_reference() else _BlockScale.apply
    scaled: Tensor = function(weight, factors, row_labels, col_labels)
    return scaled


# Only the kernels for the CPU take labels in one tensor.
TAKES_PACKED = BACKEND == "compiled"
accumulate_packed_enmeshment_grad_: Any = (
    torch.ops.modfast.accumulate_packed_enmeshment_grad_.default if HAS_OPERATORS else None
)

if BACKEND == "reference":
    enmeshments_and_energies: Any = reference.labelled_enmeshment
    add_enmeshment_grad_: Any = reference.add_enmeshment_grad_
    accumulate_enmeshment_grad_: Any = reference.accumulate_enmeshment_grad_
else:
    enmeshments_and_energies = torch.ops.modfast.enmeshment.default
    add_enmeshment_grad_ = torch.ops.modfast.add_enmeshment_grad_.default
    accumulate_enmeshment_grad_ = torch.ops.modfast.accumulate_enmeshment_grad_.default


def enmeshments(
    weights: list[Tensor],
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
    groups: tuple[Group, ...] = (),
) -> Tensor:
    """Each weight's enmeshment, float64, (n,): differentiable any number of times in either mode.

    With ``groups``, this process holds a piece of each weight, and the labels are those of the piece.
    """
    losses: Tensor
    if _by_reference():
        losses, energies = reference.labelled_enmeshment(weights, row_labels, col_labels, num_clusters)
        return reference.enmeshment_of_split(sum_all_over(energies, groups)) if groups else losses
    losses, _ = _Enmeshment.apply(tuple(row_labels), tuple(col_labels), tuple(num_clusters), groups, *weights)
    return losses


def reduced_enmeshment(
    weights: Sequence[Tensor],
    row_labels: list[Tensor],
    col_labels: list[Tensor],
    num_clusters: list[int],
    mean: bool,
    dtype: torch.dtype,
) -> Tensor | None:
    """The sum or mean of the weights' enmeshments, differentiable any number of times in reverse mode.

    None where that does not serve: in forward mode, in transforms of ``torch.func``, under ``torch.compile``,
    and without the compiled operators.
    """
    if _by_reference() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    reduced: Tensor = _ReducedEnmeshment.apply(row_labels, col_labels, num_clusters, mean, dtype, *weights)
    return reduced
