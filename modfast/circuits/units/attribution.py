"""Scores of units by attribution: how much the metric falls if a unit is ablated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from modfast.arguments import Integer, check, check_callback
from modfast.batches import Batches, inputs_of, num_examples
from modfast.devices import widest_float
from modfast.layers.running import call_model, preserved
from modfast.layers.source import in_evaluation_mode
from modfast.metrics import Metric
from modfast.network.ablation import Baseline
from modfast.network.reads import Read, Reads
from modfast.network.units import Network

from .evaluation import Evaluation, measured


def unit_scores(
    model: nn.Module,
    batches: Batches,
    metric: Metric,
    network: Network,
    *,
    spaces: Iterable[str] | str | None = None,
    ablation: str = "zero",
    reference: Batches = None,
    steps: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return how much the metric falls if a unit is ablated, for all units at once, by attribution.

    With ``x`` for what weights read of a unit, ``x'`` for what ablation puts in its place and ``m`` for the
    metric, the score is ``(x - x') dm/dx``, summed over all that weights read of the unit and averaged over
    examples: the fall to first order. One forward and one backward pass for each batch and step serve all
    units; the weights' own gradients are not computed. Sums are in float64, where the device has it.

    Args:
        model: the model of ``network``, or one like it; also compiled, wrapped or adapted. It runs in
            evaluation mode (dropout is off, batch norms use their running statistics) and is not changed.
        batches: an iterable of batches (a list, a ``DataLoader``, a generator): tensors, tuples of positional
            arguments or mappings of keyword arguments, as the model takes them. Of a pair, as a
            ``DataLoader`` of inputs and targets gives it, the model is called with the first. One batch may
            stand for itself: a tensor, a mapping, or a pair of tensors. The first dimension of the first
            tensor counts examples.
        metric: a function of the model's output and of the batch, higher is better, that autograd can
            differentiate: a scalar, the mean over the batch, or one number per example. See
            :mod:`modfast.metrics` for ready ones.
        network: the units, as :func:`read_network` returns them.
        spaces: names or globs of the spaces (:attr:`Network.spaces`) to score. None takes all units inside:
            neurons, heads and channels, but not the residual stream, the input, tokens, positions and logits.
        ablation: as for :func:`ablate_units`.
        reference: batches for ``"mean"``; for ``"resample"`` a batch for each of ``batches``, whose examples
            are paired. They run through the model once.
        steps: 1 takes the gradient at the model as it is; choose it to rank units quickly. More take it at as
            many points between the model with all these units ablated and the model as it is (integrated
            gradients, by the midpoint rule), where the scores sum to the fall of the metric if all are
            ablated; choose 5 to 20 where a unit saturates, and its gradient says little.
        progress: called with the number of batches done so far, over all steps, and the number of all; 0 if
            it is not known, as with some loaders.

    Returns:
        float64, ``(num_units,)``, on the CPU; NaN for units that were not asked for.

    Raises:
        ValueError: there is no batch, or an empty one; a space is unknown; the metric is not finite, has
            another shape, or does not depend on the units by anything that has a gradient; a part of the
            model that reads the units runs without gradients; a score is not finite; ``steps`` is below 1; or
            what :func:`ablate_units` raises.
        TypeError: an argument has another type.

    Source: "Attribution patching" (Nanda 2023; Syed et al., arXiv 2310.10348); integrated gradients:
    Sundararajan et al., arXiv 1703.01365; for units of networks: Hanna et al., arXiv 2403.17806.

    Example:
        >>> from modfast import read_network
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, 0.0]])
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> scores = unit_scores(model, [torch.rand(8, 2)], lambda output, batch: output.mean(), network)
        >>> bool(scores[network.spaces["0"]][1] == 0)
        True
    """
    check("steps", steps, Integer(1))
    check_callback("progress", progress)
    task = Evaluation(model, batches, metric, network, ablation=ablation, reference=reference, spaces=spaces)
    return scores_of(task, steps, progress)


@torch.inference_mode(False)
def scores_of(
    task: Evaluation,
    steps: int,
    progress: Callable[[int, int], None] | None = None,
    ablated: Tensor | None = None,
) -> Tensor:
    """The scores of a task's units; see :func:`unit_scores`.

    Args:
        task: the model, its examples and the metric.
        steps: of integrated gradients.
        progress: called with the number of batches done.
        ablated: bool, ``(num_units,)``: units that are ablated meanwhile, whose scores say nothing.
    """
    wide = widest_float(task.device)
    totals = torch.zeros(task.network.num_units, dtype=wide, device=task.device)
    examples = done = 0
    total = task.num_batches * steps
    # One step is taken at the model itself: the gradient that "attribution patching" means.
    shares = [1.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]
    for batch, baseline in task.examples():
        size = num_examples(inputs_of(batch), "batches")
        for share in shares:
            _add_gradients(task, batch, size, baseline, share, totals, ablated)
            done += 1
            if progress is not None:
                progress(done, total)
        examples += size
    task.num_passes += steps
    scores = (totals / (examples * steps)).cpu().to(torch.float64)
    bad = (task.asked & ~scores.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"batches, reference: what weights read, and the metric's gradient, must be finite; the score of "
            f"unit {int(bad[0])} is {float(scores[bad[0]])}"
        )
    return torch.where(task.asked, scores, torch.nan)


def _add_gradients(
    task: Evaluation,
    batch: Any,
    size: int,
    baseline: Baseline,
    share: float,
    totals: Tensor,
    ablated: Tensor | None,
) -> None:
    model = task.model
    with torch.inference_mode(False), preserved(model), in_evaluation_mode(model), torch.enable_grad():
        # Every read depends on this number: one gradient reaches all of them, and no weight's is needed.
        start = torch.zeros((), device=task.device, requires_grad=True)
        off = torch.zeros_like(task.asked) if ablated is None else ablated
        tap = _Tap(task.asked, off, baseline, share, totals, start)
        with Reads(model, task.sides, task.asked, tap).caught():
            output = call_model(model, inputs_of(batch))
        value = measured(task.metric_of(output, batch), size)
        total = value.sum() if value.dim() else value * size
        # Caught again, for a model that computes parts anew on the way back.
        with Reads(model, task.sides, task.asked, tap).caught():
            if tap.count and not total.requires_grad:
                raise ValueError(
                    "metric must depend on the units by what has a gradient: its value has none (is it a "
                    "count, as accuracy is, or does the model run without gradients?)"
                )
            found = _derivative(total, start) if tap.count else None
    if found is None:
        raise ValueError("metric must depend on the units that were asked for, and depends on none of them")


def _derivative(value: Tensor, start: Tensor) -> Tensor | None:
    """What ``torch.autograd.grad`` returns; None if the value does not depend on ``start``.

    That function runs outside of the mode that catches reads, so that what a model computes anew on the way
    back would not be caught: the engine is called as it calls it.
    """
    one = torch.ones_like(value)
    found: tuple[Tensor | None, ...] = torch.autograd.Variable._execution_engine.run_backward(
        (value,), (one,), False, False, (start,), allow_unreachable=True, accumulate_grad=False
    )
    return found[0]


class _Tap:
    """Lets gradients pass, and adds up what they say of units."""

    def __init__(
        self,
        asked: Tensor,
        ablated: Tensor,
        baseline: Baseline,
        share: float,
        totals: Tensor,
        start: Tensor,
    ) -> None:
        self.baseline, self.share, self.totals, self.start = baseline, share, totals, start
        self.asked = (asked & ~ablated).to(totals.device)
        self.ablated = ablated.to(totals.device) if bool(ablated.any()) else None
        self.count = 0

    def __call__(self, read: Read, activations: Tensor) -> Tensor:
        self.count += 1
        value = self.baseline.value(read, activations)
        units, known = read.units.clamp(min=0), read.units >= 0
        asked = self.asked[units] & known
        if not torch.is_grad_enabled() and bool(asked.any()):
            raise ValueError(
                f"model: layer {read.key!r} must run with gradients, so that the units which it reads can be "
                "scored: it runs in torch.no_grad, in a torch.autograd.Function, or in a checkpoint with "
                "use_reentrant=True"
            )
        if self.ablated is not None:
            off = read.along(self.ablated[units] & known, activations.dim())
            activations = torch.where(off, value, activations)
        changed: Tensor = _Gradient.apply(activations, self.start, self, read, value, asked)
        return changed

    def add(self, read: Read, asked: Tensor, difference: Tensor, gradient: Tensor) -> None:
        """Add the products of differences with gradients to the units' totals."""
        along = {dim % gradient.dim() for dim in read.dims}
        others = [dim for dim in range(gradient.dim()) if dim not in along]
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()
        product = difference * gradient
        wide = self.totals.dtype
        product = product.sum(others, dtype=wide) if others else product.to(wide)
        chosen = asked.reshape(product.shape)
        self.totals.index_add_(0, read.units.reshape(product.shape)[chosen], product[chosen])


class _Gradient(torch.autograd.Function):
    """What a weight reads, between its replacement and itself."""

    @staticmethod
    def forward(
        ctx: Any, activations: Tensor, start: Tensor, tap: _Tap, read: Read, value: Any, asked: Tensor
    ) -> Tensor:
        ctx.tap, ctx.read, ctx.asked, ctx.value = tap, read, asked, value
        ctx.save_for_backward(activations)
        if tap.share == 1:
            return activations.view_as(activations)
        mixed = value + tap.share * (activations - value)
        return torch.where(read.along(asked, activations.dim()), mixed, activations)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (activations,) = ctx.saved_tensors
        tap, read = ctx.tap, ctx.read
        difference = activations if isinstance(ctx.value, float) else activations - ctx.value
        tap.add(read, ctx.asked, difference, gradient)
        if tap.share != 1:
            scaled = read.along(ctx.asked, gradient.dim())
            gradient = torch.where(scaled, tap.share * gradient, gradient)
        return gradient, torch.zeros_like(tap.start), None, None, None, None
