"""How a matrix sorted by clusters is divided into cells that are large enough to be seen."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cluster_starts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions at which a new cluster begins in sorted labels, and the end."""
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    return np.concatenate(([0], changes, [len(labels)])).astype(np.int64)


def cell_edges(starts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Edges of about ``most`` drawn cells of nearly equal size, none of them across two clusters."""
    size = math.ceil(int(starts[-1]) / most)
    pieces = [
        np.linspace(begin, end, math.ceil((end - begin) / size), endpoint=False)
        for begin, end in pairwise(starts)
    ]
    return np.concatenate([*pieces, starts[-1:]]).astype(np.int64)
