"""The metric for several sets of ablated units, as many at once as are worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    left = iter(sets)
    nothing = torch.zeros_like(task.asked)
    candidates = Candidates(task) if total > _FEWEST else None
    while len(found) < total:
        if candidates is None:
            found.append(task.metric(next(left)))
        else:
            found += candidates.metrics(nothing, torch.stack(list(islice(left, candidates.at_once))))
        note(len(found))
    return torch.tensor(found, dtype=torch.float64, device="cpu")
