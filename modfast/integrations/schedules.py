"""How the weight of the enmeshment loss changes during training: functions from a step to a factor.

Any function of the number of optimiser steps done so far can be a schedule. These two can be pickled and
compared, and print what they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from modfast.arguments import Constraint, Integer, Number, check

FINITE: Constraint = Number(-math.inf)


@dataclass(frozen=True)
class _Between:
    """A factor that goes from ``first`` to ``last`` in ``steps`` steps, and stays there."""

    steps: int
    start: int = 0
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        check("steps", self.steps, Integer(1))
        check("start", self.start, Integer(0))
        for name, factor in (("first", self.first), ("last", self.last)):
            if factor not in FINITE:
                raise ValueError(f"{name} must be a finite number, got {factor!r}")

    def _share(self, step: int) -> float:
        """Which part of the way is done at a step."""
        return min(max(step - self.start, 0) / self.steps, 1.0)


@dataclass(frozen=True)
class LinearSchedule(_Between):
    """A factor that changes by the same amount in each step: by default a warm-up from 0 to 1.

    Take it if the task's loss jumps when the enmeshment loss sets in; give ``start`` to train without that
    loss first, as for clusters that are found at a later step.

    Args:
        steps: how many steps the change takes.
        start: the step at which it begins; the factor is ``first`` until then.
        first: the factor at the beginning.
        last: the factor at the end, and ever after.

    Raises:
        ValueError: ``steps`` is no positive integer, ``start`` is negative, or a factor is not finite.

    Example:
        >>> warmup = LinearSchedule(4, start=10)
        >>> [warmup(step) for step in (0, 10, 11, 12, 14, 99)]
        [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    """

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        return self.first + (self.last - self.first) * self._share(step)


@dataclass(frozen=True)
class CosineSchedule(_Between):
    """A factor that follows half a cosine, slow at both ends: by default a warm-up from 0 to 1.

    Take ``first=1.0, last=0.0`` for a weight that fades, so that the last steps train the task alone.

    Args:
        steps: how many steps the change takes.
        start: the step at which it begins; the factor is ``first`` until then.
        first: the factor at the beginning.
        last: the factor at the end, and ever after.

    Raises:
        ValueError: ``steps`` is no positive integer, ``start`` is negative, or a factor is not finite.

    Example:
        >>> fading = CosineSchedule(4, first=1.0, last=0.0)
        >>> [round(fading(step), 3) for step in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        share = (1.0 - math.cos(math.pi * self._share(step))) / 2.0
        return self.first + (self.last - self.first) * share
