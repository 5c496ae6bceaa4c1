"""The published greedy walk, weight after weight, each with a forward pass of the whole model in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

# Losses this close are equal, and a weight whose zero leaves the loss equal to what is allowed stays zero:
# otherwise rounding would decide. Likewise logits, of which then the first is the largest.
TIE = 1e-12


def find_circuit(
    model: nn.Module,
    inputs: Tensor,
    label: int,
    parameters: Mapping[str, str],
    criterion: str = "loss",
    tolerance: float = 0.0,
    labels: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The masks of a circuit, and its loss and accuracy before and after.

    Args:
        model: gives logits ``(n, classes)``.
        inputs: ``(n, ...)``.
        label: the class.
        parameters: of each layer, from the first to the last, its name and that of its weight.
        criterion: ``"loss"``, ``"loss_and_accuracy"`` or ``"balanced"``.
        tolerance: by how much the loss may rise.
        labels: int64 ``(n,)``, the class of each input; without them all are of the class.
        progress: called with the numbers of weights decided so far and in all.

    Source: arXiv 2409.15747, effective circuit size.
    """
    plain = copy.deepcopy(model).to(device="cpu", dtype=torch.float64).eval()
    inputs = inputs.to(device="cpu", dtype=torch.float64) if inputs.is_floating_point() else inputs.cpu()
    is_label = torch.ones(len(inputs), dtype=torch.bool) if labels is None else labels.cpu() == label
    state = {name: tensor.detach().clone() for name, tensor in plain.state_dict().items()}
    weights = [state[name] for name in parameters.values()]

    with torch.no_grad():
        before = measure(functional_call(plain, state, (inputs,)), label, is_label)
        highest = before[0] + tolerance + TIE * (1 + abs(before[0]))
        done, total = 0, sum(weight.numel() for weight in weights)
        for weight in reversed(weights):
            flat = weight.view(-1)
            for index in range(len(flat)):
                value = float(flat[index])
                if value != 0:
                    flat[index] = 0.0
                    loss, accuracy = measure(functional_call(plain, state, (inputs,)), label, is_label)
                    worse = criterion == "loss_and_accuracy" and accuracy < before[1]
                    if not loss <= highest or worse:
                        flat[index] = value
                done += 1
                if progress is not None:
                    progress(done, total)
        after = measure(functional_call(plain, state, (inputs,)), label, is_label)
    measures = dict(zip(("loss_before", "accuracy_before"), before, strict=True))
    measures |= dict(zip(("loss_after", "accuracy_after"), after, strict=True))
    return {name: state[parameters[name]] != 0 for name in parameters}, measures


def measure(logits: Tensor, label: int, is_label: Tensor) -> tuple[float, float]:
    """Mean loss, one class against the rest, and the share of answers "that class, or not" that are right.

    Of inputs of the class it is their cross-entropy ``-log p``, where p is the class's probability by the
    softmax; of others it is ``-log(1 - p)``. Both are ``softplus(-+ m)`` of the margin
    ``m = logit - logsumexp(other logits)``.
    """
    margin = logits[:, label] - logits.index_fill(1, torch.tensor([label]), -torch.inf).logsumexp(1)
    signed = torch.where(is_label, -margin, margin)
    loss = torch.logaddexp(signed, torch.zeros_like(signed))
    return float(loss.mean()), float((is_first(logits, label) == is_label).double().mean())


def is_first(logits: Tensor, label: int) -> Tensor:
    """Whether the label's logit is the first of the largest, up to :data:`TIE`."""
    own = logits[:, label, None]
    tie = TIE * (1 + own.abs())
    return (own > logits[:, :label] + tie).all(1) & (own >= logits[:, label + 1 :] - tie).all(1)
