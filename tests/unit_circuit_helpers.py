"""Unit circuits to draw and to measure, without finding any."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modfast.circuits.units.unit_circuit import UnitCircuit

NETWORK = {".input": 6, "fc1": 8, "fc2": 4, "fc3": 3}
"""The spaces of a small network, with their sizes."""


def ranges(sizes: dict[str, int]) -> dict[str, slice]:
    spaces, start = {}, 0
    for name, size in sizes.items():
        spaces[name] = slice(start, start + size)
        start += size
    return spaces


def unit_circuit(
    name: str,
    scores: dict[str, Sequence[float]],
    least: float = 0.5,
    sizes: dict[str, int] | None = None,
) -> UnitCircuit:
    """A circuit that keeps the units whose scores are ``least`` or more, of the spaces that have scores."""
    spaces = ranges(sizes or NETWORK)
    total = max(space.stop for space in spaces.values())
    given = torch.full((total,), float("nan"), dtype=torch.float64)
    for space, values in scores.items():
        given[spaces[space]] = torch.tensor(values, dtype=torch.float64)
    kept = given.isnan() | (given >= least)
    return UnitCircuit(kept, given, spaces, "attribution", "mean", 0.05, 20, 7, -0.25, -0.3, name=name)


def three_circuits() -> list[UnitCircuit]:
    """Of the classes a, b and c: the first two share a unit, and one unit of c lowers the metric."""
    return [
        unit_circuit("a", {"fc1": [4, 0.1, 0.2, 0, 0, 0.3, 0.1, 0], "fc2": [1, 0.2, 0.1, 0]}),
        unit_circuit("b", {"fc1": [2, 3, 0.2, 0, 0.1, 0, 0, 0], "fc2": [0.1, 0.2, 0.9, 0]}),
        unit_circuit("c", {"fc1": [-1.5, 0, 0, 0.7, 0, 0, 0, 0.8], "fc2": [0, 0, 0, 0.25]}),
    ]


def clusters() -> Tensor:
    """Two clusters of neurons, alternating in fc1; one unit of fc2 is in none."""
    labels = torch.full((21,), -1)
    labels[6:14] = torch.arange(8) % 2
    labels[14:17] = torch.tensor([0, 0, 1])
    return labels


def many_circuits(units: int, tasks: int) -> list[UnitCircuit]:
    """Circuits of a deep network with this many units."""
    torch.manual_seed(0)
    sizes = {f"model.layers.{layer}.mlp.up_proj": units // 8 for layer in range(8)}
    return [
        unit_circuit(
            f"task {task}",
            {name: torch.randn(size, dtype=torch.float64).tolist() for name, size in sizes.items()},
            least=1.5,
            sizes=sizes,
        )
        for task in range(tasks)
    ]
