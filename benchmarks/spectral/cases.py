"""Weights and graphs whose clusters are known, for the benchmarks of spectral clustering."""

from __future__ import annotations

import argparse
import re
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from modfast import Partition


class WeightCase(NamedTuple):
    """A weight of independent numbers, larger inside clusters than outside; rows and columns shuffled."""

    rows: int
    cols: int
    clusters: int
    spread: float = 0.25  # the scale of the numbers outside the clusters, 1 inside
    heavy: bool = False  # Student's t with three degrees of freedom in place of the normal distribution
    unequal: bool = False  # each cluster has twice the rows and columns of the one before
    pruned: str = ""  # which nine of ten entries are zero: the "smallest" or "random" ones

    def __str__(self) -> str:
        notes = [f"outside {self.spread:g}"]
        notes += ["heavy-tailed"] * self.heavy + ["sizes 1:2:4:..."] * self.unequal
        notes += [f"90 % zeros, {self.pruned}"] * bool(self.pruned)
        return f"{self.rows} x {self.cols}, k {self.clusters}, {', '.join(notes)}"


class GraphCase(NamedTuple):
    """A stochastic block model: clusters of equal size, four of five edges inside."""

    nodes: int
    clusters: int
    mean_degree: int = 20

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes, k {self.clusters}"


Case: TypeAlias = WeightCase | GraphCase

WEIGHTS = [
    WeightCase(256, 64, 4),
    WeightCase(512, 512, 4),
    WeightCase(2048, 512, 4),
    WeightCase(3072, 768, 8),
    WeightCase(768, 3072, 8),  # as a language model stores its weights
    WeightCase(4096, 4096, 16, spread=0.5),
    WeightCase(3072, 768, 8, heavy=True),
    WeightCase(3072, 768, 6, unequal=True),
    WeightCase(4096, 4096, 16, spread=0.5, pruned="smallest"),
    WeightCase(4096, 4096, 16, pruned="random"),
]
GRAPHS = [GraphCase(nodes, 8) for nodes in (2_000, 20_000, 100_000, 1_000_000)]


def as_cases(text: str) -> list[Case]:
    groups: dict[str, list[Case]] = {"weights": [*WEIGHTS], "graphs": [*GRAPHS]}
    if text in groups:
        return groups[text]
    if re.fullmatch(r"\d+x\d+(x\d+)?", text):
        *sizes, clusters = map(int, text.split("x"))
        if 0 < clusters <= min(sizes) // 2:
            return [WeightCase(*sizes, clusters) if len(sizes) == 2 else GraphCase(*sizes, clusters)]
    raise argparse.ArgumentTypeError(
        "must be weights, graphs, ROWSxCOLUMNSxCLUSTERS or NODESxCLUSTERS with room for the clusters, "
        f"got {text!r}"
    )


class Planted(NamedTuple):
    """A weight and the clusters that were put into it."""

    weight: Tensor  # dense
    partition: Partition
    sparse: Any = None  # a pruned weight as SciPy's compressed sparse rows


def plant(case: WeightCase, seed: int = 0) -> Planted:
    generator = np.random.default_rng(seed)
    shares = 2.0 ** np.arange(case.clusters) if case.unequal else np.ones(case.clusters)

    def shuffled(size: int) -> Tensor:
        bounds = (size * shares.cumsum() / shares.sum()).round().astype(np.int64)
        return torch.from_numpy(generator.permutation(np.searchsorted(bounds, np.arange(size), side="right")))

    partition = Partition(shuffled(case.rows), shuffled(case.cols), case.clusters)
    if case.heavy:
        values = generator.standard_t(3, size=(case.rows, case.cols)).astype(np.float32)
    else:
        values = generator.standard_normal((case.rows, case.cols), dtype=np.float32)
    weight = torch.from_numpy(values)
    weight *= torch.where(partition.mask(), 1.0, case.spread)
    if not case.pruned:
        return Planted(weight, partition)
    sizes = weight.abs().numpy() if case.pruned == "smallest" else generator.random(weight.shape)
    weight[torch.from_numpy(sizes < np.quantile(sizes, 0.9))] = 0.0
    return Planted(weight, partition, sparse.csr_array(weight.numpy()))


def block_model(case: GraphCase, seed: int = 0) -> tuple[sparse.csr_array, np.ndarray[Any, Any]]:
    """Return the adjacency matrix, float32 with int32 indices, and the cluster of each node."""
    nodes, clusters = case.nodes, case.clusters
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(nodes, dtype=np.int32) % clusters)
    members = labels.argsort(kind="stable").astype(np.int32)
    sizes = np.bincount(labels, minlength=clusters)
    begins = sizes.cumsum() - sizes

    edges = nodes * case.mean_degree // 2
    first = generator.integers(nodes, size=edges, dtype=np.int32)
    cluster = labels[first]
    leaves = generator.random(edges, dtype=np.float32) >= 0.8
    cluster[leaves] += generator.integers(1, clusters, size=int(leaves.sum()), dtype=np.int32)
    cluster %= clusters
    place = generator.random(edges) * sizes[cluster]
    second = members[begins[cluster] + place.astype(np.int64)]

    first, second = first[first != second], second[first != second]
    ends = np.concatenate([first, second]), np.concatenate([second, first])
    adjacency = sparse.csr_array((np.ones(len(ends[0]), dtype=np.float32), ends), shape=(nodes, nodes))
    adjacency.sum_duplicates()
    adjacency.data[:] = 1.0  # an edge that was drawn twice counts once
    return adjacency, labels


def bytes_of(adjacency: Any) -> int:
    """Return the size of a sparse matrix in compressed rows."""
    return int(adjacency.data.nbytes + adjacency.indices.nbytes + adjacency.indptr.nbytes)
