"""The interface of the published scripts (arXiv 2409.15747 and 2502.02470): change one import.

The two functions have the scripts' names, arguments and conventions: clusters are dicts from cluster
number to the indices of its rows ("U") or columns ("V"). The differences are cases in which the scripts
return nothing of use or go wrong silently:

- :func:`clusterability` of an all-zero matrix is 1, with gradient 0; the scripts give NaN. For half
  precision the result is float32; the scripts square in half precision, where 256^2 is infinite.
- A negative index, or a neuron in two clusters, is an error; the scripts count negative indices from the
  end, and count such a neuron's weights as inside both clusters.
- :func:`spectral_clustering` clusters rows and columns together, so that cluster 3 of the rows belongs to
  cluster 3 of the columns, and leaves neurons without any weight in no cluster, where the scripts fail.

In new code use :class:`modfast.Partition` with :func:`modfast.clusterability`, or
:class:`modfast.EnmeshmentLoss`. The functions here read and check the clusters at each call and on the host,
so ``torch.compile`` breaks the graph there.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

import modfast.energy as energy

from .arguments import check_count
from .arrays import as_tensor, require_numbers, require_plain, require_whole, to_int64
from .partition import Labels, Partition
from .spectral.clustering import spectral_cocluster
from .spectral.matrices import as_matrix
from .spectral.similarity import read_similarity

Clusters: TypeAlias = Mapping[int, Labels]


def clusterability(
    matrix: Tensor,
    cluster_U_indices: Clusters | None,
    cluster_V_indices: Clusters | None,
    num_clusters: int,
) -> Tensor:
    """Return the share of the squared weight that lies inside clusters, differentiable.

    The share is the sum of squares over (rows of cluster c) x (columns of cluster c), for all c, divided by
    the sum of all squares. The published scripts minimise ``cross_entropy - lambda * clusterability(...)``.

    Args:
        matrix: dense float32, float64, float16 or bfloat16, ``(out, in, *kernel)``, on any device that
            modfast computes on.
        cluster_U_indices: for each cluster, 0 to ``num_clusters - 1``, the indices of its rows, as a list,
            tuple, array, tensor or iterator of integers. Keys are Python's or NumPy's integers. A row may be
            in no cluster.
        cluster_V_indices: the same for the columns. If either of the two is None, so is the other: clusters
            are then contiguous blocks of ``out // num_clusters`` rows and ``in // num_clusters`` columns,
            and what is left over at the end is in no cluster. (:meth:`modfast.Partition.blocks` shares
            it out instead.) With more clusters than rows or columns no weight is inside, and the result is 0.
        num_clusters: how many clusters there are. Some of the scripts take the number of keys instead; if
            the two differ, this raises an error.

    Returns:
        A scalar in [0, 1] on the matrix's device: float64 for a float64 matrix and float32 otherwise. NaN if
        the matrix holds NaN or infinity, 1 if it is all zero.

    Raises:
        TypeError: ``matrix`` is no tensor or of another dtype; clusters are no mapping.
        ValueError: the keys are not 0 to ``num_clusters - 1``; indices are not 1-D integers, out of range
            (negative ones are: they do not count from the end), or in two clusters; ``matrix`` has fewer
            than two dimensions.

    Source: arXiv 2409.15747.

    Example:
        >>> matrix = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
        >>> clusterability(matrix, {0: [0], 1: [1]}, {0: [0], 1: [1]}, 2)
        tensor(0.9000)
        >>> clusterability(matrix, None, None, num_clusters=2)
        tensor(0.9000)
    """
    count = check_count("num_clusters", num_clusters)
    _check_matrix("matrix", matrix)
    rows, cols = matrix.shape[:2]
    if cluster_U_indices is None or cluster_V_indices is None:
        partition = Partition(_block_labels(rows, count), _block_labels(cols, count), count)
    else:
        partition = Partition(
            _labels("cluster_U_indices", cluster_U_indices, rows, count),
            _labels("cluster_V_indices", cluster_V_indices, cols, count),
            count,
        )
    energy.check_weight(matrix, partition, "matrix")
    return energy.clusterability(matrix, partition)


def spectral_clustering(layer: Tensor, k: int) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Find ``k`` clusters of the rows and columns of a weight: bipartite spectral graph clustering.

    The similarity of a row and a column is the weight's absolute value. Unlike the published script, which
    runs k-means on the rows and on the columns separately, so that cluster c of the rows has nothing
    to do with cluster c of the columns, this clusters both in one embedding (Dhillon 2001). On five planted
    64 x 64 matrices of 4 clusters, each with a clusterability of about 0.85, the script's way gave from 0.05
    to 0.45; this gives the planted clusters. The same layer always gets the same clusters.

    Args:
        layer: the weight: a dense tensor, ``(out, in, *kernel)``, of any real dtype, on any device; it may
            require a gradient.
        k: how many clusters, from 1 to the smaller of ``out`` and ``in``.

    Returns:
        ``(cluster_U_indices, cluster_V_indices)``, as :func:`clusterability` takes them: for each cluster
        the indices of its rows, and of its columns, in rising order. Plain dicts of ints and lists, which
        ``torch.save``, ``torch.load`` and JSON take as they are. Every cluster from 0 to ``k - 1`` is a
        key, in that order, with an empty list where it has no row or no column, so ``len`` of either is
        ``k``. Rows and columns that are all zero are in no cluster (the script raises a singular matrix).

    Raises:
        TypeError: ``layer`` is no tensor, complex, or a ``DTensor`` (give its ``full_tensor()``).
        ValueError: ``layer`` is not dense, has fewer than two dimensions, or holds NaN or infinity; ``k`` is
            out of range.

    Source: arXiv 2409.15747; the embedding is specified in :func:`modfast.spectral_cocluster`.

    Example:
        >>> layer = torch.tensor([[5.0, 0.1, 4.0], [0.1, -3.0, 0.2], [6.0, 0.2, -5.0]])
        >>> rows, cols = spectral_clustering(layer, 2)
        >>> rows, cols
        ({0: [0, 2], 1: [1]}, {0: [0, 2], 1: [1]})
        >>> round(clusterability(layer, rows, cols, 2).item(), 3)
        0.999
    """
    count = check_count("k", k)
    _check_matrix("layer", layer)
    if count > min(layer.shape[:2]):
        raise ValueError(
            f"k must be at most {min(layer.shape[:2])} for shape {tuple(layer.shape[:2])}, got {count}"
        )
    if layer.layout != torch.strided:
        raise ValueError(f"layer must be dense, got layout {layer.layout}")
    read_similarity(as_matrix(layer, "layer"), "abs", "layer")  # so that messages say "layer"
    partition = spectral_cocluster(layer, count)
    return _members(partition.row_labels, count), _members(partition.col_labels, count)


def _check_matrix(name: str, matrix: object) -> None:
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(matrix).__name__}")
    require_plain(name, matrix)  # before its shape is asked for, which a nested tensor does not tell
    if matrix.dim() < 2:
        raise ValueError(f"{name} must have shape (out, in, *kernel), got {tuple(matrix.shape)}")


def _block_labels(size: int, num_clusters: int) -> Tensor:
    """Return labels of blocks of ``size // num_clusters``, and -1 for what is left over."""
    block = size // num_clusters
    labels = torch.full((size,), -1, device="cpu")
    labels[: block * num_clusters] = torch.arange(num_clusters, device="cpu").repeat_interleave(block)
    return labels


def _labels(name: str, clusters: Clusters, size: int, num_clusters: int) -> Tensor:
    """Return the label of each of ``size`` neurons, -1 in no cluster, from the indices of each cluster."""
    if not isinstance(clusters, Mapping):
        raise TypeError(f"{name} must map clusters to indices, or be None, got {type(clusters).__name__}")
    # NumPy's integers hash and compare as Python's do, so this finds them too.
    if len(clusters) != num_clusters or any(cluster not in clusters for cluster in range(num_clusters)):
        raise ValueError(
            f"{name} must have the keys 0 to {num_clusters - 1}, one for each of num_clusters (with an empty "
            f"list for an empty cluster), got {reprlib.repr(list(clusters))}"
        )
    labels = torch.full((size,), -1, device="cpu")
    for cluster in range(num_clusters):
        indices = _indices(f"{name}[{cluster}]", clusters[cluster], size)
        taken = indices[labels[indices] >= 0]
        if len(taken) > 0:
            neuron = int(taken[0])
            raise ValueError(
                f"{name} must put a neuron in one cluster at most, got {neuron} in clusters "
                f"{int(labels[neuron])} and {cluster}"
            )
        labels[indices] = cluster
    return labels


def _indices(name: str, indices: object, size: int) -> Tensor:
    """Return the indices of a cluster as a checked int64 tensor on the CPU."""
    require_whole(name, indices)
    try:
        tensor = as_tensor(name, indices)
        require_numbers(name, tensor)
        tensor = tensor.cpu()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a 1-D sequence of integers, got {reprlib.repr(indices)}") from error
    # An empty list has no dtype of its own. A boolean mask would read as the indices 0 and 1.
    integers = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.dim() != 1 or not (integers or tensor.numel() == 0):
        raise ValueError(f"{name} must be a 1-D sequence of integers, got {reprlib.repr(indices)}")
    result = to_int64(name, tensor)
    outside = result[(result < 0) | (result >= size)]
    if len(outside) > 0:
        raise ValueError(
            f"{name} must hold indices in [0, {size - 1}] (negative ones do not count from the end), "
            f"got {int(outside[0])}"
        )
    return result


def _members(labels: Tensor, num_clusters: int) -> dict[int, list[int]]:
    """Return the indices of each cluster, from the label of each neuron."""
    return {cluster: (labels == cluster).nonzero().flatten().tolist() for cluster in range(num_clusters)}
