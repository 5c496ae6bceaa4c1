"""The contestants of the optimiser's benchmarks: steps of AdamW over weights of the same shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from modfast import EnmeshmentLoss
from modfast.optim import AdamW

FUSED = "fused AdamW"
PLAIN = "modfast, plain"
WITH_LOSS = "with the loss"
WITH_KEEP = "with loss and keep"
ACCUMULATE = "fused + accumulate_grad_"
TOPK = "fused + topk + mask"

WEIGHT = 0.7
SHARE = 0.1
# As small as no weight moves far in all the steps of a table, and yet each step does all of its work.
RATE = 1e-5


@dataclass(frozen=True)
class Case:
    """Layers to train."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    clusters: int

    def __str__(self) -> str:
        return f"{self.name}, k {self.clusters}"

    def model(self) -> nn.Module:
        """Make the layers, with gradients. Their weights are as large as trained ones."""
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(cols, rows, bias=False) for rows, cols in self.shapes))
        for parameter in model.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        return model


CASES = (
    Case("512 x 512", ((512, 512),), 4),
    Case("3072 x 768", ((3072, 768),), 4),
    Case("4096 x 4096", ((4096, 4096),), 8),
    Case("GPT-2 small, 24 matrices", ((3072, 768), (768, 3072)) * 12, 8),
    Case("200 layers of 64 x 64", ((64, 64),) * 200, 4),
)


def keep_by_topk(weights: list[Tensor], share: float) -> None:
    """Set all but the largest magnitudes of each weight to 0, by ``torch.topk`` and a mask."""
    with torch.no_grad():
        for weight in weights:
            count = math.ceil(Fraction(str(share)) * weight.numel())
            mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
            mask[weight.abs().flatten().topk(count, sorted=False).indices] = True
            weight.mul_(mask.view_as(weight))


class Steps:
    """A contestant: called, it makes a step over weights of its own.

    Attributes:
        model: holds the weights.
    """

    def __init__(self, name: str, case: Case) -> None:
        self.model = case.model()
        self._name = name
        weights, loss = list(self.model.parameters()), EnmeshmentLoss(self.model, case.clusters)
        self._weights, self._loss = weights, loss
        self._optimizer: torch.optim.Optimizer
        if name in (FUSED, ACCUMULATE, TOPK):
            self._optimizer = torch.optim.AdamW(weights, lr=RATE, fused=True)
        elif name == PLAIN:
            self._optimizer = AdamW(weights, lr=RATE)
        else:
            keep = SHARE if name == WITH_KEEP else None
            self._optimizer = AdamW(weights, lr=RATE, enmeshment=loss, enmeshment_weight=WEIGHT, keep=keep)

    def __call__(self) -> None:
        if self._name == ACCUMULATE:
            # Small, so that thousands of calls leave the gradients what they are.
            self._loss.accumulate_grad_(1e-9)
        self._optimizer.step()
        if self._name == TOPK:
            keep_by_topk(self._weights, SHARE)


PEERS = (FUSED, PLAIN, WITH_LOSS, WITH_KEEP, ACCUMULATE, TOPK)


def step_of(name: str, case: Case) -> Callable[[], None]:
    """Return the step of a contestant of this name."""
    return Steps(name, case)


def contestants(case: Case) -> dict[str, Callable[[], None]]:
    """Return a step of each contestant, by name."""
    return {name: step_of(name, case) for name in PEERS}
