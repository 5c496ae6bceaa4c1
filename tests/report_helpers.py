"""Runs to report on, for the tests of tables and of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


def history(epochs: int, seed: int = 0, share: float = 0.25) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 2.5 / epoch,
            "cross_entropy": 2.0 / epoch + 0.1 * seed,
            "enmeshment": 1.0 - share,
            "train_accuracy": 1.0 - 0.4 / epoch,
            "test_accuracy": 1.0 - 0.5 / epoch - 0.02 * seed,
            "clusterability": {"fc1": 0.25, "fc2": share},
            "seconds": 1.0 + epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def run(accuracy: float, share: float, epochs: int = 2) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "clusterability": {"fc1": 0.25, "fc2": share},
        "history": history(epochs, share=share),
    }


PLAIN = [run(0.95, 0.24), run(0.96, 0.26), run(0.97, 0.25)]
MODULAR = [run(0.94, 0.98, 4), run(0.96, 0.99, 4), run(0.97, 0.97, 4)]
CONFIG = {
    "data": "digits",
    "num_clusters": 4,
    "enmeshment_weight": 0.7,
    "regularised_layers": ["fc2"],
    "epochs": {"plain": 2, "modular": 4},
    "seeds": [0, 1, 2],
}


def is_picture(path: Path) -> bool:
    """Whether a file is a whole picture that is not empty."""
    with Image.open(path) as image:
        image.verify()
    return path.stat().st_size > 5000
