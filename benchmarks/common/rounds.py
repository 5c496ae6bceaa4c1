"""Time contestants side by side, in rounds. Shared by the tables of all families."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

# For a call of this length the state of the caches at its start does not matter.
_LONG_SECONDS = 1.0


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """Return how long a call takes; on a GPU by the GPU's clock, from begin to end."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def visit(call: Callable[[], object], device: str = "cpu") -> list[float]:
    """Return the seconds of calls in a row: three or more, of 10 ms in all or more; or of one long call."""
    first = seconds_of(call, device)  # the previous contestant left its data in the caches
    if first > _LONG_SECONDS:
        return [first]
    seconds: list[float] = []
    while sum(seconds) < 0.1 and (len(seconds) < 3 or sum(seconds) < 0.01):
        seconds.append(seconds_of(call, device))
    return seconds


def in_rounds(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    advance: Callable[[], None],
    device: str = "cpu",
    once_above: float = float("inf"),
) -> dict[str, list[float]]:
    """Time every contestant once a round, so that a drift of the machine's speed affects all alike.

    Args:
        calls: the contestants, by name.
        repeats: how many rounds.
        advance: called after each round.
        device: the device that they run on.
        once_above: a contestant whose first call takes more seconds than this is not timed again.

    Returns:
        The seconds of each contestant's calls.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first = {name: seconds_of(call, device) for name, call in calls.items()}
    # Another order each round, so that no contestant always follows the same one.
    order, shuffler = [name for name in calls if first[name] <= once_above], random.Random(0)
    for _ in range(repeats):
        shuffler.shuffle(order)
        for name in order:
            seconds[name] += visit(calls[name], device)
        advance()
    return {name: values or [first[name]] for name, values in seconds.items()}


def quartiles(seconds: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile, in milliseconds."""
    if len(seconds) == 1:
        return [1e3 * seconds[0]] * 3
    return [1e3 * value for value in statistics.quantiles(seconds, n=4)]
