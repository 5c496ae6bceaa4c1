"""The enmeshment loss in the steps of a training loop, whoever owns the loop."""

from __future__ import annotations

import base64
import os
import reprlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import SEED, Constraint, Integer, check
from modfast.energy.loss import EnmeshmentLoss
from modfast.layers.autograd_graph import leaves_of
from modfast.layers.layer import Choices
from modfast.network.units import Network
from modfast.partition import Partition, load_partitions, pack_partitions, unpack_partitions

from .reclustering import found_partitions, number_shared
from .schedules import FINITE

PartitionsOrPath = int | Mapping[str, Partition] | str | os.PathLike[str]
"""A number of clusters, partitions by name of layer, or a file of :func:`modfast.save_partitions`."""

Schedule = Callable[[int], float]
"""The factor of the weight after so many optimiser steps."""

_STEP: Constraint = Integer(0)


class EnmeshmentSteps:
    """Adds the loss's gradient once in each optimiser step, and finds clusters anew where asked to.

    Args:
        partitions, weight, layers, exclude, schedule, recluster_at, network, seed: those of the callbacks.

    Raises:
        ValueError, TypeError: an argument is not allowed.
        OSError: the file of partitions cannot be read.
    """

    def __init__(
        self,
        partitions: PartitionsOrPath,
        weight: float,
        layers: Choices | None,
        exclude: Choices | None,
        schedule: Schedule | None,
        recluster_at: int | Iterable[int] | None,
        network: Network | None,
        seed: int,
    ) -> None:
        if weight not in FINITE:
            raise ValueError(f"weight must be a finite number, got {weight!r}")
        check("seed", seed, SEED)
        if schedule is not None and not callable(schedule):
            raise TypeError(
                f"schedule must be None or a function of the step, got {type(schedule).__name__}; "
                "modfast.integrations.schedules has some"
            )
        if network is not None and not isinstance(network, Network):
            raise TypeError(f"network must be None or a Network, got {type(network).__name__}")
        self._given = (
            load_partitions(partitions) if isinstance(partitions, (str, os.PathLike)) else partitions
        )
        if isinstance(self._given, bool) or not isinstance(self._given, (Integral, Mapping)):
            raise TypeError(
                "partitions must be a number of clusters, a mapping of names to Partition or the path of a "
                f"file of them, got {type(partitions).__name__}"
            )
        self._weight, self._layers, self._exclude = float(weight), layers, exclude
        self._schedule, self._network, self._seed = schedule, network, int(seed)
        self.recluster_at = _steps("recluster_at", recluster_at)
        self._model: nn.Module | None = None
        self._loss: EnmeshmentLoss | None = None
        self._values: Tensor | None = None
        self._reclustered: int | None = None

    def described(self) -> str:
        """What was asked for, in a few words."""
        given = self._given
        parts = [f"{len(given)} partitions" if isinstance(given, Mapping) else f"{given} clusters"]
        parts.append(f"weight={self._weight:g}")
        if isinstance(self._layers, str):
            parts.append(f"layers={self._layers!r}")
        if self._schedule is not None:
            parts.append(f"schedule={reprlib.repr(self._schedule)}")
        if self.recluster_at:
            parts.append(f"recluster_at={reprlib.repr(sorted(self.recluster_at))}")
        return ", ".join(parts)

    @property
    def loss(self) -> EnmeshmentLoss:
        """The loss, one value for each layer.

        Raises:
            RuntimeError: training has not begun.
        """
        if self._loss is None:
            raise RuntimeError("the callback has no partitions before training begins")
        return self._loss

    @property
    def has_begun(self) -> bool:
        """Whether there is a loss."""
        return self._loss is not None

    def begin(self, model: nn.Module, optimizers: Iterable[Any]) -> list[int]:
        """Find the layers in a model that is about to be trained.

        Returns:
            The places of the optimisers that hold parameters which the loss depends on.

        Raises:
            ValueError: as :class:`modfast.EnmeshmentLoss` does; or no parameter that the loss depends on is
                trained; or layers cannot be clustered over the network.
        """
        gather_no_more(model)
        self._model, self._values, self._reclustered = model, None, None
        self._loss = EnmeshmentLoss(
            model, self._first_partitions(model), self._layers, "none", exclude=self._exclude
        )
        if self._network is not None and self.recluster_at:
            number_shared(self._loss.partitions, self._network)  # now, not hours later
        with torch.enable_grad():
            leaves = {id(leaf) for leaf in leaves_of(self._loss())}
        names = list(self._loss.partitions)
        if not leaves:
            raise ValueError(
                f"layers: no parameter of {names} requires a gradient, so that the enmeshment loss would "
                "change nothing; unfreeze one, or choose other layers"
            )
        holders = [
            place
            for place, optimizer in enumerate(optimizers)
            if any(id(each) in leaves for group in optimizer.param_groups for each in group["params"])
        ]
        if not holders:
            raise ValueError(
                f"layers: no optimiser holds a parameter of {names}, so that the enmeshment loss would "
                "change nothing; give them to an optimiser, or choose other layers"
            )
        return holders

    def _first_partitions(self, model: nn.Module) -> Any:
        if self._network is None or isinstance(self._given, Mapping):
            return self._given
        # The blocks of a network's spaces, not of each layer, so that layers share them from the first step.
        chosen = EnmeshmentLoss(model, self._given, self._layers, exclude=self._exclude)
        return self._network.partitions(int(self._given), layers=list(chosen.partitions))

    def add_gradient(self, step: int, scaler: torch.amp.GradScaler | None = None) -> bool:
        """Add the gradient of the weighted mean over layers to ``.grad``; at some steps recluster first.

        Args:
            step: how many optimiser steps are done.
            scaler: the one by which the gradients are scaled, if any.

        Returns:
            Whether clusters were found anew.

        Raises:
            ValueError: the schedule returns no finite number, or clusters cannot be found.
        """
        assert self._model is not None
        loss = self.loss
        gather_no_more(self._model)
        # Not twice at one step: some optimisers compute a step's gradients several times.
        recluster = step in self.recluster_at and self._reclustered != step
        if recluster:
            found = found_partitions(self._model, loss.partitions, self._network, self._seed)
            loss.set_extra_state(pack_partitions(found))
            self._reclustered = step
        weight = self._weight * self._factor(step)
        if weight not in FINITE:
            raise ValueError(f"weight times schedule must be finite, got {weight} at step {step}")
        if weight == 0.0:
            # A gradient of zeros is not the same as none: weight decay and momentum act on it.
            with torch.no_grad():
                self._values = loss()
        else:
            self._values = loss.accumulate_grad_(weight / len(loss.partitions), scaler=scaler)
        return recluster

    def _factor(self, step: int) -> float:
        if self._schedule is None:
            return 1.0
        factor = self._schedule(step)
        if factor not in FINITE:
            raise ValueError(f"schedule must return a finite number, got {factor!r} at step {step}")
        return float(factor)

    def logs(self) -> dict[str, float]:
        """Return loss and clusterability of the weights that the last step began with (waits for them)."""
        if self._values is None:
            return {}
        values = self._values.tolist()
        mean = sum(values) / len(values)
        each = zip(self.loss.partitions, values, strict=True)
        return {
            "enmeshment": mean,
            "clusterability": 1.0 - mean,
            **{f"clusterability/{name}": 1.0 - value for name, value in each},
        }

    def packed(self) -> Tensor:
        """Return the present partitions as one int64 tensor."""
        return self.loss.get_extra_state()

    def restore(self, packed: Tensor) -> None:
        """Take the partitions of a checkpoint.

        Raises:
            ValueError: they are of other layers, or damaged.
        """
        names = set(self.loss.partitions)
        restored = unpack_partitions(packed)
        if set(restored) != names:
            raise ValueError(
                f"layers: the checkpoint has partitions of {sorted(restored)}, this callback is for "
                f"{sorted(names)}"
            )
        self.loss.set_extra_state(packed)


def gather_no_more(model: nn.Module) -> None:
    """Let an FSDP2 model give up whole weights that an evaluation has left gathered.

    Until then its layers show whole weights, which no optimiser holds. Does nothing to other models.
    """
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def as_text(packed: Tensor) -> str:
    """Encode packed partitions for a file of JSON, where a list of labels would have a line for each."""
    return base64.b64encode(zlib.compress(packed.numpy().astype("<i8").tobytes())).decode("ascii")


def from_text(text: str) -> Tensor:
    """Decode what :func:`as_text` encoded.

    Raises:
        ValueError: it is something else.

    Example:
        >>> from_text(as_text(torch.tensor([1, 0])))
        tensor([1, 0])
    """
    try:
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<i8")
    except (TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"the partitions in the checkpoint are damaged: {error}") from error
    return torch.from_numpy(numbers.astype(np.int64))


def _steps(name: str, given: int | Iterable[int] | None) -> frozenset[int]:
    if given is None:
        return frozenset()
    steps = list(given) if isinstance(given, Iterable) else [given]
    for step in steps:
        check(name, step, _STEP)
    return frozenset(int(step) for step in steps)
