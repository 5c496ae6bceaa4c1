"""The metric for several sets of ablated units, as many at once as are worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from .candidates import Candidates
from .evaluation import Evaluation

_FEWEST = 4
"""As many sets or fewer run one by one: to prepare for more takes about a pass."""


def metrics_of(task: Evaluation, sets: Iterable[Tensor], total: int, note: Callable[[int], None]) -> Tensor:
    """The metric for each set.

    Args:
        task: what is measured.
        sets: ``total`` sets, each bool, ``(num_units,)``; taken one after the other, so that not all are in
            memory.
        total: how many there are.
        note: called with the number of sets measured so far.

    Returns:
        float64, ``(total,)``.

    Warns:
        UserWarning: the model or the metric cannot run on several sets at once.
    """
    found: list[float] = []
    for candidates, chunk in _chunks(task, sets, total):
        if candidates is None:
            found += [task.metric(each) for each in chunk]
        else:
            found += candidates.metrics(torch.zeros_like(task.asked), chunk)
        note(len(found))
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def per_example_of(
    task: Evaluation, sets: Iterable[Tensor], total: int, note: Callable[[int], None]
) -> Iterator[Tensor]:
    """The metric for each set and example; as :func:`metrics_of`.

    Yields:
        For each set float64, ``(n,)``.

    Raises:
        ValueError: the metric returns one number for several examples.
    """
    done = 0
    for candidates, chunk in _chunks(task, sets, total):
        if candidates is None:
            found = [task.per_example(each) for each in chunk]
        else:
            found = candidates.per_example(torch.zeros_like(task.asked), chunk)
        done += len(chunk)
        note(done)
        yield from found


def _chunks(
    task: Evaluation, sets: Iterable[Tensor], total: int
) -> Iterator[tuple[Candidates | None, Tensor]]:
    """So many sets as run at once, and what runs them; None if they are too few."""
    left = iter(sets)
    candidates = Candidates(task) if total > _FEWEST else None
    while total > 0:
        chunk = torch.stack(list(islice(left, 1 if candidates is None else candidates.at_once)))
        total -= len(chunk)
        yield candidates, chunk
