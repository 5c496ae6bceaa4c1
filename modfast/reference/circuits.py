"""The published greedy walk, with a forward pass of the whole model in float64 for each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modfast.circuit import Circuit
from modfast.layers.plain_copy import plain_copy
from modfast.layers.running import logits_of

# Losses that differ by no more than this are equal, and a weight whose removal leaves the loss equal to the
# highest allowed stays zero; otherwise rounding would decide. Logits that differ by no more are equal too,
# and the first of them is the answer.
TIE = 1e-12


def find_circuit(
    model: nn.Module,
    inputs: Tensor,
    label: int,
    *,
    layers: Sequence[str] | None = None,
    criterion: str = "loss",
    tolerance: float = 0.0,
    labels: Tensor | None = None,
) -> Circuit:
    """Find a circuit as :func:`modfast.find_circuit` does, for any model; arguments are not checked.

    Args:
        model: returns logits ``(n, classes)``.
        inputs: ``(n, ...)``.
        label: the class.
        layers: names, from the first layer to the last; by default those of every ``nn.Linear``.
        criterion: ``"loss"``, ``"loss_and_accuracy"`` or ``"balanced"``.
        tolerance: by how much the loss may rise.
        labels: int64 ``(n,)``, the class of each input; without them all are of the class.

    Source: arXiv 2409.15747, effective circuit size.
    """
    if layers is None:
        linear = {
            id(module.weight): name for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        layers = list(linear.values())
    is_label = (
        torch.ones(len(inputs), dtype=torch.bool, device="cpu") if labels is None else labels.cpu() == label
    )
    walk = PlainWalk(model, inputs, label, is_label, list(layers), criterion, tolerance)
    for _, decide in walk.steps():
        decide()
    return walk.circuit()


class PlainWalk:
    """The walk step by step, so that a long walk can show its progress, stop and go on.

    Args:
        model: as for :func:`find_circuit`.
        inputs: as for :func:`find_circuit`.
        label: as for :func:`find_circuit`.
        is_label: bool ``(n,)``, whether each input is of the class.
        layers: names, from the first layer to the last.
        criterion: as for :func:`find_circuit`.
        tolerance: as for :func:`find_circuit`.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        label: int,
        is_label: Tensor,
        layers: Sequence[str],
        criterion: str,
        tolerance: float,
    ) -> None:
        self._model = plain_copy(model).cpu().to(torch.float64).eval()
        self._inputs = inputs.detach().cpu()
        if self._inputs.is_floating_point():
            self._inputs = self._inputs.double()
        self._label, self._is_label = label, is_label
        self._criterion, self._tolerance = criterion, tolerance
        parameters = dict(self._model.named_parameters())  # shared parameters occur once
        tensors = parameters | dict(self._model.named_buffers())
        self._state = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        named = {id(parameter): name for name, parameter in parameters.items()}
        self._weights = {
            name: self._state[named[id(self._model.get_submodule(name).weight)]] for name in layers
        }

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the logits of the model with its present weights."""
        # A copy, since a model may write to its input.
        return logits_of(functional_call(self._model, self._state, (self._inputs.clone(),)))

    def _measure(self) -> tuple[float, float]:
        return measure(self.logits(), self._label, self._is_label, self._criterion)

    @cached_property
    def before(self) -> tuple[float, float]:
        """The loss and accuracy of the whole model; must be read before the first step."""
        return self._measure()

    def steps(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield the steps of the walk: the number of weights that a step decides, and a call that does so."""
        highest = highest_loss(self.before[0], self._tolerance)
        for weight in reversed(self._weights.values()):
            flat = weight.view(-1)
            for index in range(len(flat)):
                yield 1, partial(self._decide, flat, index, highest)

    def _decide(self, flat: Tensor, index: int, highest: float) -> None:
        value = float(flat[index])
        if value == 0:
            return
        flat[index] = 0.0
        loss, accuracy = self._measure()
        worse = self._criterion == "loss_and_accuracy" and accuracy < self.before[1]
        if not loss <= highest or worse:
            flat[index] = value

    @property
    def masks(self) -> dict[str, Tensor]:
        """For each layer, which weights are not zero."""
        return {name: weight != 0 for name, weight in self._weights.items()}

    def restore(self, masks: Mapping[str, Tensor]) -> None:
        """Set the weights to zero that an earlier walk set to zero."""
        for name, weight in self._weights.items():
            weight *= masks[name]

    def circuit(self) -> Circuit:
        """Return the circuit: the weights that are not zero."""
        after = self._measure()
        numbers = (self._tolerance, len(self._inputs), self.before[0], after[0], self.before[1], after[1])
        return Circuit(self._label, self.masks, self._criterion, *numbers)


def highest_loss(loss: float, tolerance: float) -> float:
    """Return the highest loss allowed, given the loss of the whole model."""
    return loss + tolerance + TIE * (1 + abs(loss))


def measure(logits: Tensor, label: int, is_label: Tensor, criterion: str) -> tuple[float, float]:
    """Return the mean loss of one class against the rest, and the share of right answers.

    The model assigns an input to the class if the class is its answer or, for ``"balanced"``, if the class is
    more probable than all others together.

    The loss of an input of the class is the cross-entropy ``-log p``, where p is the class's probability by
    the softmax; the loss of another input is ``-log(1 - p)``. With the margin
    ``m = logit - logsumexp(other logits)`` these are ``log(1 + exp(-m))`` and ``log(1 + exp(m))``.
    """
    margin = logits[:, label] - logits.index_fill(
        1, torch.tensor([label], device=logits.device), -torch.inf
    ).logsumexp(1)
    signed = torch.where(is_label, -margin, margin)
    loss = torch.logaddexp(signed, torch.zeros_like(signed))
    answer = margin > 0 if criterion == "balanced" else _is_first(logits, label)
    return float(loss.mean()), float((answer == is_label).double().mean())


def _is_first(logits: Tensor, label: int) -> Tensor:
    """Return whether the label's logit is the first of the largest, which may differ by :data:`TIE`."""
    own = logits[:, label, None]
    tie = TIE * (1 + own.abs())
    return (own > logits[:, :label] + tie).all(1) & (own >= logits[:, label + 1 :] - tie).all(1)
