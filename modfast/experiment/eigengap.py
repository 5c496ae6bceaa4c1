"""Clusters one layer into several numbers of clusters, and chooses the number that its weights support most.

The number of clusters of a layer is chosen by its *eigengap*, as :func:`modfast.eigengap` explains. The
difference is absolute, not relative to ``s_k``: the first value is 1 for any scale of the weights. A ratio
would be largest among the last values, where noise is divided by smaller noise.

Some gap is always the largest, and the search finds clusters better than chance in any weights. So the gap is
compared with those that the same search finds in the same weights shuffled. Without structure, a gap exceeds
those of all ``n`` shuffles with a probability of ``1 / (n + 1)``; a gap below one of them is no evidence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modfast.energy.functional import clusterability
from modfast.partition import Partition
from modfast.spectral.clustering import normalized_cut, spectral_cocluster
from modfast.spectral.eigengap import choose_count, gaps_after, shuffled_weights, singular_values
from modfast.train.config import Record

from .settings import ClusterConfig as ClusterConfig


def possible_counts(weight: Tensor, config: ClusterConfig) -> list[int]:
    """Return the numbers of clusters that a weight can be divided into."""
    return [k for k in config.num_clusters if k <= min(weight.shape[:2])] if bool(weight.any()) else []


def cluster_layer(
    weight: Tensor, config: ClusterConfig, on_step: Callable[[int], None] | None = None
) -> tuple[Record, dict[int, Partition]]:
    """Cluster one weight for every number of clusters, and choose one of these.

    Args:
        weight: ``(out, in, *kernel)``, dense float32, float64, float16 or bfloat16, finite.
        config: the settings; a number of clusters above the weight's smaller side is left out.
        on_step: called with each number of clusters before the weight is divided into so many.

    Returns:
        A record that JSON can hold, and the partition for each number of clusters. The record has ``shape``,
        ``left_out`` (numbers of clusters), ``chosen`` (one of them, or None for a weight of zeros or one
        with too few neurons), ``singular_values`` (one more than the largest number of clusters, where so
        many rows and columns have weights), ``shuffled`` (what the same search finds in the same weights
        shuffled: ``largest_gaps``, one for each shuffle, and ``singular_values``, ``clusterability`` and
        ``normalized_cut`` of the first shuffle, the last two for the chosen number) and ``clusters``, a list
        that has for each number ``num_clusters``, ``clusterability``, ``normalized_cut``, ``by_chance``
        (the expected values of these two, see :func:`by_chance`), ``gap`` (None where there is no further
        singular value), ``sizes`` (rows and columns), ``converged`` and ``seconds``.

    Example:
        >>> weight = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4), torch.ones(4, 4)) + 0.1
        >>> record, partitions = cluster_layer(weight, ClusterConfig(num_clusters=(2, 3, 4)))
        >>> record["chosen"], partitions[3].row_labels.tolist()
        (3, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """
    side, counts = min(weight.shape[:2]), possible_counts(weight, config)
    record: Record = {
        "shape": list(weight.shape),
        "left_out": [k for k in config.num_clusters if k not in counts],
        "chosen": None,
        "singular_values": [],
        "shuffled": {},
        "clusters": [],
    }
    partitions: dict[int, Partition] = {}
    if not counts:
        return record, partitions

    def cocluster(matrix: Tensor, k: int, n_init: int) -> tuple[Partition, dict[str, Any]]:
        return spectral_cocluster(
            matrix,
            k,
            affinity=config.affinity,
            n_init=n_init,
            tol=config.tol,
            seed=config.seed,
            return_info=True,
        )

    def measures(matrix: Tensor, partition: Partition) -> dict[str, float]:
        return {
            "clusterability": float(clusterability(matrix, partition)),
            "normalized_cut": normalized_cut(matrix, partition, affinity=config.affinity),
        }

    for k in counts:
        if on_step is not None:
            on_step(k)
        began = time.perf_counter()
        partitions[k], info = cocluster(weight, k, config.n_init)
        record["clusters"].append(
            {
                "num_clusters": k,
                **measures(weight, partitions[k]),
                "by_chance": by_chance(partitions[k]),
                "sizes": partitions[k].sizes().tolist(),
                "converged": bool(info["converged"]),
                "seconds": time.perf_counter() - began,
            }
        )
    # The last gap needs one singular value more than there are clusters.
    most = min(counts[-1] + 1, side)

    def spectrum(matrix: Tensor) -> list[float]:
        values = singular_values(matrix, most, config.affinity, tol=config.tol, seed=config.seed)
        return list(map(float, values))

    record["singular_values"] = spectrum(weight)
    gaps = gaps_after(record["singular_values"], counts)
    for clustering in record["clusters"]:
        clustering["gap"] = gaps[clustering["num_clusters"]]
    record["chosen"] = choose_count(gaps)

    spectra: list[list[float]] = []
    of_first: dict[str, float] = {}
    for shuffled in shuffled_weights(weight, config.shuffles, config.seed):
        if not spectra:
            of_first = measures(shuffled, cocluster(shuffled, record["chosen"], config.n_init)[0])
        spectra.append(spectrum(shuffled))
    largest = [
        max((gap for gap in gaps_after(values, counts).values() if gap is not None), default=None)
        for values in spectra
    ]
    record["shuffled"] = {
        "largest_gaps": [gap for gap in largest if gap is not None],
        "singular_values": spectra[0],
        **of_first,
    }
    return record, partitions


def by_chance(partition: Partition) -> dict[str, float]:
    """Return the expected clusterability and cut of weights without structure, in clusters of these sizes.

    Clusterability is the share of the matrix that lies inside clusters, ``1/k`` for ``k`` equal ones; the
    normalised cut is that of a constant matrix, ``k - 1`` for equal ones. Rows and columns in no cluster
    are taken to be zero.

    Example:
        >>> by_chance(Partition.blocks((8, 4), 4))
        {'clusterability': 0.25, 'normalized_cut': 3.0}
    """
    shares = partition.sizes().cpu().to(torch.float64)
    shares = shares / shares.sum(0).clamp(min=1.0)
    inside, volume = 2.0 * shares.prod(1), shares.sum(1)
    held = volume > 0
    return {
        "clusterability": float(shares.prod(1).sum()),
        "normalized_cut": float((1.0 - inside[held] / volume[held]).sum()),
    }
