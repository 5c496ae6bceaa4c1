"""Curves of faithfulness: how well the best units do alone, and what the model does without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import Integer, check, check_callback
from modfast.batches import Batches
from modfast.metrics import Metric
from modfast.network.units import Network

from .evaluation import Evaluation
from .faithfulness import FaithfulnessCurve
from .find import checked_scores
from .several import metrics_of

# The sizes of MIB's circuits, as shares of what was ranked.
_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness_curve(
    model: nn.Module,
    batches: Batches,
    metric: Metric,
    network: Network,
    scores: Tensor,
    *,
    sizes: Iterable[int | float] | None = None,
    spaces: Iterable[str] | str | None = None,
    ablation: str = "zero",
    reference: Batches = None,
    n_random: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FaithfulnessCurve:
    """Return the metric with the best units alone, and without them, over numbers of units.

    A ranking of units is good if few of the best ones do the task alone (sufficiency) and the model fails
    without them (necessity). Random rankings of the same units say what any ranking reaches.

    Choose this to compare rankings, since one size favours the ranking that is best there;
    :func:`find_unit_circuit` finds one circuit.

    Args:
        model: as for :func:`unit_scores`; it runs in evaluation mode and is not changed.
        batches: as for :func:`unit_scores`; iterated once for each point, so each time they must be the same.
        metric: as for :func:`unit_scores`, but it need not have a gradient; :func:`modfast.accuracy` will
            do.
        network: the units.
        scores: floating-point, ``(num_units,)``: the higher the better; of equal scores the unit of lower
            index is the better one. NaN for units that are not asked for, which are never ablated.
            :func:`unit_scores` returns such. For CMD, MIB ranks by ``scores.abs()``.
        sizes: integers are numbers of units, from 0 to all that are asked for; floats are shares of these, in
            [0, 1], rounded up to whole units. In any order; sizes that are the same count once. By default 0
            and MIB's shares: 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 %.
        spaces: names or globs of spaces to restrict the curve to. None takes all units that have a score.
        ablation: what the other units are replaced by, as for :func:`ablate_units`.
        reference: as for :func:`unit_scores`.
        n_random: the number of random rankings. Each costs as much as the ranking itself: two passes over
            the examples for each size between none and all.
        seed: seeds the random rankings, drawn uniformly from all rankings of the units.
        progress: called with the number of points measured so far, and of all. Many run at once.

    Returns:
        The :class:`FaithfulnessCurve`.

    Raises:
        ValueError: scores are not one finite number or NaN for each unit, all are NaN or of units
            that no weight reads; a unit of ``spaces`` has none; a size is out of range; ``n_random`` or
            ``seed`` is negative; or what :func:`unit_scores` raises.
        TypeError: scores are no tensor, or a size is no number; or what :func:`unit_scores` raises.

    Warns:
        UserWarning: the model or the metric cannot run on many ablations at once, as for
            :func:`find_unit_circuit`: then they run one by one.

    Source: MIB (arXiv 2504.13151), of which :class:`FaithfulnessCurve` says what differs.

    Example:
        >>> from modfast import read_network
        >>> model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.ones(4, 2)
        >>> model[2].weight.data = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> scores = torch.full((network.num_units,), torch.nan)
        >>> scores[network.spaces["0"]] = torch.tensor([2.0, 1.0, 0.0, 0.0])
        >>> mean_output = lambda output, batch: output.mean()
        >>> curve = faithfulness_curve(model, torch.ones(3, 2), mean_output, network, scores, sizes=[0, 1, 2])
        >>> curve.sufficiency
        tensor([0., 4., 6.], dtype=torch.float64)
        >>> curve.necessity
        tensor([6., 2., 0.], dtype=torch.float64)
    """
    check("n_random", n_random, Integer(0))
    check("seed", seed, Integer(0))
    check_callback("progress", progress)
    task = Evaluation(model, batches, metric, network, ablation=ablation, reference=reference, spaces=spaces)
    given = checked_scores(scores, task, named=spaces is not None)
    asked = task.asked
    units = asked.nonzero().flatten()
    chosen = chosen_sizes(sizes, len(units))
    generator = np.random.default_rng(seed)
    rankings = [units[given[units].sort(descending=True, stable=True).indices]]
    rankings += [units[torch.from_numpy(generator.permutation(len(units)))] for _ in range(n_random)]
    inside = [size for size in chosen if 0 < size < len(units)]
    total = 2 * len(inside) * len(rankings)

    def note(done: int) -> None:
        if progress is not None:
            progress(done, 2 + total)

    def sets() -> Iterator[Tensor]:
        for ranking in rankings:
            for size in inside:
                best = torch.zeros_like(asked)
                best[ranking[:size]] = True
                yield asked & ~best
                yield best

    before = task.metric(torch.zeros_like(asked))
    note(1)
    none = task.metric(asked)
    note(2)
    curves = torch.empty(2, len(rankings), len(chosen), dtype=torch.float64, device="cpu")
    sizes_of = torch.tensor(chosen, dtype=torch.int64, device="cpu")
    for place, (alone, without) in ((0, (none, before)), (len(units), (before, none))):
        curves[0, :, sizes_of == place], curves[1, :, sizes_of == place] = alone, without
    between = metrics_of(task, sets(), total, lambda done: note(2 + done))
    is_inside = (sizes_of > 0) & (sizes_of < len(units))
    curves[:, :, is_inside] = between.reshape(len(rankings), len(inside), 2).movedim(-1, 0)
    return FaithfulnessCurve(
        sizes=sizes_of,
        sufficiency=curves[0, 0],
        necessity=curves[1, 0],
        random_sufficiency=curves[0, 1:],
        random_necessity=curves[1, 1:],
        metric_before=before,
        metric_none=none,
        num_asked=len(units),
        ablation=ablation,
        num_examples=task.num_examples,
        num_passes=task.num_passes,
        seed=int(seed),
    )


def chosen_sizes(sizes: Any, count: int) -> list[int]:
    """The sizes of :func:`faithfulness_curve` as numbers of units, of ``count`` in all, ascending."""
    if sizes is None:
        sizes = (0, *_SHARES)
    elif isinstance(sizes, (Tensor, np.ndarray)):
        sizes = sizes.tolist()
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise TypeError(f"sizes must be several numbers, got {sizes!r}")
    chosen = set()
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, Real):
            raise TypeError(f"sizes must hold integers (numbers of units) or floats (shares), got {size!r}")
        number = float(size)
        if isinstance(size, Integral):
            if not 0 <= number <= count:
                raise ValueError(f"sizes must lie in [0, {count}], the number of units, got {size}")
            chosen.add(int(size))
        else:
            if not 0 <= number <= 1:
                raise ValueError(f"sizes that are floats are shares, and must lie in [0, 1], got {size}")
            # Less float32's rounding: 0.1 of 30 units are 3, though 0.1 in float32 is a little above 0.1. The
            # whole is the whole, also of millions.
            chosen.add(count if number == 1 else math.ceil(number * count * (1 - 2e-7)))
    if not chosen:
        raise ValueError("sizes must hold at least one size, got none")
    return sorted(chosen)
