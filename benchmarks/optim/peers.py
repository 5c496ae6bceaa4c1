"""The contestants of the optimiser's benchmarks: steps of AdamW over weights of the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
            count = -int(-share * weight.numel() // 1)
            mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
            mask[weight.abs().flatten().topk(count, sorted=False).indices] = True
            weight.mul_(mask.view_as(weight))


def contestants(case: Case) -> dict[str, Callable[[], object]]:
    """Return a step of each contestant, over weights of its own."""

    def by_torch() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = case.model()
        return model, torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def by_modfast(keep: float | None, with_loss: bool) -> Callable[[], object]:
        model = case.model()
        loss = EnmeshmentLoss(model, case.clusters) if with_loss else None
        weight = WEIGHT if with_loss else 0.0
        optimizer = AdamW(model.parameters(), lr=RATE, enmeshment=loss, enmeshment_weight=weight, keep=keep)
        return optimizer.step

    accumulated, accumulating = by_torch()
    loss = EnmeshmentLoss(accumulated, case.clusters)

    def accumulate() -> None:
        # So that thousands of calls leave the gradients what they are.
        loss.accumulate_grad_(1e-9)
        accumulating.step()

    masked, masking = by_torch()

    def mask() -> None:
        masking.step()
        keep_by_topk(list(masked.parameters()), SHARE)

    return {
        FUSED: by_torch()[1].step,
        PLAIN: by_modfast(None, False),
        WITH_LOSS: by_modfast(None, True),
        WITH_KEEP: by_modfast(SHARE, True),
        ACCUMULATE: accumulate,
        TOPK: mask,
    }
