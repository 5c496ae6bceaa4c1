"""Circuits to measure and a model to find some in, for the tests of measures, tables and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modfast.circuit import Circuit
from modfast.circuits.folder import read_circuits
from modfast.cli import main
from modfast.partition import Partition
from modfast.report.circuits.summary import describe_circuits

CPU = ["--device", "cpu", "--threads", "1"]
TRAINING = ["--data", "digits", "--model", "circuit_helpers:Tiny", "--layers", "fc2", "--clusters", "2"]
TRAINING += ["--epochs", "10", *CPU]


def circuit(label: int = 0, **masks: Tensor) -> Circuit:
    """A circuit of these masks; its other numbers do not matter."""
    return Circuit(label, masks, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)


def kept(text: str) -> Tensor:
    """A mask as rows of ``x`` for a weight that is kept and ``.`` for one that is not."""
    return torch.tensor([[letter == "x" for letter in row] for row in text.split()])


HALVES = {"fc": Partition([0, 0, 1, 1], [0, 0, 1, 1], 2)}


def described(first: str, second: str) -> dict[str, Any]:
    return describe_circuits([circuit(0, fc=kept(first)), circuit(1, fc=kept(second))], HALVES, seed=0)


def run(kind: str, first: str, second: str, best: float = 0.5) -> dict[str, Any]:
    return {
        "kind": kind,
        "accuracy": 0.9,
        "clusterability": {"fc": 0.5},
        "cluster_accuracy": {"fc": {"only": [[best, 0.5], [0.5, 0.5]], "without": [[0.5, 0.5], [0.5, 0.5]]}},
        "criteria": {"loss": described(first, second)},
    }


BOTH = "xx.. xx.. .... ...."
PLAIN = [
    run("plain", BOTH, "xx.. xx.. .... ..xx"),
    run("plain", BOTH, "xx.. xx.. ..x. ..xx"),
    run("plain", BOTH, "xxx. xx.. .... ..xx"),
]
MODULAR = [
    run("modular", BOTH, ".... .... ..x. ..xx", best=1.0),
    run("modular", "xx.. x... .... ....", ".... .... ..xx ..xx", best=0.9),
    run("modular", BOTH, ".... .... ..xx ..x.", best=0.95),
]


def train_pair(out: Path, seeds: int = 1) -> Path:
    """Train plain and modular models into a folder, without drawing pictures, which takes longer."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_run", "draw_reproduction"):
            patch.setattr(f"modfast.experiment.runs.{name}", lambda folder: [])
        assert main(["reproduce", *TRAINING, "--seeds", str(seeds), "--out", str(out)]) == 0
    return out


def numbers(folder: Path) -> dict[str, Any]:
    """The table of circuits, without what differs from run to run."""
    results = read_circuits(folder)
    del results["environment"], results["config"]["command"], results["config"]["processes"]
    for run in results["runs"]:
        for measures in run["criteria"].values():
            del measures["seconds"]
    return results


class Tiny(nn.Module):
    """120 weights for the digits; ``circuit_helpers:Tiny`` on the command line."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc1 = nn.Linear(4 * image_shape[0], 6, bias=False)
        self.fc2 = nn.Linear(6, 6, bias=False)
        self.fc3 = nn.Linear(6, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(self.pool(images).flatten(1)))
        logits: Tensor = self.fc3(torch.relu(self.fc2(hidden)))
        return logits
