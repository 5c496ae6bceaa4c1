"""Spectral clustering: the modules of a weight, of a graph, and how well they are cut off."""

from __future__ import annotations

import time
from typing import Any, Literal, overload

import torch
from torch import Tensor

from modfast.arguments import Integer, check
from modfast.arrays import as_tensor, require_whole, to_int64
from modfast.partition import Labels, Partition

from . import operators as ops
from .embedding import Embedding, embed_graph, embed_matrix, graph_eigenvectors
from .matrices import as_matrix, compress
from .refinement import cluster_places, numbered_as_met, refine_graph, refine_sides, sides_cut
from .similarity import SparseSimilarity, read_similarity
from .solver import check_solver, warn_unless


@overload
def spectral_cocluster(
    weight: Any,
    num_clusters: int,
    *,
    affinity: str = ...,
    n_init: int = ...,
    tol: float = ...,
    max_iter: int = ...,
    seed: int = ...,
    return_info: Literal[False] = ...,
) -> Partition: ...
@overload
def spectral_cocluster(
    weight: Any,
    num_clusters: int,
    *,
    affinity: str = ...,
    n_init: int = ...,
    tol: float = ...,
    max_iter: int = ...,
    seed: int = ...,
    return_info: Literal[True],
) -> tuple[Partition, dict[str, Any]]: ...
def spectral_cocluster(
    weight: Any,
    num_clusters: int,
    *,
    affinity: str = "abs",
    n_init: int = 10,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    return_info: bool = False,
) -> Partition | tuple[Partition, dict[str, Any]]:
    """Clusters of rows and columns that are tied to each other more than to the rest.

    Rows and columns are the two sides of a bipartite graph with similarities ``A``. The top
    ``num_clusters`` singular vectors of ``D_row^-1/2 A D_col^-1/2`` embed both sides in one space, where
    k-means clusters them together: cluster ``c`` of the rows belongs to cluster ``c`` of the columns. Then
    single rows and columns change their cluster as long as that lowers the normalised cut.

    Args:
        weight: ``(out, in, *kernel)``: a dense tensor of any real dtype, on the CPU or a GPU, or a NumPy
            array; or ``(out, in)``: a ``torch.sparse_csr`` or ``sparse_coo`` tensor or a SciPy sparse matrix.
            The similarities at a kernel's positions are added. No copy is made of a 2-D floating-point
            weight whose rows or columns are contiguous.
        num_clusters: from 1 to the smaller of ``out`` and ``in``.
        affinity: the similarity: ``"abs"``, ``|weight|``; ``"square"``, ``weight^2``; ``"given"``,
            ``weight`` itself, which must not be negative (an accumulated gradient, for example).
        n_init: how many times k-means starts anew; the tightest result is kept. Beyond 32,768 rows and
            columns the starts are made on a sample of so many.
        tol: when a singular triplet ``(s, u, v)`` of the normalised similarity ``N`` has converged:
            ``|N^T u - s v| <= tol s``. From 1e-5 up the solver works in float32, unless the singular values
            are so small that this takes float64. A matrix with a side of at most 64 is decomposed exactly.
        max_iter: passes over the matrix, at most, in either precision.
        seed: of the solver's start and of k-means. The same seed gives the same labels, for any number of
            threads.
        return_info: also return how the solution was found.

    Returns:
        The partition, on the weight's device. Clusters are numbered in the order in which the rows, then
        the columns, first show them. Rows and columns of zeros are in no cluster, -1. A cluster is empty
        only if fewer than ``num_clusters`` nodes differ: a constant or rank-one weight is one cluster.
        It may consist of rows only or of columns only.

        With ``return_info`` also a dict: ``singular_values``, the largest of N (the first is 1), and
        ``residuals``, ``|N^T u - s v|``, both float64 ``(num_clusters,)``; ``passes`` over the matrix by the
        solver; ``converged``; of k-means, ``inertia``, the sum of squared distances of the embedded nodes
        from their cluster's mean, weighted by their degrees, and ``iterations`` of the tightest start;
        ``seconds``.

    Raises:
        TypeError: ``weight`` is none of those, holds no real numbers, or is a ``DTensor`` (give its
            ``full_tensor()``).
        ValueError: ``weight`` is empty, has fewer than two dimensions, holds NaN or infinity or, as a
            given similarity, a negative number, or its indices do not fit its shape; any other argument is
            out of range.

    Warns:
        ConvergenceWarning: the solver made ``max_iter`` passes and stopped.

    Source: I. S. Dhillon, "Co-clustering documents and words using bipartite spectral graph partitioning",
    KDD 2001; I. S. Dhillon, Y. Guan and B. Kulis, "Kernel k-means, spectral clustering and normalized cuts",
    KDD 2004.

    Example:
        >>> weight = torch.tensor([[5.0, 0.1, 4.0], [0.1, -3.0, 0.2], [6.0, 0.2, -5.0]])
        >>> partition = spectral_cocluster(weight, 2)
        >>> partition.row_labels.tolist(), partition.col_labels.tolist()
        ([0, 1, 0], [0, 1, 0])
    """
    start = time.perf_counter()
    matrix = as_matrix(weight, "weight")
    # Stored by columns? The rows of its transpose are contiguous.
    turned = isinstance(matrix, Tensor) and matrix.dim() == 2 and matrix.stride(0) == 1 != matrix.stride(1)
    similarity = read_similarity(matrix.T if isinstance(matrix, Tensor) and turned else matrix, affinity)
    sides = similarity.shape
    check("num_clusters", num_clusters, Integer(1, min(sides)), f" for shape {tuple(matrix.shape[:2])}")
    check_solver(n_init, tol, max_iter, seed)

    degrees = similarity.sums()
    labels = [torch.full((size,), -1, device="cpu") for size in sides]
    tied = [(each > 0).cpu() for each in degrees]
    found, tightness = None, {"inertia": 0.0, "iterations": 0}
    if tied[0].any():
        # What the rounding of the weights may change in a singular value, the first of which is 1.
        rounding = torch.finfo(matrix.dtype if matrix.dtype.is_floating_point else torch.float64).eps
        found = embed_matrix(
            similarity,
            degrees,
            int(num_clusters),
            tol=float(tol),
            max_iter=int(max_iter),
            seed=int(seed),
            rounding=max(rounding, 1e-12),
        )
        joint, tightness = cluster_places(found, int(num_clusters), int(n_init), int(seed))
        labels[0][tied[0]], labels[1][tied[1]] = joint.tensor_split([int(tied[0].sum())])
        labels = refine_sides(similarity, degrees, labels, int(num_clusters), found.dtype)
    joint = numbered_as_met(torch.cat(labels[::-1] if turned else labels), int(num_clusters))
    row_labels, col_labels = joint.tensor_split([matrix.shape[0]])
    partition = Partition(row_labels, col_labels, int(num_clusters)).to(matrix.device)
    info = _info("singular_values", found, int(num_clusters), start) | tightness
    return (partition, info) if return_info else partition


@overload
def spectral_cluster(
    adjacency: Any,
    num_clusters: int,
    *,
    n_init: int = ...,
    tol: float = ...,
    max_iter: int = ...,
    seed: int = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...
@overload
def spectral_cluster(
    adjacency: Any,
    num_clusters: int,
    *,
    n_init: int = ...,
    tol: float = ...,
    max_iter: int = ...,
    seed: int = ...,
    return_info: Literal[True],
) -> tuple[Tensor, dict[str, Any]]: ...
def spectral_cluster(
    adjacency: Any,
    num_clusters: int,
    *,
    n_init: int = 10,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Any]]:
    """Clusters of an undirected weighted graph.

    The nodes are embedded by the eigenvectors of ``D^-1/2 A D^-1/2`` with the ``num_clusters`` largest
    eigenvalues; then as for :func:`spectral_cocluster`, to which the arguments correspond.

    Args:
        adjacency: ``(n, n)``, symmetric, not negative: a ``torch.sparse_csr`` or ``sparse_coo`` tensor, a
            SciPy sparse matrix, a dense tensor or a NumPy array. A dense one is made sparse.
        num_clusters: from 1 to ``n``.
        n_init: how many times k-means starts anew.
        tol: when an eigenpair ``(l, v)`` has converged: ``|N v - l v| <= tol``, N being normalised.
        max_iter: passes over the graph, at most.
        seed: of the solver's start and of k-means.
        return_info: also return how the solution was found.

    Returns:
        ``(n,)``, int64, on the adjacency's device: clusters numbered by their first node, -1 for a node
        without edges. With ``return_info`` also a dict as there, with ``eigenvalues``, the largest of N, in
        place of the singular values.

    Raises:
        TypeError: ``adjacency`` is none of those, holds no real numbers, or is a ``DTensor`` (give its
            ``full_tensor()``).
        ValueError: it is not square or not symmetric, holds NaN, infinity or a negative number; any other
            argument is out of range.

    Warns:
        ConvergenceWarning: the solver made ``max_iter`` passes and stopped.

    Source: J. Shi and J. Malik, "Normalized cuts and image segmentation", PAMI 2000; I. S. Dhillon, Y. Guan
    and B. Kulis, "Kernel k-means, spectral clustering and normalized cuts", KDD 2004.

    Example:
        >>> two_pairs = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) + 0.1
        >>> spectral_cluster(two_pairs, 2)
        tensor([0, 0, 1, 1])
    """
    start = time.perf_counter()
    similarity, degrees = _read_graph(adjacency)
    nodes = similarity.shape[0]
    check("num_clusters", num_clusters, Integer(1, nodes), f" for {nodes} nodes")
    check_solver(n_init, tol, max_iter, seed)
    tied = (degrees > 0).cpu()
    found, tightness = None, {"inertia": 0.0, "iterations": 0}
    if tied.any():
        found = embed_graph(
            similarity, degrees, int(num_clusters), tol=float(tol), max_iter=int(max_iter), seed=int(seed)
        )
    labels = torch.full((nodes,), -1, device="cpu")
    if found is not None:
        labels[tied], tightness = cluster_places(found, int(num_clusters), int(n_init), int(seed))
        labels = refine_graph(similarity, degrees, labels, int(num_clusters))
    labels = numbered_as_met(labels, int(num_clusters)).to(similarity.device)
    info = _info("eigenvalues", found, int(num_clusters), start) | tightness
    return (labels, info) if return_info else labels


def normalized_cut(adjacency: Any, labels: Labels | Partition, *, affinity: str = "abs") -> float:
    """The normalised cut: for each cluster the share of its ties that leave it, added up.

    ``sum over clusters c of cut(c) / volume(c)``: the volume is the sum of the degrees of its nodes, the
    cut is the volume less what ties two nodes of the cluster (each tie counts at both of its ends).

    Args:
        adjacency: a graph as for :func:`spectral_cluster`; with a ``Partition``, a weight as for
            :func:`spectral_cocluster`, whose rows and columns are the nodes.
        labels: ``(n,)`` integers, -1 for "in no cluster", as a tensor, array, sequence or iterator; or a
            ``Partition`` of the weight.
        affinity: the similarity of a weight, ``"abs"``, ``"square"`` or ``"given"``.

    Returns:
        From 0 to the number of clusters. A cluster without any tie, an empty one for example, adds 0.

    Raises:
        TypeError, ValueError: as those functions; labels of another length or below -1.

    Source: J. Shi and J. Malik, "Normalized cuts and image segmentation", PAMI 2000.

    Example:
        >>> round(normalized_cut(torch.tensor([[4.0, 1.0], [1.0, 1.0]]), Partition([0, 1], [0, 1], 2)), 6)
        0.7
    """
    if isinstance(labels, Partition):
        similarity = read_similarity(as_matrix(adjacency, "adjacency"), affinity, "adjacency")
        if labels.shape != similarity.shape:
            raise ValueError(f"labels must fit shape {similarity.shape}, got a partition of {labels.shape}")
        of_rows, of_cols = labels.row_labels, labels.col_labels
        degrees = similarity.sums()
        inside, volume, _ = sides_cut(
            similarity, degrees, [of_rows.cpu(), of_cols.cpu()], labels.num_clusters, torch.float64
        )
    else:
        similarity, _ = _read_graph(adjacency)
        checked = _node_labels(labels, similarity.shape[0])
        inside, volume = ops.graph_cut(similarity, checked, max(int(checked.max()) + 1, 1))
    return float(((volume - inside) / volume)[volume > 0].sum())


def graph_embedding(
    adjacency: Any, num_vectors: int, *, tol: float = 1e-3, max_iter: int = 100, seed: int = 0
) -> Tensor:
    """``D^-1/2`` times the eigenvectors of ``D^-1/2 A D^-1/2`` with the largest eigenvalues.

    Arguments and errors as for :func:`spectral_cluster`.

    Returns:
        ``(n, num_vectors)``, float64; the first is constant on a connected graph. 0 for a node without edges.

    Example:
        >>> graph_embedding(torch.ones(3, 3), 1).std().item() < 1e-6
        True
    """
    similarity, degrees = _read_graph(adjacency)
    nodes = similarity.shape[0]
    check("num_vectors", num_vectors, Integer(1, nodes), f" for {nodes} nodes")
    check_solver(1, tol, max_iter, seed)
    vectors, found, _ = graph_eigenvectors(
        similarity, degrees, int(num_vectors), tol=float(tol), max_iter=int(max_iter), seed=int(seed)
    )
    warn_unless(found.converged, found.products, found.residuals)
    # The similarities' unit is not the adjacency's.
    places = vectors[:, : int(num_vectors)].to(torch.float64) * similarity.scale**0.5
    return torch.where(degrees[:, None] > 0, places, 0.0)


# --- Arguments


def _read_graph(adjacency: Any) -> tuple[SparseSimilarity, Tensor]:
    """A graph's similarities, and the degrees of its nodes."""
    matrix = as_matrix(adjacency, "adjacency")
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"adjacency must have shape (n, n), got {tuple(matrix.shape)}")
    similarity = read_similarity(matrix, "given", "adjacency")
    if isinstance(matrix, Tensor):  # a bad entry has been named by its place
        similarity = read_similarity(compress(matrix), "given", "adjacency")
    assert isinstance(similarity, SparseSimilarity)
    # A and its transpose agree on a random vector if and, almost surely, only if they are the same.
    nodes = similarity.shape[0]
    probe = torch.rand(
        nodes, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu"
    )
    probe = (probe + 0.5).to(similarity.device)
    forward, backward = similarity.probe(probe, probe)
    # In place: the vectors of a graph of few edges take as much memory as the graph.
    if bool((backward.sub_(forward).abs_() > forward.mul_(1e-5)).any()):
        node = int((backward / forward.clamp_(min=1e-300)).argmax())
        raise ValueError(f"adjacency must be symmetric; row and column {node} differ")
    del probe, forward, backward
    return similarity, similarity.row_sums()


def _node_labels(labels: Labels, nodes: int) -> Tensor:
    require_whole("labels", labels)
    try:
        tensor = as_tensor("labels", labels).cpu()
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels must be integers, one for each node, got {labels!r}") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got dtype {tensor.dtype}")
    if tensor.shape != (nodes,):
        raise ValueError(f"labels must have shape ({nodes},), got {tuple(tensor.shape)}")
    result = to_int64("labels", tensor).contiguous()
    if int(result.min()) < -1:
        raise ValueError(f"labels must be -1 or more, got {int(result.min())}")
    return result


def _info(name: str, found: Embedding | None, count: int, start: float) -> dict[str, Any]:
    """How a solution was found; warns where the solver stopped early."""
    if found is not None:
        warn_unless(found.converged, found.passes, found.residuals)
    zeros = torch.zeros(count, dtype=torch.float64, device="cpu")
    return {
        name: zeros if found is None else found.values,
        "residuals": zeros if found is None else found.residuals,
        "passes": 0 if found is None else found.passes,
        "converged": True if found is None else found.converged,
        "seconds": time.perf_counter() - start,
    }
