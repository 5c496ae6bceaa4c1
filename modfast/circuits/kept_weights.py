"""The weights that circuits keep, as indices. Circuits keep few weights, so these are smaller than masks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modfast.circuit import Circuit
from modfast.layers.names import known_name
from modfast.partition import Partition

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class KeptWeights:
    """The weights that several circuits of the same layers keep.

    Attributes:
        shapes: layer name to the shape of its weight.
        indices: layer name to each circuit's kept weights, as unsorted indices into the flat weight.
    """

    shapes: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, Sequence[Indices]]

    @classmethod
    def of(cls, circuits: Sequence[Circuit]) -> KeptWeights:
        """Return the kept weights of circuits of the same layers.

        Raises:
            ValueError: there is no circuit, or the circuits differ in layers or shapes.
        """
        if not circuits:
            raise ValueError("circuits must hold at least one circuit, got none")
        shapes = [{name: tuple(mask.shape) for name, mask in circuit.masks.items()} for circuit in circuits]
        for index, other in enumerate(shapes):
            if other != shapes[0]:
                raise ValueError(
                    f"circuits must have the same layers: [0] has {shapes[0]}, [{index}] {other}"
                )
        indices = {
            name: [np.flatnonzero(circuit.masks[name].numpy()) for circuit in circuits] for name in shapes[0]
        }
        return cls(shapes[0], indices)

    def drawn(self, seed: int) -> KeptWeights:
        """Draw as many weights of each circuit and layer at random, the same as ``random_circuits`` does."""
        generator = np.random.default_rng(seed)
        drawn: dict[str, list[Indices]] = {name: [] for name in self.indices}
        for circuit in zip(*self.indices.values(), strict=True):
            for name, indices in zip(self.shapes, circuit, strict=True):
                drawn[name].append(draw_weights(generator, math.prod(self.shapes[name]), len(indices)))
        return KeptWeights(self.shapes, drawn)

    def shared(self, layer: str) -> Tensor:
        """Return the number of weights of a layer that each two circuits share: float64, ``(n, n)``."""
        circuits = self.indices[layer]
        all_indices = np.concatenate(circuits)
        owners = np.repeat(np.arange(len(circuits)), [len(indices) for indices in circuits])
        is_kept = np.zeros(math.prod(self.shapes[layer]), dtype=bool)
        shared = []
        for indices in circuits:
            is_kept[indices] = True
            shared.append(np.bincount(owners[is_kept[all_indices]], minlength=len(circuits)))
            is_kept[indices] = False
        return torch.from_numpy(np.stack(shared)).double()

    def clustered(self, layer: str, clusters: WeightClusters) -> Tensor:
        """Count each circuit's weights in each cluster and, last, those between clusters: ``(n, k + 1)``."""
        counts = [
            np.bincount(clusters.of_weight[indices], minlength=clusters.num_clusters + 1)
            for indices in self.indices[layer]
        ]
        return torch.from_numpy(np.stack(counts)).double()


def draw_weights(generator: np.random.Generator, size: int, count: int) -> Indices:
    """Return the indices of ``count`` out of ``size`` weights, drawn uniformly."""
    # NumPy's draw takes time in the size of the circuit, PyTorch's permutation in the size of the layer.
    return generator.choice(size, count, replace=False, shuffle=False)


class WeightClusters(NamedTuple):
    """The cluster of each weight of a layer.

    Attributes:
        of_weight: the cluster of each entry of the flat weight; ``num_clusters`` for those between clusters.
        num_clusters: the number of clusters.
    """

    of_weight: Indices
    num_clusters: int


def layer_named(layers: Collection[str], name: object, argument: str) -> str:
    """The layer of the circuits that a name stands for: its own, its weight's, that of a wrapped model's.

    Raises:
        ValueError: there is none; the message names ``argument``.
    """
    found = known_name(layers, name)
    if found is None:
        raise ValueError(f"{argument}: {name!r} is no layer of the circuits; they have: {', '.join(layers)}")
    return found


def weight_clusters(
    shapes: Mapping[str, tuple[int, ...]], partitions: Mapping[str, Partition]
) -> dict[str, WeightClusters]:
    """Return each weight's cluster by layer, for layers of these shapes, ``(out, in, *kernel)``.

    Raises:
        ValueError: a partition is of an unknown layer or does not fit its shape, or two are of one layer.
    """
    clusters: dict[str, WeightClusters] = {}
    for name, partition in partitions.items():
        layer = layer_named(shapes, name, "partitions")
        if layer in clusters:
            raise ValueError(f"partitions: layer {layer!r} is named twice, as {name!r} too")
        shape = shapes[layer]
        if shape[:2] != partition.shape:
            raise ValueError(
                f"partitions: layer {name!r} has (out, in) {shape[:2]}, its partition {partition.shape}"
            )
        rows, cols = partition.row_labels.cpu().numpy()[:, None], partition.col_labels.cpu().numpy()
        of_channels = np.where((rows == cols) & (rows >= 0), rows, partition.num_clusters)
        of_weight = np.repeat(of_channels.reshape(-1), math.prod(shape[2:]))
        clusters[layer] = WeightClusters(of_weight, partition.num_clusters)
    return clusters
