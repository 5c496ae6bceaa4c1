"""Spectral clustering of weights and of graphs, and the normalised cut of the clusters."""

from __future__ import annotations

import time
from typing import Any, Literal, overload

import torch
from torch import Tensor

from modfast.arguments import Integer, check
from modfast.arrays import as_tensor, require_whole, to_int64
from modfast.devices import widest_float
from modfast.partition import Labels, Partition

from . import operators as ops
from .embedding import Embedding, embed_graph, embed_matrix, graph_eigenvectors
from .matrices import as_matrix, compress, home_of
from .refinement import cluster_places, refine_graph, refine_sides, sides_cut
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
    """Cluster rows and columns together, so that large weights lie inside clusters.

    Rows and columns are the two sides of a bipartite graph whose edge weights are the similarities ``A``.
    The top ``num_clusters`` singular vectors of ``D_row^-1/2 A D_col^-1/2`` embed both sides in one space,
    where k-means clusters them together: cluster ``c`` of the rows belongs to cluster ``c`` of the columns.
    Then single rows and columns change their cluster as long as that lowers the normalised cut.

    Args:
        weight: ``(out, in, *kernel)``: a dense tensor of any real dtype, on the CPU or a GPU, or a NumPy
            array; or ``(out, in)``: a ``torch.sparse_csr`` or ``sparse_coo`` tensor or a SciPy sparse matrix.
            The similarities at a kernel's positions are added. No copy is made of a 2-D floating-point
            weight whose rows or columns are contiguous.
        num_clusters: from 1 to the smaller of ``out`` and ``in``.
        affinity: how a weight becomes a similarity. Use ``"abs"``, ``|weight|``, for trained weights;
            ``"square"``, ``weight^2``, to count squared weight, as enmeshment does; ``"given"``, ``weight``
            itself, for what is a similarity already and not negative (an accumulated gradient, for example).
        n_init: the number of random starts of k-means; the result with the smallest ``inertia`` is kept.
            More starts take longer and are less likely to miss a better clustering. Beyond 32,768 rows and
            columns, the starts run on a sample of that many.
        tol: the solver's tolerance. A singular triplet ``(s, u, v)`` of the normalised similarity ``N`` has
            converged when ``|N^T u - s v| <= tol s``. Keep the default for labels; lower it for accurate
            singular values. From 1e-5 up the solver works in float32, unless the singular values are so
            small that they need float64. A matrix with a side of at most 64 is decomposed exactly.
        max_iter: the maximum number of passes over the matrix, in each precision.
        seed: seeds the solver's starting vectors and k-means. The same seed gives the same labels, with any
            number of threads.
        return_info: also return a dict that describes the solution.

    Returns:
        The partition, on the weight's device. Clusters are numbered in the order in which they first appear
        in the rows, then in the columns. Rows and columns of zeros are in no cluster, -1. A cluster is empty
        only if fewer than ``num_clusters`` nodes differ: a constant or rank-one weight is one cluster.
        A cluster may consist of rows only or of columns only.

        With ``return_info`` also a dict: ``singular_values``, the largest of N (the first is 1), and
        ``residuals``, ``|N^T u - s v|``, both float64 ``(num_clusters,)``; ``passes``, the solver's passes
        over the matrix; ``converged``; ``inertia``, the sum of squared distances of the embedded nodes from
        their cluster's mean, weighted by their degrees, and ``iterations``, both of the best k-means start;
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
    # The kernels need contiguous rows: a weight stored by columns is read as its transpose.
    by_columns = (
        isinstance(matrix, Tensor) and matrix.dim() == 2 and matrix.stride(0) == 1 != matrix.stride(1)
    )
    similarity = read_similarity(matrix.T if isinstance(matrix, Tensor) and by_columns else matrix, affinity)
    sides = similarity.shape
    check("num_clusters", num_clusters, Integer(1, min(sides)), f" for shape {tuple(matrix.shape[:2])}")
    check_solver(n_init, tol, max_iter, seed)

    degrees = similarity.sums()
    has_edges = torch.cat(degrees) > 0
    labels = torch.full((sum(sides),), -1, device=similarity.device)
    embedding, tightness = None, {"inertia": 0.0, "iterations": 0}
    if has_edges.any():
        # The rounding error that the weights' dtype causes in a singular value, the largest of which is 1.
        rounding = torch.finfo(matrix.dtype if matrix.dtype.is_floating_point else torch.float64).eps
        embedding = embed_matrix(
            similarity,
            degrees,
            int(num_clusters),
            tol=float(tol),
            max_iter=int(max_iter),
            seed=int(seed),
            rounding=max(rounding, 1e-12),
        )
        of_nodes, tightness = cluster_places(embedding, int(num_clusters), int(n_init), int(seed))
        labels = labels.masked_scatter_(has_edges, of_nodes)
        labels = refine_sides(similarity, degrees, labels, int(num_clusters), embedding.dtype)
    if by_columns:
        labels = labels.roll(sides[1])  # the columns of what was read are the weight's rows
    joint = ops.numbered_as_met(labels, int(num_clusters))
    row_labels, col_labels = joint.tensor_split([matrix.shape[0]])
    partition = Partition(row_labels, col_labels, int(num_clusters)).to(home_of(weight))
    info = _info("singular_values", embedding, int(num_clusters), start) | tightness
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
    """Cluster the nodes of an undirected weighted graph.

    The nodes are embedded by the eigenvectors of ``D^-1/2 A D^-1/2`` with the ``num_clusters`` largest
    eigenvalues. K-means and moves of single nodes follow, as in :func:`spectral_cocluster`.

    Args:
        adjacency: ``(n, n)``, symmetric, not negative: a ``torch.sparse_csr`` or ``sparse_coo`` tensor, a
            SciPy sparse matrix, a dense tensor or a NumPy array. A dense one is converted to sparse.
        num_clusters: from 1 to ``n``.
        n_init: the number of random starts of k-means, as for :func:`spectral_cocluster`.
        tol: the solver's tolerance. An eigenpair ``(l, v)`` of ``N = D^-1/2 A D^-1/2`` has converged when
            ``|N v - l v| <= tol``. Keep the default for labels; lower it for accurate eigenvalues.
        max_iter: the maximum number of passes over the graph, in each precision.
        seed: seeds the solver's starting vectors and k-means.
        return_info: also return a dict that describes the solution.

    Returns:
        ``(n,)``, int64, on the adjacency's device: clusters numbered by their first node, -1 for a node
        without edges. With ``return_info`` also a dict like that of :func:`spectral_cocluster`, with
        ``eigenvalues``, the largest of N, in place of the singular values.

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
    similarity, degrees = read_graph(adjacency)
    nodes = similarity.shape[0]
    check("num_clusters", num_clusters, Integer(1, nodes), f" for {nodes} nodes")
    check_solver(n_init, tol, max_iter, seed)
    has_edges = degrees > 0
    embedding, tightness = None, {"inertia": 0.0, "iterations": 0}
    if has_edges.any():
        embedding = embed_graph(
            similarity, degrees, int(num_clusters), tol=float(tol), max_iter=int(max_iter), seed=int(seed)
        )
    labels = torch.full((nodes,), -1, device=similarity.device)
    if embedding is not None:
        of_nodes, tightness = cluster_places(embedding, int(num_clusters), int(n_init), int(seed))
        labels = labels.masked_scatter_(has_edges, of_nodes)
        labels = refine_graph(similarity, labels, int(num_clusters))
    labels = ops.numbered_as_met(labels, int(num_clusters)).to(home_of(adjacency))
    info = _info("eigenvalues", embedding, int(num_clusters), start) | tightness
    return (labels, info) if return_info else labels


def normalized_cut(adjacency: Any, labels: Labels | Partition, *, affinity: str = "abs") -> float:
    """Return the normalised cut: the share of each cluster's edge weight that leaves it, added up.

    ``sum over clusters c of cut(c) / volume(c)``, where the volume is the sum of the degrees of the
    cluster's nodes. The cut is the volume less the weight of the edges inside the cluster, each edge counted
    at both of its ends.

    Args:
        adjacency: a graph as for :func:`spectral_cluster`; with a ``Partition``, a weight as for
            :func:`spectral_cocluster`, whose rows and columns are the nodes.
        labels: ``(n,)`` integers, -1 for "in no cluster", as a tensor, array, sequence or iterator; or a
            ``Partition`` of the weight.
        affinity: with a ``Partition``, how a weight becomes a similarity, ``"abs"``, ``"square"`` or
            ``"given"``. Pass the one that the partition was made with.

    Returns:
        From 0 to the number of clusters. A cluster without edges, an empty one for example, adds 0.

    Raises:
        TypeError, ValueError: as for those functions; ``labels`` has another length or a value below -1.

    Source: J. Shi and J. Malik, "Normalized cuts and image segmentation", PAMI 2000.

    Example:
        >>> round(normalized_cut(torch.tensor([[4.0, 1.0], [1.0, 1.0]]), Partition([0, 1], [0, 1], 2)), 6)
        0.7
    """
    if isinstance(labels, Partition):
        similarity = read_similarity(as_matrix(adjacency, "adjacency"), affinity, "adjacency")
        if labels.shape != similarity.shape:
            raise ValueError(f"labels must fit shape {similarity.shape}, got a partition of {labels.shape}")
        sides = [of_side.to(similarity.device) for of_side in (labels.row_labels, labels.col_labels)]
        degrees = similarity.sums()
        inside, volume, _ = sides_cut(similarity, degrees, sides, labels.num_clusters, torch.float64)
    else:
        similarity, _ = read_graph(adjacency)
        checked = _node_labels(labels, similarity.shape[0]).to(similarity.device)
        inside, volume = ops.graph_cut(similarity, checked, max(int(checked.max()) + 1, 1))
    return float(((volume - inside) / volume)[volume > 0].sum())


def graph_embedding(
    adjacency: Any, num_vectors: int, *, tol: float = 1e-3, max_iter: int = 100, seed: int = 0
) -> Tensor:
    """Return ``D^-1/2`` times the eigenvectors of ``D^-1/2 A D^-1/2`` with the largest eigenvalues.

    The arguments and errors are those of :func:`spectral_cluster`.

    Returns:
        ``(n, num_vectors)``, float64 (float32 on a device without float64). The first column is constant on a
        connected graph; the row of a node without edges is 0.

    Example:
        >>> graph_embedding(torch.ones(3, 3), 1).std().item() < 1e-6
        True
    """
    similarity, degrees = read_graph(adjacency)
    nodes = similarity.shape[0]
    check("num_vectors", num_vectors, Integer(1, nodes), f" for {nodes} nodes")
    check_solver(1, tol, max_iter, seed)
    vectors, eigen, _ = graph_eigenvectors(
        similarity, degrees, int(num_vectors), tol=float(tol), max_iter=int(max_iter), seed=int(seed)
    )
    warn_unless(eigen.converged, eigen.products, eigen.residuals)
    # The similarities are the adjacency times a scale, which is undone here.
    places = vectors[:, : int(num_vectors)].to(torch.float64) * similarity.scale**0.5
    places, home = torch.where(degrees[:, None] > 0, places, 0.0), home_of(adjacency)
    return places if places.device == home else places.to(home, widest_float(home))


# --- Arguments


def read_graph(adjacency: Any) -> tuple[SparseSimilarity, Tensor]:
    """Return a graph's similarities and the degrees of its nodes."""
    matrix = as_matrix(adjacency, "adjacency")
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"adjacency must have shape (n, n), got {tuple(matrix.shape)}")
    similarity = read_similarity(matrix, "given", "adjacency")
    if isinstance(matrix, Tensor):  # compressed only now, so that an error above gives an entry's position
        similarity = read_similarity(compress(matrix), "given", "adjacency")
    assert isinstance(similarity, SparseSimilarity)
    # A and its transpose agree on a random vector if and, almost surely, only if they are the same.
    nodes = similarity.shape[0]
    probe = torch.rand(
        nodes, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu"
    )
    probe = (probe + 0.5).to(similarity.device)
    # On a copy, which takes the transpose along when it is dropped: a graph is its own transpose.
    forward, backward = similarity._replace().probe(probe, probe)
    # In place: for a graph with few edges these vectors are as large as the graph.
    if bool((backward.sub_(forward).abs_() > forward.mul_(1e-5)).any()):
        node = int((backward / forward.clamp_(min=1e-300)).argmax())
        raise ValueError(f"adjacency must be symmetric; row and column {node} differ")
    del probe, forward, backward
    return similarity, similarity.row_sums()


def _node_labels(labels: Labels, nodes: int) -> Tensor:
    require_whole("labels", labels)
    try:
        tensor = as_tensor("labels", labels)
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


def _info(name: str, embedding: Embedding | None, count: int, start: float) -> dict[str, Any]:
    """Return the dict that describes a solution; warn if the solver stopped early."""
    if embedding is not None:
        warn_unless(embedding.converged, embedding.passes, embedding.residuals)
    zeros = torch.zeros(count, dtype=torch.float64, device="cpu")
    return {
        name: zeros if embedding is None else embedding.values,
        "residuals": zeros if embedding is None else embedding.residuals,
        "passes": 0 if embedding is None else embedding.passes,
        "converged": True if embedding is None else embedding.converged,
        "seconds": time.perf_counter() - start,
    }
