"""How contestants are timed side by side: in rounds. Shared by the tables of all families."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

# So long a call makes up for whatever it found in the caches.
_LONG_SECONDS = 1.0


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """How long a call takes; on a GPU by its own clock, from when it begins to when it is done."""
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
    """Seconds of each of a few calls in a row: three and ten milliseconds' worth, or one that takes long."""
    first = seconds_of(call, device)  # finds the processor as the previous contestant left it
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
    """Visits every contestant once a round, so that a drift of the machine's speed hits all alike.

    Args:
        calls: the contestants, by name.
        repeats: how many rounds.
        advance: told after each round.
        device: the one they run on.
        once_above: who takes longer than so many seconds, the first time, is not visited again.

    Returns:
        The seconds of each contestant's calls.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first = {name: seconds_of(call, device) for name, call in calls.items()}
    # In another order each round, so that none always follows the same neighbour.
    order, shuffler = [name for name in calls if first[name] <= once_above], random.Random(0)
    for _ in range(repeats):
        shuffler.shuffle(order)
        for name in order:
            seconds[name] += visit(calls[name], device)
        advance()
    return {name: values or [first[name]] for name, values in seconds.items()}


def quartiles(seconds: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile, in milliseconds."""
    if len(seconds) == 1:
        return [1e3 * seconds[0]] * 3
    return [1e3 * each for each in statistics.quantiles(seconds, n=4)]
