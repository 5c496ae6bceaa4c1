"""What a step does, as far as it depends on the parameters alone: found once, and checked by identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

import modfast.reference as reference
from modfast.energy.loss import EnmeshmentLoss

from .device import rows_at
from .keep import KeepChoices, chosen_places
from .layers import LossLayers
from .terms import Terms


class Plan:
    """The calls of a step.

    Attributes:
        layers: the layers of the loss, if there is one.
        calls: for each parameter group and device the terms of one call, with the number of the group.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        loss: EnmeshmentLoss | None,
        is_kept: bool,
        choices: KeepChoices | None,
    ) -> None:
        self._params = [list(group["params"]) for group in groups]
        self._devices = [[parameter.device for parameter in params] for params in self._params]
        self._is_kept = is_kept
        own = set(map(id, chain.from_iterable(self._params)))
        self.layers = None if loss is None else LossLayers(loss, own)
        places = chosen_places(choices, self.layers, groups) if is_kept else {}
        self.calls: list[Terms] = []
        for number, params in enumerate(self._params):
            by_device: dict[torch.device, list[Tensor]] = {}
            for parameter in params:
                by_device.setdefault(parameter.device, []).append(parameter)
            self.calls += [Terms(number, each, self.layers, places) for each in by_device.values()]
        self._state: Mapping[Tensor, Any] | None = None
        self._states: list[Any] = []
        self.is_checked = False

    def check(self) -> None:
        """Raises unless the optimiser updates all weights that get a gradient of the loss.

        Raises:
            ValueError: it does not.
        """
        if self.layers is not None:
            self.layers.check_complete()
        self.is_checked = True

    def has_layers_of(self, loss: EnmeshmentLoss) -> bool:
        """Whether a loss still has the layers and the partitions of this plan."""
        return self.layers is not None and self.layers.are_layers_of(loss)

    def is_for(self, groups: Sequence[Mapping[str, Any]], loss: EnmeshmentLoss | None, is_kept: bool) -> bool:
        """Whether the parameters, their devices, and the layers of the loss are those of this plan."""
        if len(groups) != len(self._params) or is_kept is not self._is_kept:
            return False
        for group, params, devices in zip(groups, self._params, self._devices, strict=True):
            now = group["params"]
            if len(now) != len(params) or not all(map(is_, now, params)):
                return False
            if [parameter.device for parameter in now] != devices:
                return False
        if loss is None or self.layers is None:
            return loss is None and self.layers is None
        return self.layers.are_those_of(loss)

    def look_at_states(self, state: Mapping[Tensor, Any]) -> None:
        """Forget which states the parameters have if others were put in their place."""
        if (
            state is not self._state
            or len(state) != len(self._states)
            or not all(map(is_, state.values(), self._states))
        ):
            self._state = None
            for terms in self.calls:
                terms.forget_states()

    def remember_states(self, state: Mapping[Tensor, Any]) -> None:
        """Take note of the states that the parameters have."""
        if state is not self._state or len(state) != len(self._states):
            self._state, self._states = state, list(state.values())

    def losses(self, loss: EnmeshmentLoss) -> tuple[Tensor, list[Tensor]]:
        """The losses of all layers of the loss as the weights are now, and the tensors that hold these.

        Those of weights that are no parameter of a group, or that others changed, cost a pass over them.

        Returns:
            Float64, (layers,); and the tensors.
        """
        assert self.layers is not None
        stored = [layer.stored() for layer in loss._layers]
        fused = self.layers.fused
        parts: list[Tensor] = []
        places: list[int] = []
        for terms in self.calls:
            if terms.energies is None:
                continue
            terms.energies.refresh(terms.watched())
            held = [row.layer for row in terms.energies.rows]
            values = reference.enmeshment_of_split(terms.energies.values)
            current = [place for place, layer in enumerate(held) if stored[layer] is fused[layer]]
            if len(current) < len(held):
                values = rows_at(values, current) if current else values
            if current:
                parts.append(values)
                places += [held[place] for place in current]
        others = sorted(set(range(len(stored))) - set(places))
        if others:
            parts.append(loss._losses.losses(stored, others))
            places += others
        home = next((part for part in parts if part.dtype == torch.float64), parts[0])
        together = torch.cat([part.to(home.device).to(home.dtype) for part in parts])
        order = sorted(range(len(places)), key=places.__getitem__)
        return (together if order == list(range(len(order))) else rows_at(together, order)), stored
