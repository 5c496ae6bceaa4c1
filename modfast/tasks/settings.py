"""How a model is trained for a task: the settings, and the optimiser that they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modfast.arguments import SEED, Integer, NoneOr, Number, check_fields
from modfast.energy.loss import EnmeshmentLoss
from modfast.optim import AdamW

# Those of "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217).
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Settings:
    """The settings of a run; the tasks' own ``train`` says what they are."""

    steps: int
    learning_rate: float
    weight_decay: float
    batch_size: int | None
    evaluate_every: int
    seed: int
    enmeshment_weight: float | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "steps": Integer(1),
                "learning_rate": Number(0),
                "weight_decay": Number(0, included=True),
                "batch_size": NoneOr(Integer(1)),
                "evaluate_every": Integer(1),
                "seed": SEED,
                "enmeshment_weight": NoneOr(Number(0, included=True)),
            },
        )


def make_optimizer(
    learning: list[nn.Parameter], settings: Settings, enmeshment: EnmeshmentLoss | None
) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW, or with a loss the one that adds its gradient.

    Raises:
        TypeError: ``enmeshment`` is no loss.
        ValueError: ``learning`` lacks a trained weight of it, or it is given without its weight, or that
            without it.
    """
    weight = settings.enmeshment_weight
    if (enmeshment is None) != (weight is None):
        given, lacking = (
            ("enmeshment", "enmeshment_weight") if weight is None else ("enmeshment_weight", "enmeshment")
        )
        raise ValueError(f"{given} needs {lacking}: the loss and its weight are given together")
    if enmeshment is None or weight is None:
        return torch.optim.AdamW(
            learning, lr=settings.learning_rate, betas=_BETAS, weight_decay=settings.weight_decay, fused=True
        )
    return AdamW(
        learning,
        settings.learning_rate,
        _BETAS,
        weight_decay=settings.weight_decay,
        enmeshment=enmeshment,
        enmeshment_weight=weight,
    )
