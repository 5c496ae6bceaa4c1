"""The greedy choice of units: each is ablated for good unless the metric then falls too far."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modfast.circuits.checkpoint import fingerprint
from modfast.files import read_arrays, write_arrays
from modfast.layers.names import unwrapped

from .candidates import Candidates
from .evaluation import Evaluation

_FORMAT = "modfast unit walk 1"
_WHAT = "file of an unfinished choice of units"
_SECONDS_BETWEEN = 10.0
_SAME_METRIC = 1e-6

# How many candidates are ablated alone to measure what to expect of each, and after how many wrong guesses
# that is done again.
_ALONE = 64
_MOST_WRONG = 3


class GreedyWalk:
    """Decides about units from the least important on, as a plain loop of ablations does.

    A plain loop ablates one more unit, measures, and keeps the ablation if the metric is still at least
    ``least``. Several decisions are made in one batch: each candidate's set assumes guesses for those before
    it, and a decision counts if all guesses before it were right. They come from expected falls of the
    metric, which add up: at first the scores of the units; after a wrong guess each of the next candidates
    is ablated alone, beside what is ablated by then, and its own fall is measured.

    Args:
        task: the model, its examples and the metric.
        order: int64: the units to decide about, the least important first.
        before: the metric of the whole model.
        tolerance: by how much it may fall. Metrics that differ by no more than rounding are equal.
        scores: ``(num_units,)``, of the whole model; None if those at hand are of another metric.
    """

    def __init__(
        self, task: Evaluation, order: Tensor, before: float, tolerance: float, scores: Tensor | None
    ) -> None:
        self._task, self._candidates = task, Candidates(task)
        self._order, self._falls = order, None if scores is None else scores.clone()
        self._least = least_metric(before, tolerance, task.dtype)
        self.ablated = torch.zeros(task.network.num_units, dtype=torch.bool, device="cpu")
        self.done = 0
        self._value, self._size, self._wrong = before, 4, 0
        self._measured = 0  # up to where in the order falls are measured

    def go_on(self, ablated: Tensor, done: int) -> None:
        """Go on from the state in which another walk was stopped."""
        self.ablated, self.done = ablated, done
        if done:
            self._value = self._task.metric(ablated)

    def step(self) -> None:
        """Decide about one unit at least."""
        if (self._falls is None or self._wrong > _MOST_WRONG) and self._candidates.at_once > 1:
            self._measure()
        else:
            self._decide_together()

    def _measure(self) -> None:
        """Ablate each of the next candidates alone; this decides about the first ones, until one stays."""
        window = self._order[self.done : self.done + min(_ALONE, self._candidates.at_once)]
        sets = self.ablated.repeat(len(window), 1)
        sets[torch.arange(len(window), device="cpu"), window] = True
        values = self._candidates.metrics(self.ablated, sets)
        if self._falls is None:
            self._falls = torch.zeros(len(self.ablated), dtype=torch.float64, device="cpu")
        self._falls[window] = self._value - torch.tensor(values, dtype=torch.float64, device="cpu")
        self._measured, self._wrong = self.done + len(window), 0
        for unit, value in zip(window.tolist(), values, strict=True):
            if self._decide(unit, value):
                break
        self._size = max(self._size, 8)

    def _decide_together(self) -> None:
        """Decide about several candidates, until a guess was wrong."""
        window = self._order[self.done : self.done + min(self._size, self._candidates.at_once)]
        if self.done < self._measured:
            window = window[: self._measured - self.done]
        value, guesses = self._value, []
        falls = torch.zeros(len(window), device="cpu") if self._falls is None else self._falls[window]
        for fall in falls.tolist():
            guesses.append(value - fall >= self._least)
            value -= fall if guesses[-1] else 0.0
        # Each set holds its candidate, and those before it that are guessed to stay ablated.
        rows = torch.arange(len(window), device="cpu")
        before = (rows[:, None] > rows) & torch.tensor(guesses, device="cpu")
        sets = self.ablated.repeat(len(window), 1)
        sets[:, window] |= before | (rows[:, None] == rows)
        values = self._candidates.metrics(self.ablated, sets)
        for number, (unit, found) in enumerate(zip(window.tolist(), values, strict=True)):
            if self._decide(unit, found) != guesses[number]:
                # Guesses were right for about so long lately.
                self._size = max(4, min(self._size, 2 * (number + 1)))
                # Where falls are not measured, one wrong guess is enough to measure them.
                self._wrong += 1 if self.done < self._measured else _MOST_WRONG + 1
                return
        self._size = min(2 * self._size, self._candidates.at_once)
        if self.done == self._measured:
            self._wrong = _MOST_WRONG + 1

    def _decide(self, unit: int, value: float) -> bool:
        """Note what becomes of a unit; return whether it stays ablated."""
        stays = value >= self._least
        self.ablated[unit] = stays
        self.done += 1
        if stays:
            self._value = value
        return stays


def least_metric(before: float, tolerance: float, dtype: torch.dtype) -> float:
    """The lowest metric that is allowed.

    Args:
        before: the metric of the whole model.
        tolerance: by how much it may fall.
        dtype: of the metric's values, whose rounding makes no difference: otherwise it would decide about
            units without any effect.
    """
    share = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype)
    if share is None:
        share = 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 1e-12
    return before - tolerance - share * (1 + abs(before))


def read_unit_walk(path: str | os.PathLike[str]) -> None:
    """Check that a file is that of an unfinished choice of units, of any model.

    Raises:
        ValueError: the file is truncated, damaged or another kind of file.
        OSError: the file cannot be read.
    """
    with read_arrays(path, _FORMAT, _WHAT):
        pass


class WalkFile:
    """The file of an unfinished walk, from which a walk that was killed goes on.

    Args:
        path: the file; None writes nothing.
        digest: of everything that the walk depends on but the metric's code.
        before: the metric of the whole model.
    """

    def __init__(self, path: str | os.PathLike[str] | None, digest: str, before: float) -> None:
        self._path, self._digest, self._before = path, digest, before
        self._saved = time.monotonic()

    def restore(self, walk: GreedyWalk, task: Evaluation) -> None:
        """Bring the walk to the state in the file, if there is one.

        Raises:
            ValueError: the file is damaged, or of another walk.
            OSError: it cannot be read.
        """
        if self._path is None or not os.path.exists(self._path):
            return
        with read_arrays(self._path, _FORMAT, _WHAT) as (entry, arrays):
            count = len(walk.ablated)
            same = entry["digest"] == self._digest and entry["units"] == count
            # The digest covers the model's numbers, not its code and not the metric's.
            if not same or not math.isclose(
                entry["before"], self._before, rel_tol=_SAME_METRIC, abs_tol=_SAME_METRIC
            ):
                raise ValueError("it is of another model, network, metric, other batches or other options")
            bits = np.unpackbits(np.asarray(arrays["ablated"]), count=count).astype(bool)
            done, passes = int(entry["done"]), int(entry["passes"])
        walk.go_on(torch.from_numpy(bits), done)
        task.num_passes = passes

    def save(self, walk: GreedyWalk, task: Evaluation, *, now: bool) -> None:
        """Write the file if ``now`` is set or the last write was long enough ago."""
        if self._path is None or not (now or time.monotonic() - self._saved > _SECONDS_BETWEEN):
            return
        arrays: dict[str, np.ndarray[Any, Any]] = {"ablated": np.packbits(walk.ablated.numpy())}
        entry = {"digest": self._digest, "before": self._before, "done": walk.done}
        write_arrays(
            self._path, _FORMAT, {**entry, "passes": task.num_passes, "units": len(walk.ablated)}, arrays
        )
        self._saved = time.monotonic()


def choose_greedily(
    task: Evaluation,
    order: Tensor,
    before: float,
    tolerance: float,
    scores: Tensor | None,
    checkpoint: str | os.PathLike[str] | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Return the units that end up ablated, bool ``(num_units,)``.

    Args:
        task: the model, its examples and the metric.
        order: the units to decide about, the least important first.
        before: the metric of the whole model.
        tolerance: by how much it may fall.
        scores: ``(num_units,)``, to guess decisions by; None if the metric has no gradient.
        checkpoint: the file of an unfinished walk, or None.
        progress: called with the number of units decided, and of all.

    Raises:
        ValueError, OSError: ``checkpoint`` is damaged, of another walk, or cannot be read or written.
    """
    walk = GreedyWalk(task, order, before, tolerance, scores)
    digest = ""
    if checkpoint is not None:
        options = {"tolerance": tolerance, "ablation": task.ablation, "batches": task.digests()}
        digest = fingerprint(unwrapped(task.model), {"order": order}, options)
    file = WalkFile(checkpoint, digest, before)
    file.restore(walk, task)
    # Saved at once, so that a file that cannot be written raises before the work begins.
    file.save(walk, task, now=True)
    while walk.done < len(order):
        walk.step()
        file.save(walk, task, now=walk.done == len(order))
        if progress is not None:
            progress(walk.done, len(order))
    return walk.ablated
