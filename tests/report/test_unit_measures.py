"""Measures of unit circuits: those of random circuits of the same sizes, and of circuits that are empty."""

from __future__ import annotations

import pytest
import torch

from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.report.unit_circuits.measures import describe_unit_circuits


def test_random_circuits_have_the_same_sizes() -> None:
    """Where circuits keep all or nothing of a space, random ones are the same circuits."""
    spaces = {"a": slice(0, 3), "b": slice(3, 5)}
    first = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    circuits = [
        UnitCircuit(scores > 0.5, scores, spaces, "greedy", "zero", 0.0, 1, 1, 0.0, 0.0, name=name)
        for name, scores in (("x", first), ("y", 1 - first), ("z", torch.ones_like(first)))
    ]
    described = describe_unit_circuits(circuits, torch.tensor([0, 0, 1, 1, -1]), seed=0)
    overlaps = torch.tensor(described["overlap"])
    torch.testing.assert_close(overlaps, torch.tensor([[1, 0, 0.6], [0, 1, 0.4], [0.6, 0.4, 1]]))
    assert described["random_overlap"] == pytest.approx((0 + 0.6 + 0.4) / 3)
    inside = [[2 / 3, 1 / 3], [0.0, 0.5], [0.4, 0.4]]
    assert [pytest.approx(line) for line in inside] == described["inside"]
    assert described["random_inside"] == pytest.approx([(2 / 3 + 0.4) / 3, (1 / 3 + 0.5 + 0.4) / 3])
    largest = [2 / 3, 0.5, 0.4]
    assert described["largest_share"] == pytest.approx(largest)
    assert described["random_largest_share"] == pytest.approx(sum(largest) / 3)
    assert described["sizes"] == {"a": [1.0, 0.0, 1.0], "b": [0.0, 1.0, 1.0]}


def test_empty_circuits_have_no_shares() -> None:
    scores = torch.zeros(2, dtype=torch.float64)
    circuits = [
        UnitCircuit(scores > 0.5, scores, {"a": slice(0, 2)}, "greedy", "zero", 0, 1, 1, 0, 0, name=name)
        for name in "xy"
    ]
    described = describe_unit_circuits(circuits, torch.tensor([0, 1]), seed=0)
    assert described["inside"] == [[None, None]] * 2
    assert described["random_inside"] == [None, None]
    assert described["overlap"] == [[None, None]] * 2
    assert described["random_overlap"] is None
    assert described["random_largest_share"] is None
