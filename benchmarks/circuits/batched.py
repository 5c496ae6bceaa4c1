"""The walk for a circuit in plain PyTorch on a GPU: many weights of a row are tried in one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.circuits.linear_tail import Tail, read_tail

# Most weights are removed: a batch assumes that all its weights are, up to the first that raises the loss.
_BATCH = 64
# Rounding, relative: a weight that changes nothing must not look as if it raised the loss.
_SLACK = 1e-12


class BatchedWalk:
    """The greedy walk along a linear tail, float64, on the device; :meth:`run` makes all trials.

    A batch tries the next weights of a row that are not zero: candidate i removes the first i + 1 of them.
    The candidates before the first that raises the loss are what a loop of single trials would decide, one
    after the other; that one keeps its weight, and the next batch begins after it. Only the row's neuron
    changes, so a candidate costs a column of the next layer and the layers after it.

    Args:
        tail: the features and layers.
        label: the class of all inputs.
        device: where to compute.
    """

    def __init__(self, tail: Tail, label: int, device: str) -> None:
        if any(layer.activation not in ("relu", "identity") for layer in tail.layers):
            raise ValueError("the batched walk knows layers with relu or nothing after them")
        self.features = tail.features.to(device)
        self.weights = [layer.weight.to(device, copy=True) for layer in tail.layers]
        self.biases = [None if layer.bias is None else layer.bias.to(device) for layer in tail.layers]
        self.relu = [layer.activation == "relu" for layer in tail.layers]
        self.label = label
        self.batches = 0
        highest = self._losses(self._sums(len(self.weights) - 1)[None])
        self.highest = float(highest) * (1.0 + _SLACK)

    @torch.no_grad()
    def run(self) -> list[Tensor]:
        """Make all trials; return which weights are kept, layer by layer, on the CPU."""
        for layer in reversed(range(len(self.weights))):
            inputs = self.features if layer == 0 else self._outputs(layer - 1)
            for row in range(len(self.weights[layer])):
                self._walk_row(layer, row, inputs)
        return [weight.ne(0).cpu() for weight in self.weights]

    def _walk_row(self, layer: int, row: int, inputs: Tensor) -> None:
        weights = self.weights[layer][row]
        sums = self._sums(layer, inputs)
        # The next layer's sums, from which a candidate differs by one column; of the last layer its own.
        beyond = (
            None if layer + 1 == len(self.weights) else self._sums(layer + 1, self._activated(layer, sums))
        )
        places = weights.nonzero()[:, 0]
        own, at = sums[:, row].clone(), 0
        while at < len(places):
            batch = places[at : at + _BATCH]
            removed = (inputs[:, batch] * weights[batch]).cumsum(1).T
            losses = self._losses(self._logits(layer, row, own[None] - removed, sums, beyond))
            self.batches += 1
            raising = (losses > self.highest).nonzero()
            good = int(raising[0, 0]) if len(raising) else len(batch)
            if good:
                own -= removed[good - 1]
                weights[batch[:good]] = 0.0
            at += good + (good < len(batch))

    def _logits(self, layer: int, row: int, own: Tensor, sums: Tensor, beyond: Tensor | None) -> Tensor:
        """Return the logits (candidates, inputs, classes), given the row's sums (candidates, inputs)."""
        if beyond is None:
            logits = sums.expand(len(own), *sums.shape).clone()
            logits[:, :, row] = own
            return logits
        before = self._activated(layer, sums[:, row])
        change = self._activated(layer, own) - before
        values = beyond + change[:, :, None] * self.weights[layer + 1][:, row]
        for later in range(layer + 2, len(self.weights)):
            values = functional.linear(
                self._activated(later - 1, values), self.weights[later], self.biases[later]
            )
        return values

    def _losses(self, logits: Tensor) -> Tensor:
        """Return the mean loss of each candidate."""
        return (logits.logsumexp(2) - logits[:, :, self.label]).mean(1)

    def _activated(self, layer: int, sums: Tensor) -> Tensor:
        return sums.relu() if self.relu[layer] else sums

    def _sums(self, layer: int, inputs: Tensor | None = None) -> Tensor:
        if inputs is None:
            inputs = self.features if layer == 0 else self._outputs(layer - 1)
        return functional.linear(inputs, self.weights[layer], self.biases[layer])

    def _outputs(self, layer: int) -> Tensor:
        return self._activated(layer, self._sums(layer))


def batched(model: nn.Module, inputs: Tensor, label: int, device: str) -> BatchedWalk:
    return BatchedWalk(read_tail(model, inputs), label, device)
