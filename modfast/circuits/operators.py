"""The compiled operators of the walk that finds a circuit.

They change their arguments in place: the weights of one row, and the state of the network's tail. The
reference has no counterpart to them: it keeps no state and runs the whole model for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modfast import library as library  # registers the operators
from modfast.shapes import check_shaped, require

_OPS: Any = torch.ops.modfast

# The number of inputs that are computed on at once; csrc/circuits/circuits.h.
LANES = 8

# In the order of the enum in csrc/circuits/circuits.h.
ACTIVATIONS = ("identity", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")


@dataclass(frozen=True)
class TailState:
    """Linear layers with elementwise activations after each, and their neurons' state on some inputs.

    All tensors are contiguous float64 on one device. Inputs run along the last dimension, which is padded to
    a multiple of ``LANES``; the padding has no effect on results.

    Attributes:
        features: ``(in, inputs)``, the input of the first layer.
        signs: ``(inputs,)``: 1 for inputs of the class, -1 for others, 0 for padding.
        weights: ``(out, in)`` for each layer.
        biases: ``(out,)`` for each layer.
        activations: indices into ``ACTIVATIONS``; the last is ``"identity"``.
        slopes: the slopes of leaky ReLUs below zero, one for each layer.
        before: ``(out, inputs)`` for each layer, before the activation.
        after: ``(out, inputs)`` for each layer, after the activation.
        label: the class, a row of the last layer.
        threads: the number of CPU threads; no result depends on it.
    """

    features: Tensor
    signs: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    activations: list[int]
    slopes: list[float]
    before: list[Tensor]
    after: list[Tensor]
    label: int
    threads: int

    def _arguments(self) -> tuple[Any, ...]:
        layers = (self.weights, self.biases, self.activations, self.slopes, self.before, self.after)
        return (self.features, self.signs, *layers, self.label, self.threads)

    def forward_(self) -> None:
        """Compute ``before`` and ``after`` of all layers."""
        _OPS.tail_forward_(*self._arguments())

    def walk_row_(
        self, layer: int, row: int, begin: int, end: int, highest_loss: float, least_right: float | None
    ) -> None:
        """Try to set the weights of one row to zero, from column ``begin`` to before ``end``, one by one.

        A weight stays zero if the sum of the inputs' losses is at most ``highest_loss`` and, unless it is
        None, the number of correctly answered inputs is at least ``least_right``.
        """
        _OPS.walk_row_(*self._arguments(), layer, row, begin, end, highest_loss, least_right)


@torch.library.register_fake("modfast::tail_forward_")
def _tail_forward_fake(
    features: Tensor,
    signs: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activations: list[int],
    slopes: list[float],
    pre: list[Tensor],
    held: list[Tensor],
    label: int,
    threads: int,
) -> None:
    width, inputs = check_shaped("features", features, torch.float64, (None, None)).shape
    require(
        inputs > 0 and inputs % LANES == 0, f"features must have a multiple of {LANES} columns, got {inputs}"
    )
    check_shaped("signs", signs, torch.float64, (inputs,))
    require(len(weights) > 0, "weights must hold at least one layer")
    lists = (weights, biases, activations, slopes, pre, held)
    require(
        len({len(of_layers) for of_layers in lists}) == 1,
        "weights, biases, activations, slopes, pre and held must be lists of one length",
    )
    require(threads >= 1, f"threads must be at least 1, got {threads}")
    for weight, bias, activation, before, after in zip(weights, biases, activations, pre, held, strict=True):
        rows = check_shaped("weights", weight, torch.float64, (None, width)).shape[0]
        require(rows > 0 and width > 0, "weights must not be empty")
        check_shaped("biases", bias, torch.float64, (rows,))
        require(0 <= activation < len(ACTIVATIONS), f"activations must be known, got {activation}")
        check_shaped("pre", before, torch.float64, (rows, inputs))
        check_shaped("held", after, torch.float64, (rows, inputs))
        width = rows
    require(activations[-1] == 0, "the last layer's outputs must be the logits")
    require(width >= 2, f"the last layer must have at least two rows, got {width}")
    require(0 <= label < width, f"label must be in [0, {width - 1}], got {label}")


@torch.library.register_fake("modfast::walk_row_")
def _walk_row_fake(
    features: Tensor,
    signs: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activations: list[int],
    slopes: list[float],
    pre: list[Tensor],
    held: list[Tensor],
    label: int,
    threads: int,
    layer: int,
    row: int,
    begin: int,
    end: int,
    highest_loss: float,
    least_right: float | None,
) -> None:
    _tail_forward_fake(features, signs, weights, biases, activations, slopes, pre, held, label, threads)
    require(0 <= layer < len(weights), f"layer must be in [0, {len(weights) - 1}], got {layer}")
    rows, cols = weights[layer].shape
    require(0 <= row < rows, f"row must be in [0, {rows - 1}], got {row}")
    require(0 <= begin <= end <= cols, f"begin and end must rise from 0 to {cols}, got {begin} and {end}")
