"""One call of the optimiser's operator: gather what it needs, call it, and take note of what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modfast.arrays import is_sharded
from modfast.energy import sharded
from modfast.library import BACKEND

from .checks import check_gradient
from .device import is_captured
from .energies import Energies
from .keep import Keep, kept_counts, share_at, step_numbers
from .operators import adamw_
from .state import new_state, wide_dtype
from .terms import Selection, Terms, local_of

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
_DOUBLE = frozenset({torch.float64})


@dataclass
class Step:
    """What all calls of a step share.

    Attributes:
        slope: the factor of each layer's enmeshment.
        keep: as the optimiser's argument.
        stochastic_rounding: likewise.
        grad_scale: by which the gradients are still scaled, if they are.
        found_inf: whether one of them is not finite, if that is known.
        exchanged: the energies that processes have yet to sum: of the old and of the new weights.
        recorded: what the calls that became part of a CUDA graph read and write, whose memory must stay.
    """

    slope: float
    keep: Keep | None
    stochastic_rounding: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None
    exchanged: list[tuple[Energies, Selection, Tensor, Tensor]] = field(default_factory=list)
    recorded: list[Any] = field(default_factory=list)
    _placed: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict)

    def on(self, name: str, device: torch.device) -> Tensor | None:
        """The scale or the finding on a device, in float32."""
        value = getattr(self, name)
        if value is None:
            return None
        if (name, device) not in self._placed:
            self._placed[name, device] = torch.as_tensor(value, dtype=torch.float32, device=device)
        return self._placed[name, device]

    def update(self, terms: Terms, group: Mapping[str, Any], state: dict[Tensor, Any]) -> None:
        """Make the step for a group's parameters on one device."""
        grads: list[Any] = [parameter.grad for parameter in terms.params]
        if self.slope != 0.0:
            for index in terms.in_loss:
                if grads[index] is None:
                    grads[index] = _zero_gradient(terms.params[index])
        indices = [index for index, grad in enumerate(grads) if grad is not None]
        if not indices:
            return
        if len(indices) < len(grads):
            grads = [grads[index] for index in indices]
        chosen = terms.selection(indices)
        in_graph = is_captured(terms.device)
        if not chosen.states:
            for index, parameter in zip(chosen.indices, chosen.params, strict=True):
                if state.get(parameter):
                    continue
                if in_graph:
                    raise RuntimeError(
                        f"{terms.name_of(index, group)} needs a step before one is captured in a CUDA graph: "
                        "each replay would begin with moments of 0 again"
                    )
                state[parameter] = new_state(parameter)
            chosen.states = [state[parameter] for parameter in chosen.params]
        given = grads
        grads = _fitting(terms, chosen, grads, group)

        changed = [
            *chosen.params,
            *(means := [each["exp_avg"] for each in chosen.states]),
            *(squares := [each["exp_avg_sq"] for each in chosen.states]),
            *(steps := [each["step"] for each in chosen.states]),
        ]
        if self.grad_scale is not None:
            changed += grads
        weights = chosen.params
        if not terms.is_plain:
            changed += [local_of(each) for each in changed if is_sharded(each)]
            weights, grads, means, squares = (
                terms.split(each, indices) for each in (weights, grads, means, squares)
            )
            steps = terms.repeat(steps, indices)
        kept = self._kept(chosen, steps)
        if kept:
            grads = _laid_out_alike(chosen, weights, grads)

        energies = terms.energies if chosen.has_rows else None
        old = new = None
        if energies is not None:
            energies.refresh(terms.watched())
            old = energies.values if chosen.rows is None else energies.values[chosen.rows]
            new = torch.empty_like(old) if energies.is_shared else old
        rate = group["lr"]
        on_gpu = isinstance(rate, Tensor) and rate.is_cuda and terms.device.type == "cuda"
        try:
            adamw_(
                weights,
                grads,
                means,
                squares,
                steps,
                None if energies is None else terms.labels,
                chosen.first_labels,
                old,
                new,
                self.slope,
                kept,
                chosen.thresholds if kept else None,
                0.0 if on_gpu else float(rate),
                _number_on(rate, terms.device) if on_gpu else None,
                float(group["betas"][0]),
                float(group["betas"][1]),
                float(group["eps"]),
                float(group["weight_decay"]),
                self.on("grad_scale", terms.device),
                self.on("found_inf", terms.device),
                self.stochastic_rounding,
            )
        except RuntimeError as error:
            # The operator refuses in words of its own what fits no parameter, before anything is changed.
            _check_gradients(terms, chosen, given, group)
            if kept and "keep needs weights whose rows" in str(error):
                raise ValueError(_cannot_keep(chosen, weights)) from error
            raise
        torch.autograd.graph.increment_version(changed)
        if in_graph:
            self.recorded.append((terms, chosen, changed))
        if energies is not None:
            assert old is not None
            assert new is not None
            if energies.is_shared:
                self.exchanged.append((energies, chosen, old, new))
            elif chosen.rows is not None:
                energies.values[chosen.rows] = new
            energies.remember(terms.watched())

    def exchange(self) -> None:
        """Sum the new energies over the processes, those of all calls together."""
        by_device: dict[torch.device, list[tuple[Energies, Selection, Tensor, Tensor]]] = {}
        for each in self.exchanged:
            by_device.setdefault(each[2].device, []).append(each)
        for device, parts in by_device.items():
            groups = [
                energies.groups[row]
                for energies, chosen, _, _ in parts
                for row in (range(len(energies.rows)) if chosen.rows is None else chosen.places)
            ]
            total = sharded.sum_all_over(torch.cat([new for _, _, _, new in parts]), groups)
            found = self.on("found_inf", device)
            if found is not None:  # nothing has changed then, and the old ones are sums already
                total = torch.where(found != 0, torch.cat([old for _, _, old, _ in parts]), total)
            for (energies, chosen, _, _), sums in zip(
                parts, total.split([len(new) for _, _, _, new in parts]), strict=True
            ):
                if chosen.rows is None:
                    energies.values.copy_(sums)
                else:
                    energies.values[chosen.rows] = sums

    def _kept(self, chosen: Selection, steps: Sequence[Tensor]) -> list[int]:
        """How many elements of each term stay; -1 stands for all, nothing for all of all terms."""
        if self.keep is None or chosen.thresholds is None:
            return []
        if callable(self.keep):
            terms = [term for term, name in enumerate(chosen.kept) if name is not None]
            numbers = step_numbers([steps[term] for term in terms])
            shares = {number: share_at(self.keep, number) for number in dict.fromkeys(numbers)}
            if len(shares) > 1:  # some parameters came later than others
                counts = [-1] * len(chosen.kept)
                for term, number in zip(terms, numbers, strict=True):
                    (counts[term],) = kept_counts(shares[number], [chosen.sizes[term]])
                return counts
            (share,) = shares.values()
        else:
            share = self.keep
        if chosen.share != share:
            chosen.share, counts = share, kept_counts(share, chosen.sizes)
            chosen.counts = [
                -1 if name is None else count for name, count in zip(chosen.kept, counts, strict=True)
            ]
        return chosen.counts


def _zero_gradient(parameter: Any) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.zeros_like(parameter)


def _fitting(terms: Terms, chosen: Selection, grads: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    """The gradients in types that the operator takes.

    Raises:
        TypeError, ValueError: one of them does not fit its parameter.
    """
    types = {grad.dtype for grad in grads}
    own = {parameter.dtype for parameter in chosen.params}
    if own != chosen.types:
        _cast_moments(chosen)
        chosen.types = own
    usual = (types <= _NARROW and own <= _NARROW) or types == own == _DOUBLE
    if terms.is_plain and usual and BACKEND != "reference":
        return grads
    _check_gradients(terms, chosen, grads, group)
    return [
        grad
        if (grad.dtype == torch.float64) is (parameter.dtype == torch.float64)
        else grad.to(parameter.dtype)
        for parameter, grad in zip(chosen.params, grads, strict=True)
    ]


def _check_gradients(
    terms: Terms, chosen: Selection, grads: Sequence[Tensor], group: Mapping[str, Any]
) -> None:
    """Raises what :func:`check_gradient` raises for any of them."""
    for index, parameter, grad in zip(chosen.indices, chosen.params, grads, strict=True):
        check_gradient(parameter, grad, terms.name_of(index, group))


def _cast_moments(chosen: Selection) -> None:
    """Cast the moments of parameters that are of another type than when these were made."""
    for parameter, state in zip(chosen.params, chosen.states, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].to(wide_dtype(parameter.dtype))


def _laid_out_alike(chosen: Selection, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, those of kernels that keep only their largest weights laid out as these are."""
    result = list(grads)
    for term, (name, weight, grad) in enumerate(zip(chosen.kept, weights, grads, strict=True)):
        if name is not None and weight.dim() > 2 and grad.stride() != weight.stride():
            result[term] = torch.empty_like(weight, dtype=grad.dtype).copy_(grad)
    return result


def _number_on(number: Tensor, device: torch.device) -> Tensor:
    is_exact = number.dtype in (torch.float32, torch.float64)
    return number.to(device=device, dtype=number.dtype if is_exact else torch.float32)


def _cannot_keep(chosen: Selection, weights: Sequence[Tensor]) -> str:
    suspects = [
        f"{name!r} (shape {tuple(weight.shape)}, strides {weight.stride()})"
        for name, weight in zip(chosen.kept, weights, strict=True)
        if name is not None and not weight.is_contiguous()
    ]
    return (
        f"keep needs weights whose rows follow one another in memory, got {', '.join(suspects)}: make them "
        "contiguous, or choose others by keep_layers"
    )
