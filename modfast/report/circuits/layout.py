"""A circuit laid out as a network: columns of nodes, and lines for the kept weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from modfast.circuit import Circuit
from modfast.partition import Partition
from modfast.report.cells import cell_edges, cluster_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A column of more neurons than this is drawn as about half as many nodes: a node for each neuron would make
# it a solid bar, and a circuit keeps weights between nearly every pair of nodes.
MOST_NODES = 64
_SHARED_NODES = 32

# The gap between two clusters of a column, as a share of its height.
_GAP = 0.035


class Column(NamedTuple):
    """The neurons between two layers, sorted by cluster from top to bottom.

    Attributes:
        size: how many neurons there are.
        places: (nodes,) the height of each node, from 0 at the top to 1 at the bottom.
        clusters: (nodes,) its cluster, or -1 if it has none or the layers on both sides disagree.
        node_of: (size,) the node of each neuron.
        bands: cluster (-1 for none), top and bottom of each group of nodes.
    """

    size: int
    places: NDArray[np.float64]
    clusters: NDArray[np.int64]
    node_of: NDArray[np.int64]
    bands: list[tuple[int, float, float]]

    @property
    def most_shared(self) -> int:
        """How many neurons the fullest node stands for."""
        return int(np.bincount(self.node_of).max())


class Links(NamedTuple):
    """The kept weights of one layer as lines in drawing order; one line for all between the same two nodes.

    Attributes:
        layer: its name.
        columns: the indices of the columns that the layer reads and feeds.
        starts: (n,) the node of each line in the column that the layer reads.
        ends: (n,) the node in the column that it feeds.
        clusters: (n,) the cluster that the weights lie inside, or -1 if they cross or there is none.
        counts: (n,) how many weights a line stands for.
        kept: the share of the layer's weights that the circuit keeps.
    """

    layer: str
    columns: tuple[int, int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    clusters: NDArray[np.int64]
    counts: NDArray[np.int64]
    kept: float

    @property
    def dense(self) -> bool:
        """Whether there are so many lines that they are drawn fainter, so that those below show through."""
        return len(self.counts) > 400


class Network(NamedTuple):
    """A circuit's columns, and the lines of each of its layers."""

    columns: list[Column]
    links: list[Links]

    def used(self, column: int) -> NDArray[np.bool_]:
        """Return (nodes,) whether a line touches each node of a column."""
        touched = np.zeros(len(self.columns[column].places), dtype=bool)
        for links in self.links:
            for index, nodes in zip(links.columns, (links.starts, links.ends), strict=True):
                if index == column:
                    touched[nodes] = True
        return touched


def lay_out(circuit: Circuit, partitions: Mapping[str, Partition]) -> Network:
    """Lay a circuit out as a network.

    Columns of more than 64 neurons are drawn as about 32 nodes, each for neighbouring neurons of one
    cluster. Two layers share a column only if the first has as many outputs as the second has inputs. The
    neurons of a convolution are its channels: two of them are linked if any weight between them is kept.

    Args:
        circuit: a circuit with masks (out, in, *kernel).
        partitions: layer name to clusters; a layer may have none.

    Raises:
        ValueError: a mask has only one dimension, or does not fit its layer's partition.

    Example:
        >>> import torch
        >>> masks = {"fc1": torch.eye(2, dtype=torch.bool), "fc2": torch.tensor([[True, False]])}
        >>> circuit = Circuit(0, masks, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)
        >>> network = lay_out(circuit, {"fc1": Partition([0, 1], [0, 1], 2)})
        >>> [column.size for column in network.columns], network.links[0].clusters.tolist()
        ([2, 2, 1], [0, 1])
    """
    masks = {}
    for name, of_weights in circuit.masks.items():
        if of_weights.dim() < 2:
            raise ValueError(
                f"circuit: the mask of {name!r} must be (out, in, *kernel), got {tuple(of_weights.shape)}"
            )
        masks[name] = mask = of_weights if of_weights.dim() == 2 else of_weights.flatten(2).any(2)
        if name in partitions and partitions[name].shape != tuple(mask.shape):
            raise ValueError(
                f"partitions: {name!r} has the shape {partitions[name].shape}, "
                f"its mask in the circuit {tuple(mask.shape)}"
            )
    # For each column its size, and the labels that the layers beside it give its neurons.
    sides: list[tuple[int, list[NDArray[np.int64]]]] = []
    ends = []
    for name, mask in masks.items():
        outputs, inputs = mask.shape
        partition = partitions.get(name)
        if not sides or sides[-1][0] != inputs:
            sides.append((inputs, []))
        sides.append((outputs, []))
        if partition is not None:
            sides[-2][1].append(partition.col_labels.cpu().numpy())
            sides[-1][1].append(partition.row_labels.cpu().numpy())
        ends.append((len(sides) - 2, len(sides) - 1))
    columns = [_column(size, labels) for size, labels in sides]
    links = [
        _links(name, mask.numpy(), partitions.get(name), columns, between)
        for (name, mask), between in zip(masks.items(), ends, strict=True)
    ]
    return Network(columns, links)


def _column(size: int, labels: list[NDArray[np.int64]]) -> Column:
    sorted_by = labels[0] if labels else np.full(size, -1, dtype=np.int64)
    agreed = np.where(sorted_by == labels[-1], sorted_by, -1) if labels else sorted_by
    # Neurons in no cluster come last, as in Partition.row_order.
    order = np.argsort(np.where(sorted_by < 0, np.iinfo(np.int64).max, sorted_by), kind="stable")
    starts = cluster_starts(sorted_by[order])
    edges = cell_edges(starts, size if size <= MOST_NODES else _SHARED_NODES)
    node_of = np.empty(size, dtype=np.int64)
    node_of[order] = np.searchsorted(edges, np.arange(size), side="right") - 1

    count = len(edges) - 1
    first_nodes = np.searchsorted(edges, starts)
    between = _GAP * count
    height = count + between * (len(starts) - 2)
    group = np.searchsorted(first_nodes, np.arange(count), side="right") - 1
    places = (np.arange(count) + 0.5 + between * group) / height
    bands = [
        (int(sorted_by[order[start]]), (top + between * rank) / height, (bottom + between * rank) / height)
        for rank, (start, (top, bottom)) in enumerate(
            zip(starts[:-1].tolist(), pairwise(first_nodes.tolist()), strict=True)
        )
    ]
    clusters = agreed[order[edges[:-1]]]
    mixed = np.bincount(node_of, weights=agreed != clusters[node_of], minlength=count) > 0
    return Column(size, places, np.where(mixed, -1, clusters), node_of, bands)


def _links(
    name: str,
    mask: NDArray[np.bool_],
    partition: Partition | None,
    columns: list[Column],
    between: tuple[int, int],
) -> Links:
    rows, cols = np.nonzero(mask)
    clusters = np.full(len(rows), -1, dtype=np.int64)
    if partition is not None:
        inside = partition.mask().cpu().numpy()[rows, cols]
        clusters = np.where(inside, partition.row_labels.cpu().numpy()[rows], -1)
    # Clusters first, so that lines between them are the first to be drawn and cover no other.
    ends = np.stack([clusters, columns[between[0]].node_of[cols], columns[between[1]].node_of[rows]])
    merged, counts = np.unique(ends, axis=1, return_counts=True)
    return Links(name, between, merged[1], merged[2], merged[0], counts, len(rows) / mask.size)


def weight_class(count: int) -> int:
    """Return how broad a line for ``count`` weights is: 0 for one, 1 for two or three, at most 4.

    Example:
        >>> [weight_class(count) for count in (1, 2, 3, 4, 8, 15, 16, 1000)]
        [0, 1, 1, 2, 3, 3, 4, 4]
    """
    return min(count.bit_length() - 1, 4)
