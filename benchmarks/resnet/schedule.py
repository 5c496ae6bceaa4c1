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
    """Set the learning rate of each step that Adam takes inside.

    The optimiser counts its steps itself, so a training that was stopped goes on where it was.

    Args:
        steps: how many the whole training has.
        peak: as for :func:`rate_at`.

    Raises:
        RuntimeError: steps were taken, but more or fewer, so that the rate did not end at 0.
    """
    last = steps

    def set_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal last
        last = _taken(optimizer) + 1
        for group in optimizer.param_groups:
            group["lr"] = rate_at(min(last, steps), steps, peak)

    handle = register_optimizer_step_pre_hook(set_rate)
    try:
        yield
    finally:
        handle.remove()
    if last != steps:
        raise RuntimeError(f"steps must be the number of steps that are taken, {last}, got {steps}")


def _taken(optimizer: torch.optim.Optimizer) -> int:
    """Return how many steps Adam has taken; it keeps their number for each parameter."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)
