"""What the page of unit circuits shows: the units by column, as numbers for its picture, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.partition import Labels, read_labels

from .measures import asked_spaces, describe_unit_circuits

# As many as anybody can tell apart in a picture: scores are printed with three digits.
_DIGITS = 4


@dataclass(frozen=True)
class UnitFindings:
    """The unit circuits of one model, checked, with their measures.

    Attributes:
        circuits: the circuits, all of the same spaces.
        names: the name of each circuit's task; all differ.
        spaces: the spaces of which units were asked for, in order: the columns of the picture.
        left_out: the other spaces, with how many units each has.
        clusters: the cluster of each unit, -1 for none; None if there are no clusters.
        measures: what :func:`modfast.report.unit_circuits.measures.describe_unit_circuits` returns.
    """

    circuits: Sequence[UnitCircuit]
    names: Sequence[str]
    spaces: Mapping[str, slice]
    left_out: Mapping[str, int]
    clusters: Tensor | None
    measures: Mapping[str, Any]

    @classmethod
    def of(
        cls, circuits: Sequence[UnitCircuit], clusters: Labels | None = None, *, seed: int = 0
    ) -> UnitFindings:
        """Check circuits and clusters, and measure them; raises as ``write_unit_page`` does."""
        circuits = list(circuits)
        names = _checked_names(circuits)
        spaces = asked_spaces(circuits)
        _check_places(circuits, spaces)
        labels = None
        if clusters is not None:
            number = len(circuits[0].kept)
            # The page has a column for each: more clusters than units can only be a mistake.
            labels = read_labels("clusters", clusters, number).cpu()
            if len(labels) != number:
                raise ValueError(f"clusters must be {number}, one for each unit, got {len(labels)}")
            labels = labels if bool((labels >= 0).any()) else None
        left_out = {
            name: space.stop - space.start
            for name, space in circuits[0].spaces.items()
            if name not in spaces and space.stop > space.start
        }
        measures = describe_unit_circuits(circuits, labels, seed)
        return cls(circuits, names, spaces, left_out, labels, measures)

    @property
    def cluster_sizes(self) -> list[tuple[int, int]]:
        """Each cluster that a drawn unit is in, -1 for none, with the number of its drawn units."""
        if self.clusters is None:
            return []
        drawn = torch.cat([self.clusters[space] for space in self.spaces.values()])
        found, counts = drawn.unique(return_counts=True)
        sizes = dict(zip(found.tolist(), counts.tolist(), strict=True))
        return sorted(sizes.items(), key=lambda size: (size[0] < 0, size))

    @property
    def num_drawn(self) -> int:
        """How many units the picture has."""
        return sum(space.stop - space.start for space in self.spaces.values())


def _checked_names(circuits: Sequence[UnitCircuit]) -> list[str]:
    if not circuits:
        raise ValueError("circuits must be at least one unit circuit, got none")
    for circuit in circuits:
        if not isinstance(circuit, UnitCircuit):
            raise TypeError(f"circuits must hold UnitCircuit, got {type(circuit).__name__}")
        if circuit.spaces != circuits[0].spaces or len(circuit.kept) != len(circuits[0].kept):
            raise ValueError(
                f"circuits must be of one network: {circuit.name!r} has {len(circuit.kept)} units in "
                f"{list(circuit.spaces)}, {circuits[0].name!r} has {len(circuits[0].kept)} in "
                f"{list(circuits[0].spaces)}"
            )
        if bool(circuit.scores.isinf().any()):
            raise ValueError(f"circuits: the scores of {circuit.name!r} must be finite, one is infinite")
    names = [circuit.name or f"circuit {place}" for place, circuit in enumerate(circuits, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"circuits must have names of their own, {name!r} is there {names.count(name)} times"
            )
    return names


def _check_places(circuits: Sequence[UnitCircuit], spaces: Mapping[str, slice]) -> None:
    """Check that each unit that was asked for has one place in the picture."""
    places = torch.zeros(len(circuits[0].kept), dtype=torch.int64, device="cpu")
    for space in spaces.values():
        places[space] += 1
    asked = torch.stack([circuit.asked for circuit in circuits]).any(0)
    wrong = torch.nonzero(asked & (places != 1)).flatten().tolist()
    if wrong:
        raise ValueError(
            f"circuits: spaces must hold each unit that was asked for once, unit {wrong[0]} is in "
            f"{int(places[wrong[0]])}"
        )


def picture_data(findings: UnitFindings) -> dict[str, Any]:
    """Return what the page's script draws, as JSON values.

    Returns:
        ``spaces``: for each column ``name``, ``start`` (the number of its first unit in the network) and
        ``size``. ``circuits``: for each ``name``, ``kept`` (a digit for each unit drawn, column after column:
        1 if it is kept) and ``scores`` (in the same order; None for units that were not asked for).
        ``clusters``: in the same order, or None.
    """
    drawn = list(findings.spaces.values())
    return {
        "spaces": [
            {"name": name, "start": space.start, "size": space.stop - space.start}
            for name, space in findings.spaces.items()
        ],
        "circuits": [
            {
                "name": name,
                "kept": "".join(str(int(kept)) for space in drawn for kept in circuit.kept[space].tolist()),
                "scores": [_short(score) for space in drawn for score in circuit.scores[space].tolist()],
            }
            for name, circuit in zip(findings.names, findings.circuits, strict=True)
        ],
        "clusters": None
        if findings.clusters is None
        else [cluster for space in drawn for cluster in findings.clusters[space].tolist()],
    }


def _short(score: float) -> float | None:
    return None if score != score else float(f"{score:.{_DIGITS}g}")
