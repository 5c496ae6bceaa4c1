"""The optimiser's operators: their fake kernels, and the specification in their place if it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import modfast.reference as reference
from modfast.devices import widest_float
from modfast.library import BACKEND, fake_kernel
from modfast.shapes import FLOATS, check_shaped, require
from modfast.without_kernels import Formula, register_formulas

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@fake_kernel("adamw_")
def _adamw_fake(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    labels: Tensor | None,
    first_labels: Sequence[int],
    energies: Tensor | None,
    new_energies: Tensor | None,
    slope: float,
    keep: Sequence[int],
    thresholds: Tensor | None,
    lr: float,
    lr_tensor: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    stochastic_rounding: bool,
) -> None:
    count = len(weights)
    require(count > 0, "weights must hold at least one tensor")
    lengths = {len(grads), len(exp_avgs), len(exp_avg_sqs), len(steps), len(first_labels)}
    require(
        lengths == {count} and len(keep) in (0, count),
        "weights, grads, exp_avgs, exp_avg_sqs, steps, first_labels and keep must have one length",
    )
    of_loss, needed = 0, 0
    for weight, grad, mean, square, step, first in zip(
        weights, grads, exp_avgs, exp_avg_sqs, steps, first_labels, strict=True
    ):
        shape = check_shaped("weights", weight, FLOATS, weight.shape).shape
        is_double = weight.dtype == torch.float64
        check_shaped("grads", grad, torch.float64 if is_double else _NARROW, shape)
        for name, moment in (("exp_avgs", mean), ("exp_avg_sqs", square)):
            check_shaped(name, moment, torch.float64 if is_double else torch.float32, shape)
        check_shaped("steps", step, torch.float32, ())
        require(first >= -1, f"first_labels must be -1 or the place of a label, got {first}")
        if first >= 0:
            of_loss += 1
            require(weight.dim() >= 2, f"a weight of the loss must be (out, in, *kernel), got {tuple(shape)}")
            needed = max(needed, first + shape[0] + shape[1])
    if of_loss:
        check_shaped("labels", labels, torch.int32, (None,))
        assert labels is not None
        require(labels.shape[0] >= needed, f"labels must hold {needed} numbers, got {labels.shape[0]}")
        wide = widest_float(weights[0].device)
        check_shaped("energies", energies, wide, (of_loss, 2))
        check_shaped("new_energies", new_energies, wide, (of_loss, 2))
    for weight, number in zip(weights, keep, strict=False):
        require(
            -1 <= number <= weight.numel(),
            f"keep must be -1 to {weight.numel()} for its weight, got {number}",
        )
    if thresholds is not None:
        check_shaped("thresholds", thresholds, torch.int64, (count, 2))
    for name, scalar in (("grad_scale", grad_scale), ("found_inf", found_inf), ("lr_tensor", lr_tensor)):
        if scalar is not None:
            dtypes = (torch.float32, torch.float64) if name == "lr_tensor" else torch.float32
            check_shaped(name, scalar, dtypes, scalar.shape)
            require(scalar.numel() == 1, f"{name} must have one element, got {scalar.numel()}")


@fake_kernel("labelled_energies")
def _labelled_energies_fake(weights: list[Tensor], labels: Tensor, first_labels: Sequence[int]) -> Tensor:
    require(len(weights) > 0, "weights must hold at least one tensor")
    require(len(first_labels) == len(weights), "weights and first_labels must have one length")
    needed = 0
    for weight, first in zip(weights, first_labels, strict=True):
        check_shaped("weights", weight, FLOATS, weight.shape)
        require(
            weight.dim() >= 2, f"a weight of the loss must be (out, in, *kernel), got {tuple(weight.shape)}"
        )
        require(first >= 0, f"first_labels must be the place of a label, got {first}")
        needed = max(needed, first + weight.shape[0] + weight.shape[1])
    check_shaped("labels", labels, torch.int32, (None,))
    require(labels.shape[0] >= needed, f"labels must hold {needed} numbers, got {labels.shape[0]}")
    return weights[0].new_empty((len(weights), 2), dtype=widest_float(weights[0].device))


# On devices that have no kernels these run the specification.
_formulas = register_formulas(
    {
        "adamw_": Formula(reference.adamw_, _adamw_fake),
        "labelled_energies": Formula(reference.labelled_energies, _labelled_energies_fake),
    }
)


adamw_: Any = reference.adamw_ if BACKEND == "reference" else torch.ops.modfast.adamw_.default
labelled_energies: Any = (
    reference.labelled_energies if BACKEND == "reference" else torch.ops.modfast.labelled_energies.default
)
