"""The layers of the optimiser's loss: whose weights a step updates itself, and which need a pass apart."""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from modfast.energy.loss import EnmeshmentLoss
from modfast.layers.autograd_graph import leaves_of

# Faster than a loop in Python: it runs at each step.
_REQUIRES_GRAD = attrgetter("requires_grad")


class LossLayers:
    """The layers of a loss, by where their weights are.

    Attributes:
        loss: the loss.
        fused: by the layer's index, the parameter of the optimiser that holds its weight.
        computed: the layers whose weights are computed from parameters.
        frozen: those whose weight gets no gradient.
        elsewhere: those whose weight gets one, and is no parameter of the optimiser.
    """

    def __init__(self, loss: EnmeshmentLoss, parameters: Collection[int]) -> None:
        self.loss = loss
        self.fused: dict[int, Tensor] = {}
        self.computed: list[int] = []
        self.frozen: list[int] = []
        self.elsewhere: list[int] = []
        self._own = parameters
        # What is replaced if the loss gets other layers or partitions.
        self._losses = loss._losses
        self._homes: list[dict[str, Any]] = []
        self._attributes = [layer.attribute for layer in loss._layers]
        self._parameters = [layer.parameter for layer in loss._layers]
        for index, (layer, parameter) in enumerate(zip(loss._layers, self._parameters, strict=True)):
            home = layer.module._parameters
            self._homes.append(home if isinstance(home, dict) else {})  # TorchScript has no dict
            if parameter is None:
                self.computed.append(index)
                continue
            layer.stored()  # raises where the parameter does not hold plain numbers
            if not parameter.requires_grad:
                self.frozen.append(index)
            elif id(parameter) in parameters:
                self.fused[index] = parameter
            else:
                self.elsewhere.append(index)
        stored = [parameter for parameter in self._parameters if parameter is not None]
        self._trained = [parameter for parameter in stored if parameter.requires_grad]
        self._untrained = [parameter for parameter in stored if not parameter.requires_grad]

    def are_layers_of(self, loss: EnmeshmentLoss) -> bool:
        """Whether these are still the layers of a loss, with the same partitions."""
        return loss is self.loss and loss._attached is self._losses

    def are_those_of(self, loss: EnmeshmentLoss) -> bool:
        """Whether these are still the layers of a loss, each with the same parameter and partition."""
        if not self.are_layers_of(loss):
            return False
        now = map(dict.get, self._homes, self._attributes)
        return (
            all(map(is_, now, self._parameters))
            and all(map(_REQUIRES_GRAD, self._trained))
            and not any(map(_REQUIRES_GRAD, self._untrained))
        )

    def check_complete(self) -> None:
        """Raises unless each weight that gets a gradient of the loss gets a step of the optimiser.

        Raises:
            ValueError: one does not.
        """
        missing = [self.loss._names[index] for index in self.elsewhere]
        for index in self.computed:
            with torch.enable_grad():
                leaves = leaves_of(self.loss._layers[index].stored())
            if any(id(leaf) not in self._own for leaf in leaves):
                missing.append(self.loss._names[index])
        if missing:
            raise ValueError(
                "enmeshment: no parameter group has the weight, or what it is computed from, of "
                f"{', '.join(map(repr, missing))}: add it to params, freeze it, or leave the layer out of "
                "the loss"
            )

    def accumulate_computed(self, factor: float, grad_scale: Tensor | None) -> None:
        """Add the gradients of computed weights into those of the parameters that they are computed from.

        Args:
            factor: of the sum of the losses of these layers.
            grad_scale: by which all gradients are still scaled; None if by nothing.
        """
        if not self.computed:
            return
        with torch.inference_mode(False), torch.enable_grad():
            stored: list[Any] = [None] * len(self._losses.layers)
            for index in self.computed:
                stored[index] = self._losses.layers[index].stored()
            trained = [index for index in self.computed if stored[index].requires_grad]
            if trained:
                scaled = factor if grad_scale is None else factor * grad_scale.to(stored[trained[0]].device)
                self._losses.accumulate_computed(trained, stored, scaled)
