"""The specification of the optimiser's step, in plain PyTorch.

AdamW: "Decoupled Weight Decay Regularization", arXiv 1711.05101, as ``torch.optim.AdamW`` has it. Enmeshment:
"Training Neural Networks for Modularity aids Interpretability", arXiv 2409.15747. Where these functions say
float64, they mean float32 on a device that has no float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modfast.devices import widest_float
from modfast.memory import check_writable


def adamw_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
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
    """Specifies the operator of that name: one step of AdamW for several weights, all changed in place.

    The gradient of a weight with labels is its own plus ``slope * dE/dW``, where E is the enmeshment of the
    weight before the step. After the step, all but the largest magnitudes of a weight may become 0.

    Args:
        weights: float32, float64, float16 or bfloat16, of any shape and layout; no two may share memory.
        grads: of the weights' shapes: float64 for a float64 weight, else float32, float16 or bfloat16.
        exp_avgs: the first moments, of the weights' shapes: float64 for a float64 weight, else float32.
        exp_avg_sqs: the second moments, likewise.
        steps: float32, (), the number of steps before this one, which becomes one more. Weights of one
            parameter follow one another and share the tensor, which is advanced once.
        labels: int32, (any,): for each weight of the loss the labels of its rows, then those of its columns.
            A row and a column are in the same cluster if their labels are equal: those in no cluster need
            labels that the other side does not have.
        first_labels: for each weight the place of its first label, or -1 for a weight outside the loss. A
            weight of the loss has shape ``(out, in, *kernel)``.
        energies: float64, (weights of the loss, 2), of the weights before the step, inside clusters and
            across them.
        new_energies: the same of the weights after the step; written. It may be ``energies`` itself.
        slope: the factor of each weight's enmeshment.
        keep: for each weight how many elements stay after the step, those of the largest magnitudes (of
            equal ones the first in memory), or -1 for all; empty for all of all weights. The others become 0;
            a NaN counts as larger than all numbers.
        thresholds: int64, (weights, 2), or None: memory for the compiled operators, which need less time if
            they find in it what they left there at the step before; zeros at first. It changes no result.
        lr: the learning rate.
        lr_tensor: the learning rate as a tensor of one element on the weights' device, in place of ``lr``.
        beta1: the decay of the first moment.
        beta2: the decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: as a share of the learning rate.
        grad_scale: float32, one element, or None: the gradients are divided by it, in place.
        found_inf: float32, one element, or None: unless it is 0, nothing changes (but ``new_energies``, which
            become ``energies``).
        stochastic_rounding: round bfloat16 weights up or down at random, with the probabilities that keep
            their mean (:func:`round_stochastically`), not to the nearest.

    Raises:
        RuntimeError: weights, moments or gradients share memory.
    """
    if not torch.is_inference_mode_enabled() and any(weight.is_inference() for weight in weights):
        given: dict[str, Any] = locals().copy()
        # Elsewhere PyTorch refuses to change such weights in place.
        with torch.inference_mode():
            return adamw_(**given)
    written, read = [*weights, *exp_avgs, *exp_avg_sqs], list(grads)
    if grad_scale is not None:
        written, read = [*written, *read], []
    check_writable(read, written, "gradient", "weight or moment")
    if found_inf is not None and bool(found_inf != 0):
        if new_energies is not None and energies is not None:
            new_energies.copy_(energies)
        return
    rate = lr if lr_tensor is None else float(lr_tensor)
    old = None if energies is None else energies.clone()
    place = 0  # in the energies
    for t, (weight, grad, mean, square, step) in enumerate(
        zip(weights, grads, exp_avgs, exp_avg_sqs, steps, strict=True)
    ):
        if t == 0 or step is not steps[t - 1]:
            step.add_(1)
        number = float(step)
        widest = widest_float(weight.device)
        if grad_scale is not None:
            grad.copy_(grad.to(widest) / grad_scale.to(widest))
        wide, slant = weight.to(widest), grad.to(widest)
        if first_labels[t] >= 0:
            assert labels is not None
            assert old is not None
            same = _same_cluster(weight, labels, first_labels[t])
            inside, across = split_factors(old[place], slope).unbind()
            slant = slant + wide * torch.where(same, inside, across)
        mean.lerp_(slant.to(mean.dtype), 1 - beta1)
        square.mul_(beta2).add_((slant * slant).to(square.dtype), alpha=1 - beta2)
        root = square.to(widest).sqrt() / (1 - beta2**number) ** 0.5 + eps
        wide = wide * (1 - rate * weight_decay)
        wide = wide - rate / (1 - beta1**number) * mean.to(widest) / root
        if stochastic_rounding and weight.dtype == torch.bfloat16:
            weight.copy_(round_stochastically(wide.to(torch.float32), memory_offsets(weight), t, int(number)))
        else:
            weight.copy_(wide)
        if keep and keep[t] >= 0:
            keep_largest_(weight, keep[t])
        if first_labels[t] >= 0:
            assert labels is not None
            assert new_energies is not None
            new_energies[place] = labelled_energies([weight], labels, [first_labels[t]])[0]
            place += 1


def labelled_energies(weights: Sequence[Tensor], labels: Tensor, first_labels: Sequence[int]) -> Tensor:
    """Specifies the operator of that name: the energies of weights of the loss, as :func:`adamw_` takes them.

    The compiled operators find the bits that a step finds of the same weights.

    Args:
        weights: of shape ``(out, in, *kernel)``.
        labels: as for :func:`adamw_`.
        first_labels: the place of each weight's first label.

    Returns:
        Float64, (weights, 2): inside clusters and across them.
    """
    energies = []
    for weight, first in zip(weights, first_labels, strict=True):
        squares = weight.to(widest_float(weight.device)).square()
        same = _same_cluster(weight, labels, first).expand_as(squares)
        energies.append(torch.stack([squares[same].sum(), squares[~same].sum()]))
    return torch.stack(energies)


def _same_cluster(weight: Tensor, labels: Tensor, first: int) -> Tensor:
    """Whether the row and the column of each weight are in one cluster: (out, in, 1, ...)."""
    rows, cols = weight.shape[:2]
    of_rows, of_cols = labels[first : first + rows], labels[first + rows : first + rows + cols]
    same = of_rows[:, None] == of_cols[None, :]
    return same.reshape(same.shape + (1,) * (weight.dim() - 2))


def split_factors(energy: Tensor, slope: float) -> Tensor:
    """The factors of weights inside clusters and across them: weight times factor is ``slope * dE/dW``.

    Args:
        energy: float64, (2,), inside clusters and across them.
        slope: the factor of E.

    Returns:
        Float64, (2,).
    """
    inside, across = energy.unbind()
    total = inside + across
    total = torch.where(total == 0, 1.0, total)
    # As in the loss, each of the two is NaN if the other energy is infinite.
    E, C = across / total + 0.0 * inside, inside / total + 0.0 * across
    return torch.stack([-E, C]) * (2.0 * slope / total)


def keep_largest_(weight: Tensor, count: int) -> None:
    """Set all but the ``count`` largest magnitudes to 0; of equal magnitudes the first in memory stay.

    Args:
        weight: of any dtype, shape and layout. A NaN counts as larger than all numbers.
        count: from 0 to the number of elements.
    """
    in_memory = torch.argsort(memory_offsets(weight).flatten())
    flat = weight.flatten()[in_memory]
    # A stable sort leaves equal magnitudes in the order of memory.
    order = torch.sort(flat.abs(), descending=True, stable=True).indices
    flat[order[count:]] = 0
    result = torch.empty_like(flat)
    result[in_memory] = flat
    weight.copy_(result.view(weight.shape))


def memory_offsets(weight: Tensor) -> Tensor:
    """The place of each element in memory, counted in elements from the first: int64, the weight's shape."""
    offsets = torch.zeros(weight.shape, dtype=torch.int64, device=weight.device)
    for dim, (size, stride) in enumerate(zip(weight.shape, weight.stride(), strict=True)):
        along = torch.arange(size, dtype=torch.int64, device=weight.device) * stride
        offsets += along.reshape((-1,) + (1,) * (weight.dim() - dim - 1))
    return offsets


def round_stochastically(values: Tensor, offsets: Tensor, place: int, step: int) -> Tensor:
    """Round to one of the two bfloat16 neighbours, with the probabilities that keep the mean.

    The random bits depend on the arguments alone, so that a resumed run repeats those of an uninterrupted
    one.

    Args:
        values: float32.
        offsets: int64, of the same shape: :func:`memory_offsets`.
        place: the weight's place among those of the call.
        step: the number of the step, from 1.

    Returns:
        Bfloat16, of the same shape. Infinity and NaN stay what they are.
    """
    key = _hash32(torch.tensor(place, device=values.device)) ^ (step & 0xFFFFFFFF)
    noise = _hash32((offsets & 0xFFFFFFFF) ^ _hash32(key)) >> 16
    bits = values.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rounded = (bits + noise) & 0xFFFF0000
    # The same 32 bits as a signed number: not every device has unsigned ones.
    rounded = torch.where(rounded < 2**31, rounded, rounded - 2**32).to(torch.int32).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _hash32(numbers: Tensor) -> Tensor:
    """A hash of 32 bits: int64 in [0, 2^32). Constants: https://github.com/skeeto/hash-prospector."""
    numbers = numbers ^ (numbers >> 16)
    numbers = (numbers * 0x21F0AAAD) & 0xFFFFFFFF
    numbers = numbers ^ (numbers >> 15)
    numbers = (numbers * 0x735A2D97) & 0xFFFFFFFF
    return numbers ^ (numbers >> 15)
