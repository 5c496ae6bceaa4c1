"""Circuits to measure, for the tests of measures, tables and runs."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast.circuit import Circuit


def circuit(label: int = 0, **masks: Tensor) -> Circuit:
    """A circuit of these masks; its other numbers do not matter."""
    return Circuit(label, masks, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)


def kept(text: str) -> Tensor:
    """A mask as rows of ``x`` for a weight that is kept and ``.`` for one that is not."""
    return torch.tensor([[each == "x" for each in row] for row in text.split()])
