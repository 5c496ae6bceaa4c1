"""The compiled operators of the walk that finds a circuit.

They change their arguments in place: the weights of one row, and the state of the network's tail. The
reference has no counterpart to them: it keeps no state and runs the whole model for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modfast.library import fake_kernel
from modfast.shapes import check_shaped, require

_OPS: Any = torch.ops.modfast

# The number of inputs that are computed on at once; csrc/circuits/circuits.h.
LANES = 8

# In the order of the enum in csrc/circuits/circuits.h.
ACTIVATIONS = ("identity", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
# In the order of csrc/circuits/binding.h.
STAGES = (*ACTIVATIONS, "affine", "max", "mean")


@dataclass(frozen=True)
class TailState:
    """Layers with stages after each, and their channels' state on some inputs.

    All tensors are contiguous, float64 unless another type is named, and on one device, on a GPU of linear
    layers alone. Inputs run along the last dimension, which is padded to a multiple of ``LANES``; the padding
    has no effect on results.

    Attributes:
        features: ``(in, inputs)``, the input of the first layer; as :func:`in_blocks` orders it if that is a
            convolution or has stages or if this is so of a later layer.
        signs: ``(inputs,)``: 1 for inputs of the class, -1 for others, 0 for padding.
        weights: ``(out, in)`` for each layer, of a convolution ``(out, in / groups * taps)``.
        biases: ``(out,)`` for each layer.
        activations: indices into ``ACTIVATIONS``, the last stages; that of the last layer is ``"identity"``.
        slopes: the slopes of leaky ReLUs below zero, one for each layer.
        sources: int32 ``(taps, places)`` for each layer, the place of an input channel that each tap reads
            for each place of an output channel, or -1; ``(0, 0)`` for a linear layer. Empty if all are.
        groups: the number of groups of channels, for each layer; empty if ``sources`` is.
        stage_layers: for each stage before the activations, the layer after which it comes; rising.
        stage_kinds: indices into ``STAGES``.
        stage_numbers: the numbers of :class:`modfast.circuits.stages.Stage`.
        stage_tables: their tables; any tensor for an activation.
        before: ``(out * places, inputs)`` numbers for each layer, before the stages, in an order of the
            operators' own.
        after: the same after the stages, ``(out * places then, inputs)``; of the last layer the logits
            ``(classes, inputs)`` in their order.
        label: the class, a row of the last layer.
        threads: the number of CPU threads; no result depends on it.
    """

    features: Tensor
    signs: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    activations: list[int]
    slopes: list[float]
    sources: list[Tensor]
    groups: list[int]
    stage_layers: list[int]
    stage_kinds: list[int]
    stage_numbers: list[float]
    stage_tables: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    label: int
    threads: int

    def _arguments(self) -> tuple[Any, ...]:
        layers = (self.weights, self.biases, self.activations, self.slopes, self.sources, self.groups)
        stages = (self.stage_layers, self.stage_kinds, self.stage_numbers, self.stage_tables)
        states = (self.before, self.after)
        return (self.features, self.signs, *layers, *stages, *states, self.label, self.threads)

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


def in_blocks(rows: Tensor) -> Tensor:
    """Return ``(neurons, inputs)`` numbers in the order of the operators' blocks, with the same shape.

    For each ``LANES`` inputs all neurons lie together, since a channel is walked along with all its places.

    Example:
        >>> in_blocks(torch.arange(32).view(2, 16)).flatten()[:16].tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]
    """
    return rows.view(len(rows), -1, LANES).transpose(0, 1).reshape(rows.shape)


@fake_kernel("tail_forward_")
def _tail_forward_fake(
    features: Tensor,
    signs: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activations: list[int],
    slopes: list[float],
    sources: list[Tensor],
    groups: list[int],
    stage_layers: list[int],
    stage_kinds: list[int],
    stage_numbers: list[float],
    stage_tables: list[Tensor],
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
    require(
        len(sources) == len(groups) and len(sources) in (0, len(weights)),
        "sources and groups must be empty or lists of the length of weights",
    )
    require(
        len({len(of_stages) for of_stages in (stage_layers, stage_kinds, stage_numbers, stage_tables)}) == 1,
        "stage_layers, stage_kinds, stage_numbers and stage_tables must be lists of one length",
    )
    require(
        stage_layers == sorted(stage_layers) and all(0 <= layer < len(weights) for layer in stage_layers),
        f"stage_layers must rise from 0 to {len(weights) - 1}, got {stage_layers}",
    )
    require(threads >= 1, f"threads must be at least 1, got {threads}")
    held_places = 1
    for layer, (weight, bias, activation, before, after) in enumerate(
        zip(weights, biases, activations, pre, held, strict=True)
    ):
        rows, cols = check_shaped("weights", weight, torch.float64, (None, None)).shape
        places = 1
        if sources and sources[layer].numel():
            taps, places = check_shaped("sources", sources[layer], torch.int32, (None, None)).shape
            count = groups[layer]
            require(count >= 1 and rows % count == 0, f"groups must divide the rows of weights, got {count}")
            channels = count * (cols // taps)
            require(
                cols % taps == 0
                and channels > 0
                and width % channels == 0
                and (layer == 0 or held_places % (width // channels) == 0),
                f"weights must read channels of equal size, got shape {tuple(weight.shape)}",
            )
        else:
            check_shaped("weights", weight, torch.float64, (None, width))
        require(rows > 0 and cols > 0, "weights must not be empty")
        check_shaped("biases", bias, torch.float64, (rows,))
        require(0 <= activation < len(ACTIVATIONS), f"activations must be known, got {activation}")
        held_places = places
        for at, kind, table in zip(stage_layers, stage_kinds, stage_tables, strict=True):
            if at == layer:
                held_places = _places_after(kind, table, rows, held_places)
        check_shaped("pre", before, torch.float64, (rows * places, inputs))
        check_shaped("held", after, torch.float64, (rows * held_places, inputs))
        width = rows * held_places
    require(activations[-1] == 0, "the last layer's outputs must be the logits")
    require(held_places == 1, f"the last layer must hold one number for each of its rows, got {held_places}")
    require(width >= 2, f"the last layer must have at least two rows, got {width}")
    require(0 <= label < width, f"label must be in [0, {width - 1}], got {label}")


def _places_after(kind: int, table: Tensor, rows: int, places: int) -> int:
    """Check a stage; return how many places a channel has after it."""
    require(0 <= kind < len(STAGES), f"stage_kinds must be known, got {kind}")
    if kind < len(ACTIVATIONS):
        return places
    if STAGES[kind] == "affine":
        check_shaped("stage_tables", table, torch.float64, (2, rows))
        return places
    count, width = check_shaped("stage_tables", table, torch.int32, (None, None)).shape
    require(count > 0 and width > 0, "stage_tables must not be empty")
    return count


@fake_kernel("walk_row_")
def _walk_row_fake(
    features: Tensor,
    signs: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activations: list[int],
    slopes: list[float],
    sources: list[Tensor],
    groups: list[int],
    stage_layers: list[int],
    stage_kinds: list[int],
    stage_numbers: list[float],
    stage_tables: list[Tensor],
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
    _tail_forward_fake(
        features,
        signs,
        weights,
        biases,
        activations,
        slopes,
        sources,
        groups,
        stage_layers,
        stage_kinds,
        stage_numbers,
        stage_tables,
        pre,
        held,
        label,
        threads,
    )
    require(0 <= layer < len(weights), f"layer must be in [0, {len(weights) - 1}], got {layer}")
    rows, cols = weights[layer].shape
    require(0 <= row < rows, f"row must be in [0, {rows - 1}], got {row}")
    require(0 <= begin <= end <= cols, f"begin and end must rise from 0 to {cols}, got {begin} and {end}")
