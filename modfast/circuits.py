"""Circuits: which weights a class needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .circuit import Circuit
from .layers import linear_layers, match_layers
from .reference import circuits as plain


def find_circuit(
    model: nn.Module,
    inputs: Tensor,
    label: int,
    *,
    layers: Sequence[str] | None = None,
    criterion: str = "loss",
    tolerance: float = 0.0,
    labels: Tensor | None = None,
    method: str = "compiled",
    progress: Callable[[int, int], None] | None = None,
) -> Circuit:
    """The circuit of one class."""
    chosen = linear_layers(model) if layers is None else match_layers(model, layers)
    names = {layer.name: layer.parameter_name for layer in chosen}
    masks, measures = plain.find_circuit(model, inputs, label, names, criterion, tolerance, labels, progress)
    return Circuit(label, masks, criterion, tolerance, len(inputs), **measures)


def find_circuits(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: Iterable[int] | None = None,
    layers: Sequence[str] | None = None,
    criterion: str = "loss",
    tolerance: float = 0.0,
    seed: int = 0,
    method: str = "compiled",
    progress: Callable[[int, int], None] | None = None,
    on_circuit: Callable[[Circuit], None] | None = None,
) -> list[Circuit]:
    """The circuits of several classes, each found on its own inputs among many."""
    found = []
    for label in sorted(set(labels.tolist())) if classes is None else classes:
        own = labels == label
        chosen = torch.nonzero(own).flatten()
        given = None
        if criterion == "balanced":
            others = torch.nonzero(~own).flatten()
            order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed + label))
            chosen = torch.cat([chosen, others[order[: len(chosen)]].sort().values])
            given = labels[chosen]
        circuit = find_circuit(
            model,
            inputs[chosen],
            label,
            layers=layers,
            criterion=criterion,
            tolerance=tolerance,
            labels=given,
        )
        found.append(circuit)
        if on_circuit is not None:
            on_circuit(circuit)
    return found
