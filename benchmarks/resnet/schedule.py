"""A learning rate that rises and falls once in a training, which reaches more in few epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


def rate_at(step: int, steps: int, peak: float, rising: float = 0.2) -> float:
    """Return the learning rate of a step: from ``peak / 25`` up to ``peak`` on a line, then to 0 by a cosine.

    Args:
        step: from 1.
        steps: of the whole training.
        peak: the largest rate.
        rising: the share of the steps in which it rises.
    """
    top = max(1.0, rising * steps)
    if step <= top:
        return peak * (1 / 25 + (1 - 1 / 25) * step / top)
    return peak * (1 + math.cos(math.pi * (step - top) / (steps + 1 - top))) / 2


@contextmanager
def one_cycle(_: nn.Module, steps: int, peak: float) -> Iterator[None]:
    """Set the learning rate of each step that an optimiser takes inside.

    Args:
        steps: how many there will be.
        peak: as for :func:`rate_at`.

    Raises:
        RuntimeError: there were more or fewer steps, so that the rate did not end at 0.
    """
    taken = 0

    def set_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal taken
        taken += 1
        for group in optimizer.param_groups:
            group["lr"] = rate_at(min(taken, steps), steps, peak)

    handle = register_optimizer_step_pre_hook(set_rate)
    try:
        yield
    finally:
        handle.remove()
    if taken != steps:
        raise RuntimeError(f"steps must be the number of steps that are taken, {taken}, got {steps}")
