"""The metric of a model some of whose units are ablated."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from modfast.arrays import require_numbers, require_plain
from modfast.batches import Batches, each_batch, inputs_of, is_one_batch, num_examples
from modfast.layers.layer import listed_choices
from modfast.layers.running import call_model, copied, device_of, evaluating, moved, with_leaves
from modfast.metrics import Metric
from modfast.network.ablation import (
    Baseline,
    Mean,
    Replacing,
    Resampled,
    Zero,
    ablatable,
    check_ablation,
    check_units,
    refuse_routed,
    run,
)
from modfast.network.reads import Change, Read, Reads, sides_read
from modfast.network.units import INPUT, Network

_WRITES_STREAM = ("attention_output", "mlp_output", "expert_output")


class Evaluation:
    """A task: a model, its examples, and what is measured; runs it with some units ablated.

    Args:
        model: the model of ``network``; it runs in evaluation mode and is not changed.
        batches: as for :func:`modfast.unit_scores`. They are iterated once for each measurement.
        metric: a function of the output and of the batch.
        network: its units.
        ablation: ``"zero"``, ``"mean"`` or ``"resample"``.
        reference: batches for the last two.
        spaces: names or globs of the spaces whose units may be ablated; None takes all inside.

    Attributes:
        asked: bool, ``(num_units,)``: the units that may be ablated.
        dtype: of the metric's values, once it was measured.
        num_passes: how often all examples have gone through the model, not counting the reference.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        metric: Metric,
        network: Network,
        *,
        ablation: str = "zero",
        reference: Batches = None,
        spaces: Iterable[str] | str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(network, Network):
            raise TypeError(
                f"network must be a Network, as read_network returns, got {type(network).__name__}"
            )
        if not callable(metric):
            raise TypeError(f"metric must be callable, got {type(metric).__name__}")
        check_ablation(ablation, reference)
        self.model, self._metric, self.network, self.ablation = model, metric, network, ablation
        self.asked = asked_units(network, spaces)
        self.sides = sides_read(network)
        self.device = device_of(model)
        self._batches = _Repeated(batches, "batches")
        self._reference = None if reference is None else _Repeated(reference, "reference")
        self.num_passes = 0
        self._num_examples: int | None = None
        self._mean: Mean | None = None
        self.dtype = torch.float64
        self._check_asked()

    def ask(self, units: Tensor) -> None:
        """Let these units be ablated in place of those of ``spaces``, bool ``(num_units,)``.

        Those that no weight reads are left out.

        Raises:
            ValueError: no weight reads any of them, or there is none.
        """
        if not units.any():
            raise ValueError("scores must be numbers for at least one unit, all are NaN")
        self.asked = check_units(self.network, units)
        self._check_asked()

    def _check_asked(self) -> None:
        if self.ablation == "resample":
            refuse_routed(self.network, self.asked)
        # Raises now what it would raise later.
        Reads(self.model, self.sides, self.asked, _unchanged)

    def metric_of(self, output: Any, batch: Any) -> Any:
        """What the metric says of an output; it gets a copy of the batch, as it may write to it."""
        return self._metric(output, copied(batch))

    @property
    def num_examples(self) -> int:
        """The number of examples in all batches."""
        if self._num_examples is None:
            self._num_examples = sum(num_examples(inputs_of(batch), "batches") for batch in self._batches)
        return self._num_examples

    @property
    def num_batches(self) -> int:
        """The number of batches; 0 if it is not known."""
        return self._batches.number

    @property
    def means(self) -> dict[str, Tensor]:
        """For mean ablation the mean of what each column reads of the reference; else empty."""
        return {} if self.ablation != "mean" else self._over_reference().means

    def digests(self) -> list[list[int]]:
        """Checksums of all batches, and of those of the reference."""
        both = [self._batches] if self._reference is None else [self._batches, self._reference]
        return [[_digest(batch) for batch in each] for each in both]

    def metric(self, ablated: Tensor) -> float:
        """The mean of the metric over all examples, if these units are ablated, bool ``(num_units,)``.

        Raises:
            ValueError: the metric is not finite, or has another shape.
        """
        total, count = 0.0, 0
        for values, size in self._values(ablated):
            total += float(values.sum()) if values.dim() else float(values) * size
            count += size
        return total / count

    def per_example(self, ablated: Tensor) -> Tensor:
        """The metric for each example, float64 ``(n,)``.

        Raises:
            ValueError: the metric returns one number for several examples.
        """
        found = []
        for values, size in self._values(ablated):
            if values.dim() == 0 and size > 1:
                raise ValueError(
                    f"metric must return one number per example here, ({size},), it returns a scalar"
                )
            found.append(values.reshape(size))
        return torch.cat(found)

    def _values(self, ablated: Tensor) -> Iterator[tuple[Tensor, int]]:
        self.num_passes += 1
        count = 0
        for batch, baseline in self.examples():
            size = num_examples(inputs_of(batch), "batches")
            change = Replacing(ablated, baseline) if ablated.any() else _unchanged
            with torch.inference_mode(False), evaluating(self.model):
                with Reads(self.model, self.sides, ablated, change).caught():
                    output = call_model(self.model, inputs_of(batch))
                values = measured(self.metric_of(output, batch), size)
            self.dtype = values.dtype
            count += size
            yield values.cpu().to(torch.float64), size
        self._num_examples = count

    def examples(self) -> Iterator[tuple[Any, Baseline]]:
        """Each batch, on the model's device, and what units are replaced by for it."""
        if self.ablation == "zero":
            for batch in self._batches:
                yield moved(ordinary(batch), self.device), Zero()
        elif self.ablation == "mean":
            mean = self._over_reference()
            for batch in self._batches:
                yield moved(ordinary(batch), self.device), mean
        else:
            yield from self._paired()

    def _over_reference(self) -> Mean:
        if self._mean is None:
            mean = Mean(self.sides)
            assert self._reference is not None
            for batch in self._reference:
                self._read(batch, mean.add)
            self._mean = mean
        return self._mean

    def _paired(self) -> Iterator[tuple[Any, Baseline]]:
        assert self._reference is not None
        others = iter(self._reference)
        missing = object()
        for batch in self._batches:
            other = next(others, missing)
            sizes = [
                num_examples(inputs_of(each), "batches") for each in (batch, other) if each is not missing
            ]
            if len(sizes) < 2 or sizes[0] != sizes[1]:
                raise ValueError(
                    "reference must pair each batch with one of as many examples: batches have one of "
                    f"{sizes[0]}, the reference {'none' if len(sizes) < 2 else f'one of {sizes[1]}'}"
                )
            baseline = Resampled()
            self._read(other, baseline.add)
            yield moved(ordinary(batch), self.device), baseline
        if next(others, missing) is not missing:
            raise ValueError("reference must have as many batches as batches, it has more")

    def _read(self, batch: Any, note: Change) -> None:
        run(self.model, self.sides, self.asked, note, inputs_of(ordinary(batch)))


def _unchanged(_: Read, activations: Tensor) -> Tensor:
    return activations


def measured(value: Any, size: int) -> Tensor:
    """Check what a metric returned for a batch of ``size`` examples.

    Raises:
        ValueError: it is not finite, or neither a scalar nor one number per example.
        TypeError: it is no tensor and no number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(value, dtype=torch.float64, device="cpu")
    if not isinstance(value, Tensor):
        raise TypeError(f"metric must return a tensor, got {type(value).__name__}")
    require_plain("metric", value)
    require_numbers("metric", value)
    if value.is_complex() or tuple(value.shape) not in ((), (size,)):
        raise ValueError(
            f"metric must return real numbers, one for the batch, (), or one per example, ({size},), "
            f"got shape {tuple(value.shape)}, {value.dtype}"
        )
    if not bool(value.detach().isfinite().all()):
        shown = next(float(each) for each in value.detach().reshape(-1) if not math.isfinite(float(each)))
        raise ValueError(f"metric must be finite, got {shown}")
    return value


def asked_units(network: Network, spaces: Iterable[str] | str | None) -> Tensor:
    """The units of some spaces that a weight reads, bool ``(num_units,)``.

    Args:
        network: the units.
        spaces: names or globs. None takes neurons, heads and channels: not what the caller gives, tokens and
            positions, and the residual stream (what an embedding writes, or several blocks).

    Raises:
        ValueError: a space is unknown, or none of these units is read by a weight.
    """
    read = ablatable(network)
    asked = torch.zeros_like(read)
    names = list(network.spaces)
    if spaces is None:
        chosen = [name for name in names if _is_inside(network, name)]
    else:
        chosen = []
        for pattern in listed_choices(spaces, "spaces"):
            if not isinstance(pattern, str):
                raise TypeError(f"spaces must be names or globs, got {type(pattern).__name__}")
            found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(
                    f"spaces must be among {', '.join(map(repr, names))}, or globs of these, got {pattern!r}"
                )
            chosen += found
    for name in chosen:
        asked[network.spaces[name]] = True
    asked &= read
    if not asked.any():
        what = "no unit inside it" if spaces is None else f"no unit of {', '.join(map(repr, chosen)) or '[]'}"
        raise ValueError(f"spaces: {what} is read by a weight; the network has {', '.join(map(repr, names))}")
    return asked


def _is_inside(network: Network, name: str) -> bool:
    """Whether a space is of neurons, heads or channels."""
    space = network.spaces[name]
    if name in (INPUT, "residual") or name.endswith(".inputs"):
        return False

    def within(units: Tensor) -> bool:
        return bool(((units >= space.start) & (units < space.stop)).any())

    layers = network.layers.values()
    if any("embedding" in layer.role and within(layer.col_units) for layer in layers):
        return False
    return sum(layer.role in _WRITES_STREAM and within(layer.row_units) for layer in layers) < 2


def ordinary(batch: Any) -> Any:
    """The batch with ordinary tensors in place of those made in inference mode, which autograd refuses."""

    def change(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    with torch.inference_mode(False):
        return with_leaves(batch, change)


class _Repeated:
    """Batches that may be iterated several times, and must be the same each time."""

    def __init__(self, batches: Batches, argument: str) -> None:
        self._argument = argument
        self._held: Any = batches
        if isinstance(batches, Iterator):
            self._held = list(each_batch(batches, argument))
        self._fixed = isinstance(self._held, (list, tuple, Tensor))
        self._digests: list[int] | None = None

    @property
    def number(self) -> int:
        """How many there are; 0 if it is not known."""
        if is_one_batch(self._held):
            return 1
        try:
            return len(self._held)
        except TypeError:  # a loader of a stream has no length
            return 0

    def __iter__(self) -> Iterator[Any]:
        if self._fixed:
            yield from each_batch(self._held, self._argument)
            return
        digests: list[int] = []
        for batch in each_batch(self._held, self._argument):
            digests.append(_digest(batch))
            earlier = self._digests
            if earlier is not None and earlier[len(digests) - 1 : len(digests)] != digests[-1:]:
                raise ValueError(
                    f"{self._argument} must give the same batches at each iteration, and has given others: "
                    "make a loader without shuffling and random changes, or give a list"
                )
            yield batch
        if self._digests is not None and len(digests) != len(self._digests):
            raise ValueError(
                f"{self._argument} must give as many batches at each iteration, it has given "
                f"{len(self._digests)}, then {len(digests)}"
            )
        self._digests = digests


def _digest(batch: Any) -> int:
    """A checksum of all tensors in a batch."""
    sums = [0]

    def note(value: Any) -> Any:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            plain = value.detach().cpu().contiguous().reshape(-1)
            sums[0] = zlib.crc32(plain.view(torch.uint8).numpy().data, sums[0])
        return value

    with_leaves(batch, note)
    return sums[0]
