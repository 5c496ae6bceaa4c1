"""The results of a run: the files that hold them, and how numbers are written in JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import open_to_read, read_json
from .run_folder import Planned

RESULTS = "results.json"
PARTITIONS = "partitions.npz"
KINDS = ("plain", "modular")


def run_name(kind: str, seed: int) -> str:
    """The name of one run's folder within a comparison."""
    return f"{kind}-seed{seed}"


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``results.json`` of a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is damaged.
    """
    path = Path(folder) / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"{os.fspath(folder)} holds no {RESULTS}: no run has finished there")
    results = read_json(path)
    known = ({"history"}, {"clustering"}, {"network_clustering"}, set(KINDS))
    if not isinstance(results, dict) or not any(keys <= set(results) for keys in known):
        raise ValueError(f"{path} is no result of modfast")
    kinds = {"config": dict, "history": list, **dict.fromkeys(KINDS, dict)}
    kinds |= dict.fromkeys(["clustering", "network_clustering"], dict)
    for key, kind in kinds.items():
        if not isinstance(results.get(key, kind()), kind):
            raise ValueError(f"{path} is damaged: {key!r} must hold a {kind.__name__}")
    if "history" in results and not (results["history"] and "config" in results):
        raise ValueError(f"{path} is damaged: it must hold an epoch at least, and 'config'")
    return results


def as_lists(values: Tensor) -> Any:
    """Nested lists with None for NaN, which JSON cannot hold.

    Example:
        >>> as_lists(torch.tensor([[0.5, float("nan")]]))
        [[0.5, None]]
    """
    if values.dim() > 1:
        return [as_lists(row) for row in values]
    return [None if value != value else value for value in values.tolist()]


def from_lists(shares: Any) -> Tensor:
    """The inverse of :func:`as_lists`."""
    if shares and isinstance(shares[0], list):
        return torch.stack([from_lists(row) for row in shares])
    return torch.tensor(
        [float("nan") if value is None else value for value in shares], dtype=torch.float64, device="cpu"
    )


def results_with(key: str) -> Planned:
    """A ``results.json`` with this key, which only the results of one command have."""

    def read(path: Path) -> None:
        if key not in read_results(path.parent):
            raise ValueError(f"{path} holds the results of another command")

    return Planned(read)


# The width of the images of modfast.report.pictures.style, which is not imported: that takes a second.
_PNG_SIGNATURE, _PNG_WIDTH = b"\x89PNG\r\n\x1a\n", 1440


def _read_picture(path: Path) -> None:
    with open_to_read(path) as file:
        start = file.read(24)
    if start[:8] != _PNG_SIGNATURE or int.from_bytes(start[16:20], "big") != _PNG_WIDTH:
        raise ValueError(f"{path} is no picture of modfast")


PICTURE = Planned(_read_picture, drawn_from=RESULTS)
"""An image that shows the results in the same folder."""
