"""Ablating units: what every weight reads of them is replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modfast.arguments import OneOf, check
from modfast.arrays import as_tensor, require_numbers, require_plain
from modfast.batches import Batches, each_batch, inputs_of
from modfast.devices import widest_float
from modfast.layers.running import call_model, device_of, evaluating, moved

from .reads import ROWS, Change, Read, Reads, sides_read
from .units import Network

ABLATIONS = ("zero", "mean", "resample")


class Baseline(Protocol):
    """What units are replaced by."""

    def value(self, read: Read, activations: Tensor) -> Tensor | float:
        """What a weight reads in place of these activations, broadcast against them."""
        ...


class Zero:
    """Units are replaced by 0."""

    def value(self, read: Read, activations: Tensor) -> float:
        """Zero."""
        return 0.0


class Mean:
    """Units are replaced by their mean over a reference, for each column that reads them.

    Args:
        sides: as :func:`modfast.network.reads.sides_read` returns them.
        means: key to the mean of each column; of a side that is not read, none.
    """

    def __init__(self, sides: Mapping[str, Tensor], means: Mapping[str, Tensor] | None = None) -> None:
        self._sums = {
            key: torch.zeros(units.shape, dtype=torch.float64, device="cpu") for key, units in sides.items()
        }
        self._counts = {key: torch.zeros_like(total) for key, total in self._sums.items()}
        for key, mean in (means or {}).items():
            self._sums[key], self._counts[key] = mean.to(torch.float64), torch.ones_like(mean)
        self._placed: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def add(self, read: Read, activations: Tensor) -> Tensor:
        """Count what a weight reads of the reference."""
        _require_read(read)
        others = _other_dims(read, activations)
        total = activations.detach()
        wide = widest_float(total.device)
        total = total.sum(others, dtype=wide) if others else total.to(wide)
        self._sums[read.key][read.index] += total.cpu()
        self._counts[read.key][read.index] += activations.numel() // max(total.numel(), 1)
        return activations

    @property
    def means(self) -> dict[str, Tensor]:
        """The mean of each column, float64, by key; NaN for one that nothing reads."""
        return {
            key: total / self._counts[key] for key, total in self._sums.items() if self._counts[key].any()
        }

    def value(self, read: Read, activations: Tensor) -> Tensor:
        """The means."""
        _require_read(read)
        if not bool(self._counts[read.key][read.index].all()):
            raise ValueError(f"reference: nothing in it is read by layer {read.key!r}, so there is no mean")
        place = (read.key, activations.device, activations.dtype)
        if place not in self._placed:
            mean = self._sums[read.key] / self._counts[read.key]
            if not bool(mean[self._counts[read.key] > 0].isfinite().all()):
                raise ValueError(
                    f"reference: what layer {read.key!r} reads must be finite, got NaN or infinity"
                )
            self._placed[place] = mean.to(activations.device, activations.dtype)
        return read.along(self._placed[place][read.index], activations.dim())


class Resampled:
    """Units are replaced by their values for other examples, one for each example of a batch."""

    def __init__(self) -> None:
        self._read: dict[str, list[Tensor]] = {}
        self._times: dict[str, int] = {}
        self._call = 0

    def add(self, read: Read, activations: Tensor) -> Tensor:
        """Keep what a weight reads of the reference."""
        _require_read(read)
        # A copy: the model may write to what it has read.
        self._read.setdefault(read.key, []).append(activations.detach().clone())
        return activations

    def value(self, read: Read, activations: Tensor) -> Tensor:
        """What the weight has read of the reference at this time."""
        _require_read(read)
        kept = self._read.get(read.key)
        if not kept:
            raise ValueError(f"reference: layer {read.key!r} reads nothing of it, so there is no other value")
        if read.call != self._call:
            # Counted anew: an exception may have ended the call before.
            self._call, self._times = read.call, {}
        time = 0 if len(kept) == 1 and not read.call else self._times.get(read.key, 0)
        self._times[read.key] = time + 1
        if time >= len(kept) or (not read.call and len(kept) > 1):
            raise ValueError(
                f"reference: layer {read.key!r} reads {len(kept)} times of it in one call of the model, and "
                "must read no oftener of the batch, within a call of the whole model: else it cannot be told "
                "which times are paired"
            )
        other = kept[time]
        if other.shape != activations.shape:
            raise ValueError(
                f"reference must pair one example of the same length with each: layer {read.key!r} reads "
                f"shape {tuple(activations.shape)}, of the reference {tuple(other.shape)}"
            )
        return other


def _require_read(read: Read) -> None:
    if read.looked_up:
        raise ValueError(
            f"units: those of {read.key.removesuffix(ROWS)!r} are tokens or positions, which have no values: "
            'ablation must be "zero" for them'
        )


def _other_dims(read: Read, activations: Tensor) -> list[int]:
    along = {dim % activations.dim() for dim in read.dims}
    return [dim for dim in range(activations.dim()) if dim not in along]


class Replacing:
    """Replaces what weights read of some units.

    Args:
        ablated: bool, ``(num_units,)``, on the CPU.
        baseline: what by.
    """

    def __init__(self, ablated: Tensor, baseline: Baseline) -> None:
        self._ablated, self._baseline = ablated, baseline
        self._placed: dict[torch.device, Tensor] = {}

    def __call__(self, read: Read, activations: Tensor) -> Tensor:
        """Return what the weight reads in place of the activations."""
        device = activations.device
        if device not in self._placed:
            self._placed[device] = self._ablated.to(device)
        off = self._placed[device][read.units.clamp(min=0)] & (read.units >= 0)
        value = self._baseline.value(read, activations)
        # Selected, not multiplied: an infinite number that is ablated must not become NaN.
        return torch.where(read.along(off, activations.dim()), value, activations)


def ablatable(network: Network) -> Tensor:
    """The units that a weight reads, bool ``(num_units,)``: to ablate others would change nothing."""
    read = torch.zeros(network.num_units, dtype=torch.bool, device="cpu")
    for units in sides_read(network).values():
        read[units[units >= 0]] = True
    return read


def check_units(network: Network, units: Any) -> Tensor:
    """Return units as bool ``(num_units,)``.

    A mask may hold units that no weight reads, as those outside a cluster do: they are left out. An index
    names a unit, and must name one that is read.

    Raises:
        ValueError: they are out of range; an index is of a unit that no weight reads, or a mask of none else.
        TypeError: they are neither bools nor integers.
    """
    given = as_tensor("units", units)
    require_plain("units", given)
    require_numbers("units", given)
    number = network.num_units
    if given.dim() != 1:
        raise ValueError(f"units must be 1-D, got shape {tuple(given.shape)}")
    chosen = torch.zeros(number, dtype=torch.bool, device="cpu")
    if given.dtype == torch.bool:
        if len(given) != number:
            raise ValueError(
                f"units must be {number} bools, one for each unit of the network, got {len(given)}"
            )
        chosen = given.detach().cpu().clone()
    elif given.numel() and (given.is_floating_point() or given.is_complex()):
        raise TypeError(f"units must be bools or integers, got {given.dtype}")
    elif given.numel():
        indices = given.detach().cpu().to(torch.int64)
        if int(indices.min()) < 0 or int(indices.max()) >= number:
            bad = next(int(index) for index in indices if not 0 <= int(index) < number)
            raise ValueError(f"units must lie in [0, {number - 1}], got {bad}")
        chosen[indices] = True
    read = ablatable(network)
    unread = (chosen & ~read).nonzero().flatten()
    if len(unread) and (given.dtype != torch.bool or not bool((chosen & read).any())):
        unit = int(unread[0])
        space = next(name for name, space in network.spaces.items() if space.start <= unit < space.stop)
        raise ValueError(
            f"units: no weight reads unit {unit} of the space {space!r}, as it is with a model's outputs: "
            "ablating it would change nothing"
        )
    return chosen & read


def check_ablation(ablation: object, reference: Batches) -> None:
    """Raise unless the ablation is known and has the reference that it needs."""
    check("ablation", ablation, OneOf(ABLATIONS))
    if ablation == "zero" and reference is not None:
        raise ValueError('reference is for ablation="mean" and "resample"; with "zero" it must be None')
    if ablation != "zero" and reference is None:
        raise ValueError(f'reference must be given for ablation="{ablation}"')


def baseline_of(
    model: nn.Module, network: Network, wanted: Tensor, ablation: str, reference: Batches
) -> Baseline:
    """Return what to replace units by, from a run of the model on the reference.

    Args:
        model: the model, which is not changed.
        network: its units.
        wanted: bool, ``(num_units,)``: the units that may be replaced.
        ablation: one of :data:`ABLATIONS`.
        reference: batches; for ``"resample"`` one batch.

    Raises:
        ValueError: as :func:`ablate_units`.
    """
    if ablation == "zero":
        return Zero()
    sides = sides_read(network)
    baseline = Mean(sides) if ablation == "mean" else Resampled()
    if ablation == "resample":
        refuse_routed(network, wanted)
    for number, batch in enumerate(each_batch(reference, "reference")):
        if ablation == "resample" and number > 0:
            raise ValueError('reference must be one batch for ablation="resample", got several')
        run(model, sides, wanted, baseline.add, inputs_of(batch))
    return baseline


def refuse_routed(network: Network, wanted: Tensor) -> None:
    """Raise if an expert reads such units: its examples are not those of another run."""
    for layer in network.layers.values():
        if layer.role.startswith("expert_") and bool(wanted[layer.col_units].any()):
            raise ValueError(
                f'ablation="resample" needs the same examples in each product, but {layer.name!r} is an '
                'expert\'s, which reads those that a router chooses: use "zero" or "mean"'
            )


def run(model: nn.Module, sides: Mapping[str, Tensor], wanted: Tensor, change: Change, inputs: Any) -> Any:
    """Run a model in evaluation mode, without gradients, with changed reads; return its output."""
    with torch.inference_mode(False), evaluating(model), Reads(model, sides, wanted, change).caught():
        return call_model(model, moved(inputs, device_of(model)))


class Ablation(AbstractContextManager[None]):
    """Inside, units are ablated; made by :func:`ablate_units`. It may be entered several times."""

    def __init__(
        self, model: nn.Module, sides: Mapping[str, Tensor], ablated: Tensor, baseline: Baseline
    ) -> None:
        self._model, self._sides, self._ablated, self._baseline = model, sides, ablated, baseline
        Reads(model, sides, ablated, Replacing(ablated, baseline))  # raises now what it would raise later
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        """Begin to ablate."""
        change = Replacing(self._ablated, self._baseline)
        reads = Reads(self._model, self._sides, self._ablated, change)
        stack = ExitStack()
        stack.enter_context(reads.caught())
        self._entered.append(stack)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it; the model is as it was."""
        self._entered.pop().__exit__(kind, error, traceback)


def ablate_units(
    model: nn.Module,
    network: Network,
    units: Tensor | Sequence[int],
    ablation: str = "zero",
    reference: Batches = None,
) -> Ablation:
    """Return a context inside which some units of a model are ablated.

    A unit is ablated where it is read: every weight that reads it sees another value in its place. What else
    is made of it (a sum with the residual stream, a product with a gate) is not touched before a weight reads
    the result; the weight itself is not touched either. Zero ablation of a unit of a linear layer or a
    convolution thus equals columns of zeros in every weight that reads it.

    Inside, compiled models run as they were written, and experts of transformers one by one. The model's
    mode is not changed: call it in evaluation mode unless you want dropout. Contexts may be nested: then both
    sets of units are ablated. They hold for the thread that entered them. Take no gradients through
    ``torch.utils.checkpoint`` of a model with ablated units: what is computed anew on the way back is not
    ablated, which raises where it is seen. :func:`unit_scores` can score such models.

    Args:
        model: the model of ``network``, or one like it; also compiled, wrapped, adapted or in half precision.
            It is not changed.
        network: its units, as :func:`read_network` returns them.
        units: bool ``(num_units,)``, or integers: the indices of units, in any order; one that is given twice
            is ablated once. An index must be of a unit that a weight reads. Of a mask (``labels != 2``),
            units that no weight reads, as a model's outputs, are left as they are.
        ablation: what a weight reads in place of a unit. ``"zero"``: 0; choose it if 0 is a value that the
            unit takes (after a ReLU), and to compare with lesions. ``"mean"``: its mean over ``reference``,
            over all examples and places (positions, pixels), for each column that reads it; choose it where 0
            is unusual, as in transformers; padding counts as any other place. ``"resample"``: its value at
            the same place for another example of ``reference``; choose it to keep to values that occur
            together.
        reference: for ``"mean"`` batches, as for :func:`unit_scores`; they run through the model now, in
            evaluation mode. For ``"resample"`` one batch of the same shape as the one that the model is
            called with inside: example i is paired with example i.

    Raises:
        ValueError: units are out of range, or not read by a weight; the ablation is unknown, or its reference
            is missing, empty, or of another shape; the model has no such layers; a weight is used in a way in
            which it cannot be told what it reads.
        TypeError: units are neither bools nor integers, or ``reference`` is no iterable.

    Example:
        >>> from modfast import read_network
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> hidden = torch.arange(network.num_units)[network.spaces["0"]]
        >>> with torch.no_grad(), ablate_units(model, network, hidden):
        ...     bool(torch.equal(model(torch.rand(4, 2)), model[2].bias.expand(4, 1)))
        True
    """
    check_ablation(ablation, reference)
    chosen = check_units(network, units)
    baseline = baseline_of(model, network, chosen, ablation, reference)
    return Ablation(model, sides_read(network), chosen, baseline)
