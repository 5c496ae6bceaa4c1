"""Cells, large enough to be seen, into which a matrix sorted by clusters is divided."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cluster_starts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions in sorted labels where a cluster begins, and the end."""
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    return np.concatenate(([0], changes, [len(labels)])).astype(np.int64)


def cell_edges(starts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the edges of about ``most`` cells of nearly equal size, none of which spans two clusters."""
    size = math.ceil(int(starts[-1]) / most)
    pieces = [
        np.linspace(begin, end, math.ceil((end - begin) / size), endpoint=False)
        for begin, end in pairwise(starts)
    ]
    return np.concatenate([*pieces, starts[-1:]]).astype(np.int64)
