"""Comparing unit circuits: with each other, with clusters, and with random circuits of equal size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modfast.arrays import require_numbers
from modfast.layers.names import known_name
from modfast.partition import Labels, read_labels

from .unit_circuit import UnitCircuit


class KeptUnits:
    """The units that several circuits of one network keep, of those that they were asked for.

    Args:
        circuits: at least one, with the same spaces and the same units asked for.

    Attributes:
        kept: bool, ``(n, num_units)``.
        asked: bool, ``(num_units,)``.
        spaces: the spaces of which units were asked for.

    Raises:
        ValueError: there is no circuit, or the circuits differ in spaces or in the units asked for.
    """

    def __init__(self, circuits: Sequence[UnitCircuit]) -> None:
        if not circuits:
            raise ValueError("circuits must hold at least one circuit, got none")
        first = circuits[0]
        for index, other in enumerate(circuits):
            if other.spaces != first.spaces or len(other.kept) != len(first.kept):
                raise ValueError(
                    f"circuits must be of the same network: [0] has {_described(first)}, "
                    f"[{index}] {_described(other)}"
                )
            differing = (other.asked != first.asked).nonzero().flatten()
            if len(differing):
                raise ValueError(
                    f"circuits must be asked for the same units: [0] and [{index}] differ in "
                    f"{len(differing)}, the first is unit {int(differing[0])}"
                )
        self.asked = first.asked
        self.kept = torch.stack([circuit.kept & self.asked for circuit in circuits])
        self.spaces = {name: space for name, space in first.spaces.items() if bool(self.asked[space].any())}

    def shared(self, space: str | None) -> Tensor:
        """Return how many units each two circuits share, in a space or in all: float64, ``(n, n)``."""
        kept = self.kept if space is None else self.kept[:, self.spaces[self.space_named(space)]]
        return kept.double() @ kept.double().T

    def space_named(self, layer: str) -> str:
        """The space of this name.

        Raises:
            ValueError: there is none of which units were asked for.
        """
        name = known_name(self.spaces, layer)
        if name is None:
            raise ValueError(
                f"layer must be a space of which units were asked for "
                f"({', '.join(map(repr, self.spaces))}), got {layer!r}"
            )
        return name

    def clustered(self, labels: Labels, argument: str) -> dict[str, Tensor]:
        """Count each circuit's units in each cluster and, last, those in none: ``(n, k + 1)`` by space.

        Raises:
            ValueError: ``labels`` are not one integer, -1 or above, for each unit.
        """
        given = read_labels(argument, labels, 2**31 - 2)
        require_numbers(argument, given)
        number = self.kept.shape[1]
        if len(given) != number:
            raise ValueError(f"{argument} must be {number} labels, one for each unit, got {len(given)}")
        clusters = max(int(given.max()) + 1, 1)
        of_unit = given.cpu().where(given.cpu() >= 0, clusters)
        counts = {}
        for name, space in self.spaces.items():
            of_space = torch.zeros(len(self.kept), clusters + 1, dtype=torch.float64, device="cpu")
            counts[name] = of_space.index_add_(1, of_unit[space], self.kept[:, space].double())
        return counts


def _described(circuit: UnitCircuit) -> str:
    return str({name: (space.start, space.stop) for name, space in circuit.spaces.items()})


def random_unit_circuit(circuit: UnitCircuit, generator: np.random.Generator) -> UnitCircuit:
    """Return a circuit that keeps as many random units of those asked for in each space."""
    kept, asked = ~circuit.asked, circuit.asked
    for space in circuit.spaces.values():
        candidates = asked[space].nonzero().flatten().numpy() + space.start
        count = int((circuit.kept & asked)[space].sum())
        chosen = generator.choice(len(candidates), count, replace=False, shuffle=False)
        kept[torch.from_numpy(candidates[chosen])] = True
    return replace(circuit, kept=kept, metric_after=math.nan)
