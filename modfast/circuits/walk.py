"""The walk that finds a circuit, with the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from modfast.circuit import Circuit
from modfast.reference import circuits as plain

from .linear_tail import Tail, TailLayer
from .operators import ACTIVATIONS, LANES, STAGES, TailState, in_blocks

# The maximum work of a call of the kernel, about a second, after which it can be interrupted. The unit is one
# nonzero weight; a trial, and a neuron with its activation or its share of the softmax, count _NEURON each.
_MOST_WORK = 2**32
_NEURON = 32


class Walk:
    """The walk of :class:`modfast.reference.circuits.PlainWalk`, over a network's tail.

    Args:
        tail: the features of the inputs, and the layers after them.
        label: the class.
        is_label: bool ``(n,)``, whether each input is of the class.
        criterion: as for :func:`modfast.find_circuit`.
        tolerance: by how much the loss may rise.
        device: the device of the computation.
        threads: the number of CPU threads.
    """

    def __init__(
        self,
        tail: Tail,
        label: int,
        is_label: Tensor,
        criterion: str,
        tolerance: float,
        device: torch.device,
        threads: int,
    ) -> None:
        self._count, self._is_label = len(is_label), is_label
        self._criterion, self._tolerance = criterion, tolerance
        self._layers = tail.layers
        padded = -(-self._count // LANES) * LANES

        def along_rows(columns: Tensor) -> Tensor:
            rows = columns.new_empty(columns.shape[1], padded, device=device)
            rows[:, : self._count] = columns.T
            # The padding repeats the last input, so that it moves or overflows only if that input does.
            rows[:, self._count :] = columns[-1:].T
            return rows

        layers = tail.layers
        is_linear = all(layer.is_plain for layer in layers)
        features = along_rows(tail.features)
        signs = torch.where(is_label, 1.0, -1.0).to(torch.float64)
        weights = [layer.weight.to(device, copy=True).flatten(1).contiguous() for layer in layers]
        stages = [(place, stage) for place, layer in enumerate(layers) for stage in layer.stages]
        nothing = torch.empty(0, 0, dtype=torch.int32, device=device)

        def states(places: Iterable[int]) -> list[Tensor]:
            pairs = zip(weights, places, strict=True)
            return [weight.new_empty(len(weight) * count, padded) for weight, count in pairs]

        self._state = TailState(
            features=features if is_linear else in_blocks(features),
            signs=functional.pad(signs, (0, padded - self._count)).to(device),
            weights=weights,
            biases=[
                weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.to(device).contiguous()
                for weight, layer in zip(weights, layers, strict=True)
            ],
            activations=[ACTIVATIONS.index(layer.activation) for layer in layers],
            slopes=[layer.slope for layer in layers],
            sources=[]
            if is_linear
            else [
                # Before other layers than linear ones, a linear layer is one that reads one place.
                nothing if layer.convolution is None else layer.convolution.sources.to(device).contiguous()
                for layer in layers
            ],
            groups=[]
            if is_linear
            else [1 if layer.convolution is None else layer.convolution.groups for layer in layers],
            stage_layers=[place for place, _ in stages],
            stage_kinds=[STAGES.index(stage.kind) for _, stage in stages],
            stage_numbers=[stage.number for _, stage in stages],
            stage_tables=[
                nothing if stage.table is None else stage.table.to(device).contiguous() for _, stage in stages
            ],
            before=states(layer.places for layer in layers),
            after=states(layer.held_places for layer in layers),
            label=label,
            threads=threads,
        )
        self._state.forward_()
        self.before = self._measure()
        loss, right = self.before
        self._highest = plain.highest_loss(loss, tolerance) * self._count
        # Half an answer less, so that the rounding of the share does not matter.
        self._least_right = right * self._count - 0.5 if criterion == "loss_and_accuracy" else None

    def _measure(self) -> tuple[float, float]:
        logits = self._state.after[-1][:, : self._count].T.cpu()
        return plain.measure(logits, self._state.label, self._is_label, self._criterion)

    @property
    def masks(self) -> dict[str, Tensor]:
        """For each pruned layer, which weights are not zero."""
        pairs = zip(self._layers, self._state.weights, strict=True)
        pruned = [(layer, weight) for layer, weight in pairs if layer.pruned]
        return {layer.name: (weight != 0).view(layer.weight.shape).cpu() for layer, weight in pruned}

    def restore(self, masks: Mapping[str, Tensor]) -> None:
        """Set the weights to zero that an earlier walk set to zero."""
        for layer, weight in zip(self._layers, self._state.weights, strict=True):
            if layer.pruned:
                weight *= masks[layer.name].view(weight.shape).to(weight.device)
        self._state.forward_()

    def steps(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield the steps of the walk: the number of weights that a step decides, and a call that does so."""
        for index in reversed(range(len(self._layers))):
            rows, cols = self._state.weights[index].shape
            if self._layers[index].pruned:
                # The size of a step depends on later layers only. These are decided by now, so a walk that
                # goes on from a checkpoint makes the same steps.
                trial = self._work_of_trial(index)
                # After a step all that follows the row is computed again: trials shall take longer than that.
                most = max(
                    1, _MOST_WORK // (len(self._state.signs) * trial), self._work_after(index) // trial
                )
                for row in range(rows):
                    for begin in range(0, cols, most):
                        end = min(begin + most, cols)
                        yield end - begin, partial(self._decide, (index, row, begin, end))

    def _work_of_trial(self, index: int) -> int:
        """Return the maximum work of trying one weight of a layer on one input."""
        # Each place of a channel counts as a neuron.
        work = _NEURON * self._layers[index].places
        for later, (layer, live) in enumerate(self._live_after(index)):
            # Of the next layer only the weights that read the row's channel take part.
            read = _most_of_a_channel(live, layer, self._layers[index]) if later == 0 else int(live.sum())
            work += layer.places * (_NEURON * int(live.any(1).sum()) + read)
        return work

    def _work_after(self, index: int) -> int:
        """Return the work of computing a row of a layer and all later layers on one input."""
        work = self._layers[index].places * self._state.weights[index].shape[1]
        return work + sum(
            layer.places * (_NEURON * len(live) + int(live.sum())) for layer, live in self._live_after(index)
        )

    def _live_after(self, index: int) -> list[tuple[TailLayer, Tensor]]:
        """Return the later layers, and which of their weights are not zero."""
        weights = (weight != 0 for weight in self._state.weights[index + 1 :])
        return list(zip(self._layers[index + 1 :], weights, strict=True))

    def _decide(self, place: tuple[int, int, int, int]) -> None:
        self._state.walk_row_(*place, self._highest, self._least_right)

    def circuit(self) -> Circuit:
        """Return the circuit: the weights that are not zero."""
        after = self._measure()
        numbers = (self._tolerance, self._count, self.before[0], after[0], self.before[1], after[1])
        return Circuit(self._state.label, self.masks, self._criterion, *numbers)


def _most_of_a_channel(live: Tensor, reader: TailLayer, layer: TailLayer) -> int:
    """Return how many weights that are not zero read a channel of a layer, of the channel with the most."""
    groups, taps, in_places = 1, 1, 1
    if reader.convolution is not None:
        groups, in_places = reader.convolution.groups, reader.convolution.in_places
        taps = len(reader.convolution.sources)
    by_input = live.view(groups, -1, live.shape[1] // taps, taps).sum((1, 3)).flatten()
    return int(by_input.view(-1, layer.held_places // in_places).sum(1).max())
