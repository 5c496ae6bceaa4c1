"""Finding unit circuits: few units with which a model still does its task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from modfast.arguments import UNIT_METHODS, Integer, Number, OneOf, check, check_callback
from modfast.arrays import require_numbers, require_plain
from modfast.batches import Batches
from modfast.metrics import Metric
from modfast.network.units import Network

from .attribution import scores_of
from .evaluation import Evaluation
from .greedy import choose_greedily, least_metric
from .unit_circuit import UnitCircuit


def find_unit_circuit(
    model: nn.Module,
    batches: Batches,
    metric: Metric,
    network: Network,
    *,
    tolerance: float = 0.0,
    method: str = "attribution",
    spaces: Iterable[str] | str | None = None,
    ablation: str = "zero",
    reference: Batches = None,
    steps: int = 1,
    scores: Tensor | None = None,
    name: str = "",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> UnitCircuit:
    """Find few units with which the metric is at least that of the whole model less the tolerance.

    All other units that were asked for are ablated together. Units are ranked by their scores
    (:func:`unit_scores`). Metrics that differ by no more than rounding (``1e-12 (1 + |m|)`` for a float64
    metric, ``1e-6 (1 + |m|)`` for float32) are equal, so that a unit without any effect is not kept.

    Args:
        model: as for :func:`unit_scores`.
        batches: as for :func:`unit_scores`. They are iterated many times, and must be the same each time; a
            generator is read into memory.
        metric: as for :func:`unit_scores`. If ``scores`` are given it needs no gradient, so that
            :func:`modfast.accuracy` serves.
        network: as for :func:`unit_scores`.
        tolerance: by how much the metric may fall; 0 or more.
        method: ``"attribution"`` keeps the units with the highest scores: as few as meet the tolerance, by
            bisection, some ``log2`` of the number of units passes. Choose it to begin with, and for large
            models. If fewer of the ranking's first units would do as well, but some more would not, either
            may be returned. ``"greedy"`` decides about one unit after the other, from the lowest score on:
            it is ablated for good if the metric then still meets the tolerance. Choose it for a small circuit
            in which no unit can be spared; it takes about a pass for each unit, of which many run at once.
        spaces: as for :func:`unit_scores`.
        ablation: as for :func:`ablate_units`.
        reference: as for :func:`unit_scores`.
        steps: of integrated gradients for the scores.
        scores: ``(num_units,)``, to rank units by; NaN for those that are not asked for (nor are
            those that no weight reads). None computes them.
        name: of the task; kept with the circuit.
        checkpoint: for ``"greedy"``: a file with the state of the walk, written every ten seconds. If it
            exists, the walk goes on from there. It is not removed at the end.
        progress: for ``"greedy"`` called with the number of units decided so far and the number of all, else
            with the number of passes.

    Raises:
        ValueError: an argument is out of range; ``scores`` do not fit; ``checkpoint`` is damaged, of another
            walk, or given for another method; or what :func:`unit_scores` raises.
        TypeError: an argument has another type.
        OSError: ``checkpoint`` cannot be read or written.

    Warns:
        UserWarning: the model or the metric cannot run on many ablations at once, which ``"greedy"`` does by
            ``torch.vmap``: it then takes as long as a plain loop.

    Example:
        >>> from modfast import read_network
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> def metric(output, batch):
        ...     return -(output - model(batch)).abs().mean()
        >>> scores = torch.full((network.num_units,), torch.nan)
        >>> scores[network.spaces["0"]] = 0.0
        >>> circuit = find_unit_circuit(
        ...     model, [torch.rand(8, 2)], metric, network, method="greedy", scores=scores
        ... )
        >>> circuit.kept[network.spaces["0"]]
        tensor([False,  True, False, False])
    """
    check("method", method, OneOf(UNIT_METHODS))
    check("tolerance", tolerance, Number(0, included=True))
    check("steps", steps, Integer(1))
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if checkpoint is not None and method != "greedy":
        raise ValueError('checkpoint is for method="greedy"; "attribution" has no state to keep')
    check_callback("progress", progress)
    task = Evaluation(model, batches, metric, network, ablation=ablation, reference=reference, spaces=spaces)
    given = scores is not None
    scores = (
        scores_of(task, steps) if scores is None else checked_scores(scores, task, named=spaces is not None)
    )
    nothing = torch.zeros_like(task.asked)
    before = task.metric(nothing)
    # The highest score first; of equal ones the first unit.
    order = torch.where(task.asked, scores, torch.nan).argsort(descending=True, stable=True)
    order = order[task.asked[order]]
    if method == "greedy":
        guides = None if given else scores
        ablated = choose_greedily(task, order.flip(0), before, tolerance, guides, checkpoint, progress)
    else:
        ablated = _shortest(task, order, before, tolerance, progress)
    after = task.metric(ablated)
    reads = {key: units for key, units in task.sides.items() if bool(task.asked[units[units >= 0]].any())}
    return UnitCircuit(
        kept=~ablated,
        scores=torch.where(task.asked, scores, torch.nan),
        spaces=network.spaces,
        method=method,
        ablation=ablation,
        tolerance=tolerance,
        num_examples=task.num_examples,
        num_passes=task.num_passes,
        metric_before=before,
        metric_after=after,
        reads=reads,
        means={key: mean for key, mean in task.means.items() if key in reads},
        name=name,
    )


def checked_scores(scores: Tensor, task: Evaluation, *, named: bool) -> Tensor:
    """Scores that were given, of which numbers say which units are asked for; the task then asks for these.

    Args:
        scores: as for :func:`find_unit_circuit`.
        task: what is measured.
        named: whether the caller named spaces: then all of their units must have scores, and scores of other
            units are not looked at.

    Raises:
        ValueError: scores do not fit, are infinite, or NaN where they must be numbers.
        TypeError: they are no tensor.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a tensor, got {type(scores).__name__}")
    require_plain("scores", scores)
    require_numbers("scores", scores)
    if scores.layout != torch.strided:
        raise ValueError(f"scores must be dense, got layout {scores.layout}")
    if scores.shape != task.asked.shape or not scores.is_floating_point():
        raise ValueError(
            f"scores must be floating-point, ({len(task.asked)},), one for each unit of the network, got "
            f"{tuple(scores.shape)}, {scores.dtype}"
        )
    scores = scores.detach().cpu().to(torch.float64)
    if bool(scores.isinf().any()):
        raise ValueError("scores must be finite, or NaN for units that are not asked for, got infinity")
    given = ~scores.isnan()
    if named and not bool((given | ~task.asked).all()):
        raise ValueError("scores must be numbers for all units of spaces, some are NaN")
    task.ask(given & task.asked if named else given)
    return scores


def _shortest(
    task: Evaluation,
    order: Tensor,
    before: float,
    tolerance: float,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """All units that were asked for, less the fewest of the first in order with which the metric is met."""
    fails, meets = -1, len(order)
    passes, most = 0, max(len(order), 1).bit_length()

    def without(kept: int) -> Tensor:
        ablated = task.asked.clone()
        ablated[order[:kept]] = False
        return ablated

    while meets - fails > 1:
        middle = (fails + meets) // 2
        value = task.metric(without(middle))
        if value >= least_metric(before, tolerance, task.dtype):
            meets = middle
        else:
            fails = middle
        passes += 1
        if progress is not None:
            progress(passes, max(most, passes))
    return without(meets)
