"""The metric for many sets of ablated units at once.

``torch.vmap`` runs the model on all sets together. What no set changes is computed once: up to the first
weight that reads different values for different sets, the model works on the examples alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from modfast.batches import inputs_of, num_examples
from modfast.layers.running import call_model, evaluating
from modfast.network.ablation import Baseline, run
from modfast.network.reads import Read, Reads

from .evaluation import Evaluation, measured

# Numbers that one weight reads, over all sets of a call. For larger tensors the system is asked for memory
# anew each time, which takes as long as what is computed in it.
_MOST_NUMBERS = 2**20
_MOST_SETS = 256

# Sets whose changes begin at different depths run in calls of their own if each has so many.
_FEWEST_APART = 8


Measured = TypeVar("Measured", float, Tensor)


class Candidates:
    """Evaluates sets of ablated units of one task, many in one batch.

    Args:
        task: the model, its examples and the metric.

    Attributes:
        at_once: how many sets are worth a call; 1 if the model cannot run several together.
    """

    def __init__(self, task: Evaluation) -> None:
        self._task = task
        self._depths = _depths(task)
        # PyTorch itself loops over many sets in attention on a CPU.
        instead = {functional.scaled_dot_product_attention: _attend}
        self._reads = Reads(task.model, task.sides, task.asked, self._change, instead)
        self._largest = 1
        self._baseline: Baseline | None = None
        self._sets, self._index = task.asked[None], torch.zeros((), dtype=torch.int64, device="cpu")
        self._placed: dict[torch.device, Tensor] = {}
        self._note_sizes()

    def _note_sizes(self) -> None:
        """Run once without sets, to see how much weights read."""
        task = self._task

        def note(read: Read, activations: Tensor) -> Tensor:
            self._largest = max(self._largest, activations.numel())
            return activations

        for batch, _ in task.examples():
            run(task.model, task.sides, task.asked, note, inputs_of(batch))
            break
        self.at_once = max(8, min(_MOST_NUMBERS // self._largest, _MOST_SETS))

    def metrics(self, base: Tensor, sets: Tensor) -> list[float]:
        """The metric for each set.

        Args:
            base: bool, ``(num_units,)``: what most sets ablate.
            sets: bool, ``(sets, num_units)``.
        """
        return self._measured(base, sets, self._task.metric, self._means)

    def per_example(self, base: Tensor, sets: Tensor) -> list[Tensor]:
        """The metric for each set and example: for each set float64 ``(n,)``.

        Raises:
            ValueError: the metric returns one number for several examples.
        """
        return self._measured(base, sets, self._task.per_example, self._by_example)

    def _measured(
        self,
        base: Tensor,
        sets: Tensor,
        of_one: Callable[[Tensor], Measured],
        of_many: Callable[[Tensor], Sequence[Measured]],
    ) -> list[Measured]:
        if self.at_once > 1:
            try:
                found = {
                    place: value
                    for places in self._groups(base, sets)
                    for place, value in zip(places, of_many(sets[places]), strict=True)
                }
                return [found[place] for place in range(len(sets))]
            except (RuntimeError, ValueError, NotImplementedError) as error:
                alone = [of_one(each) for each in sets[:1]]
                warnings.warn(
                    "the model or the metric cannot run on many ablations at once, so they run one by one, "
                    f"which takes many times as long: {_first_line(error)}",
                    stacklevel=3,
                )
                self.at_once = 1
                return alone + [of_one(each) for each in sets[1:]]
        return [of_one(each) for each in sets]

    def _groups(self, base: Tensor, sets: Tensor) -> Iterator[list[int]]:
        """Put sets together, not too many, whose changes begin at about the same depth of the model."""
        changed = torch.where(sets != base, self._depths, self._depths.max() + 1).amin(1)
        group: list[int] = []
        order = changed.argsort(descending=True, stable=True).tolist()
        for number, place in enumerate(order):
            group.append(place)
            left = len(order) - number - 1
            ends = left == 0 or changed[order[number + 1]] != changed[place]
            apart = ends and len(group) >= _FEWEST_APART and left >= _FEWEST_APART
            if left == 0 or apart or len(group) == self.at_once:
                yield group
                group = []

    def _means(self, sets: Tensor) -> list[float]:
        totals = torch.zeros(len(sets), dtype=torch.float64, device="cpu")
        count = 0
        for values, size in self._values(sets):
            for place, value in enumerate(values):
                totals[place] += float(value.sum()) if value.dim() else float(value) * size
            count += size
        return (totals / count).tolist()

    def _by_example(self, sets: Tensor) -> Sequence[Tensor]:
        found = []
        for values, size in self._values(sets):
            if values[0].dim() == 0 and size > 1:
                raise ValueError(
                    f"metric must return one number per example here, ({size},), it returns a scalar"
                )
            found.append(torch.stack(values).reshape(len(sets), size).cpu())
        return torch.cat(found, dim=1).unbind()

    def _values(self, sets: Tensor) -> Iterator[tuple[list[Tensor], int]]:
        """For each batch what the metric returns for each set, float64, and the number of examples."""
        task = self._task
        self._sets = sets
        self._placed = {}
        for batch, baseline in task.examples():
            size = num_examples(inputs_of(batch), "batches")
            self._baseline = baseline

            def of_one(index: Tensor, batch: Any = batch, size: int = size) -> Tensor:
                self._index = index
                with self._reads.caught():
                    output = call_model(task.model, inputs_of(batch))
                value = task.metric_of(output, batch)
                return value if isinstance(value, Tensor) else torch.tensor(value, device=index.device)

            with torch.inference_mode(False), evaluating(task.model):
                values = torch.vmap(of_one)(torch.arange(len(sets), device=task.device))
            yield [measured(value, size).cpu().to(torch.float64) for value in values], size
        task.num_passes += len(sets)

    def _change(self, read: Read, activations: Tensor) -> Tensor:
        device = read.units.device
        if device not in self._placed:
            self._placed[device] = self._sets.to(device)
        off = self._placed[device][:, read.units.clamp(min=0)] & (read.units >= 0)
        if not bool(off.any()):
            return activations
        # Where all sets are alike, activations stay those of the examples alone.
        alike = bool((off == off[:1]).all())
        mask = off[0] if alike else off[self._index]
        assert self._baseline is not None
        value = self._baseline.value(read, activations)
        return torch.where(read.along(mask, activations.dim()), value, activations)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _depths(task: Evaluation) -> Tensor:
    """For each unit the place of the first weight that reads it, in the order of the computation."""
    depths = torch.full((task.network.num_units,), len(task.network.layers), device="cpu")
    for place, layer in enumerate(task.network.layers.values()):
        for side in layer.reads:
            units = (layer.row_units if side == "rows" else layer.col_units).flatten()
            depths[units] = depths[units].clamp(max=place)
    return depths


def _attend(
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **options: Any,
) -> Any:
    # Without a dimension before those of a matrix, there is none to fold the sets into.
    if dropout_p or query.dim() < 3 or not torch._C._functorch.is_batchedtensor(query):
        return func(query, key, value, attn_mask, dropout_p, **options)
    return _Folded.apply(func, query, key, value, attn_mask, options)


class _Folded(torch.autograd.Function):
    """Attention whose sets are folded into the first dimension."""

    @staticmethod
    def forward(
        func: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Any
    ) -> Tensor:
        attended: Tensor = func(query, key, value, mask, **options)
        return attended

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing: candidates need no gradient."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, func: Any, *given: Any) -> tuple[Tensor, int]:
        *tensors, options = given
        size = info.batch_size

        def folded(tensor: Tensor, dim: int | None) -> Tensor:
            moved = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
            return moved.reshape(-1, *moved.shape[2:])

        dims = in_dims[1:5]
        query, key, value = (folded(*each) for each in zip(tensors[:3], dims[:3], strict=True))
        mask = tensors[3]
        if mask is not None and (dims[3] is not None or (mask.dim() == query.dim() and len(mask) > 1)):
            own = mask.expand(size, *mask.shape) if dims[3] is None else mask.movedim(dims[3], 0)
            own = own.reshape(size, *[1] * (query.dim() + 1 - own.dim()), *own.shape[1:])
            mask = own.expand(size, len(query) // size, *own.shape[2:]).reshape(len(query), *own.shape[2:])
        attended = func(query, key, value, mask, **options)
        return attended.reshape(size, -1, *attended.shape[1:]), 0
