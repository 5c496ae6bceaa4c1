"""The adjusted Rand index of two clusterings, without scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np


def adjusted_rand(expected: Any, found: Any) -> float:
    """Return 1 for the same clusters, whatever their numbers are, and about 0 for chance.

    Source: L. Hubert and P. Arabie, "Comparing partitions", Journal of Classification 1985.

    Example:
        >>> adjusted_rand([0, 0, 1, 1], [1, 1, 0, 0])
        1.0
    """
    (_, rows), (_, cols) = (np.unique(labels, return_inverse=True) for labels in (expected, found))
    counts = np.zeros((rows.max() + 1, cols.max() + 1), dtype=np.int64)
    np.add.at(counts, (rows.ravel(), cols.ravel()), 1)

    def pairs(sizes: Any) -> float:
        return float((sizes * (sizes - 1) // 2).sum())

    both, of_rows, of_cols = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    by_chance = of_rows * of_cols / max(pairs(counts.sum()), 1.0)
    most = (of_rows + of_cols) / 2
    return 1.0 if most == by_chance else (both - by_chance) / (most - by_chance)
