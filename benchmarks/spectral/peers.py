"""The peers of spectral clustering, for all scripts here that time it.

A peer of ``spectral_cocluster`` is a plain function ``(similarity, k) -> (row_labels, col_labels)``, one of
``spectral_cluster`` a function ``(adjacency, k) -> labels``. They get their input in the form that they
need: ``|W|`` and the conversion to NumPy, SciPy or a sparse tensor are not timed. scikit-learn is imported by
the functions that need it: a machine with a GPU may lack it, and its table has other peers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import eigsh, svds
from torch import Tensor

import modfast
from benchmarks.spectral.cases import Planted

Labels: TypeAlias = "np.ndarray[Any, Any]"

OURS, FLOOR = "modfast", "floor"
PUBLISHED, EXPERT = "published", "expert"
RANDOMIZED, ARPACK, LOBPCG = "randomized", "arpack", "lobpcg"  # scikit-learn's solvers
LOWRANK = "svd_lowrank"

# On larger graphs scikit-learn's solvers take minutes, or do not end.
SCIKIT_LEARN_NODES = 2_000


# --- Weights


def published(similarity: Labels, k: int) -> tuple[Labels, Labels]:
    """Cluster as published: dense inverses of the degrees' roots, rows and columns clustered separately."""
    from sklearn.cluster import KMeans

    row_inverse = np.linalg.inv(np.sqrt(np.diag(similarity.sum(axis=1))))
    col_inverse = np.linalg.inv(np.sqrt(np.diag(similarity.sum(axis=0))))
    normalised = row_inverse @ similarity @ col_inverse
    left, _, right = svds(normalised, k=k, v0=_start(min(similarity.shape)))
    means = KMeans(k, random_state=0)
    return means.fit_predict(left), means.fit_predict(right.T)


def scikit_learn(similarity: Any, k: int, *, svd_method: str) -> tuple[Labels, Labels]:
    from sklearn.cluster import SpectralCoclustering

    # ARPACK returns the smallest first, and scikit-learn 1.9 discards the first as if it were the largest: it
    # keeps the trivial vector and loses an informative one.
    model = SpectralCoclustering(k, svd_method=svd_method, random_state=0).fit(similarity)
    return model.row_labels_, model.column_labels_


def svd_lowrank(similarity: Tensor, k: int) -> tuple[Labels, Labels]:
    """Cluster rows and columns in one embedding, by PyTorch's randomized SVD of the normalised matrix."""
    from sklearn.cluster import KMeans

    points, row_scale, _ = lowrank_points(similarity, k)
    labels = KMeans(k, n_init=10, random_state=0).fit_predict(points.numpy())
    return labels[: len(row_scale)], labels[len(row_scale) :]


def lowrank_points(similarity: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a point of length one for each row and column, and the roots of their inverse degrees."""
    row_scale, col_scale = (similarity.sum(dim).to_dense().rsqrt()[:, None] for dim in (1, 0))
    torch.manual_seed(0)
    left, _, right = torch.svd_lowrank(
        similarity * row_scale * col_scale.T, q=min(k + 10, *similarity.shape), niter=4
    )
    points = torch.cat([row_scale * left[:, :k], col_scale * right[:, :k]])
    points /= torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return points, row_scale, col_scale


def _start(size: int) -> Labels:
    """Return a start for ARPACK as scikit-learn makes it, the same in every run."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, size).astype(np.float32)


class Found(NamedTuple):
    """The labels of rows and of columns, or of nodes; from modfast also its passes over the matrix."""

    labels: tuple[Any, ...]
    passes: int | None = None


Contestant: TypeAlias = Callable[[], "Found | None"]

WEIGHT_PEERS = [RANDOMIZED, ARPACK, LOWRANK, PUBLISHED]


def weight_contestants(planted: Planted) -> dict[str, Contestant]:
    """Return, by name, functions that find the clusters; the floor's returns None.

    All of them get a pruned weight in sparse form, except the published pipeline, which takes dense weights
    only. The floor reads the numbers of the weight once, in compressed rows the columns' indices as well.
    """
    k = planted.partition.num_clusters
    dense, rows = planted.weight.abs().numpy(), planted.sparse
    weight, for_scikit_learn, for_torch = planted.weight, dense, planted.weight.abs()
    parts = [planted.weight]
    if rows is not None:
        weight, for_scikit_learn, for_torch = rows, abs(rows), for_torch.to_sparse_coo()
        parts = [torch.from_numpy(rows.data), torch.from_numpy(rows.indices)]

    def ours() -> Found:
        partition, info = modfast.spectral_cocluster(weight, k, return_info=True)
        return Found((partition.row_labels.numpy(), partition.col_labels.numpy()), info["passes"])

    def floor() -> None:
        for part in parts:
            part.sum()

    peers: dict[str, Callable[[], tuple[Labels, Labels]]] = {
        RANDOMIZED: partial(scikit_learn, for_scikit_learn, k, svd_method="randomized"),
        ARPACK: partial(scikit_learn, for_scikit_learn, k, svd_method="arpack"),
        LOWRANK: partial(svd_lowrank, for_torch, k),
        PUBLISHED: partial(published, dense, k),
    }
    return {OURS: ours, FLOOR: floor, **{name: _found(peer) for name, peer in peers.items()}}


def _found(peer: Callable[[], tuple[Labels, ...]]) -> Contestant:
    return lambda: Found(peer())


# --- Graphs


def expert(adjacency: Any, k: int) -> Labels:
    """Cluster as an expert would: the largest eigenvalues of the normalised adjacency come quickly."""
    from sklearn.cluster import KMeans

    vectors = largest_eigenvectors(adjacency, k)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels: Labels = KMeans(k, n_init=10, random_state=0).fit_predict(vectors)
    return labels


def largest_eigenvectors(adjacency: Any, k: int) -> Labels:
    """Return the eigenvectors of the normalised adjacency by ARPACK, as exact as modfast's default."""
    scale = sparse.diags_array(1.0 / np.sqrt(adjacency.sum(axis=1)))
    normalised = scale @ adjacency @ scale
    _, vectors = eigsh(normalised, k=k, which="LA", v0=_start(adjacency.shape[0]), tol=1e-3)
    return vectors


def scikit_learn_graph(adjacency: Any, k: int, *, eigen_solver: str) -> Labels:
    from sklearn.cluster import SpectralClustering

    model = SpectralClustering(k, affinity="precomputed", eigen_solver=eigen_solver, random_state=0)
    labels: Labels = model.fit_predict(adjacency)
    return labels


def modfast_graph(adjacency: Any, k: int) -> Found:
    labels, info = modfast.spectral_cluster(adjacency, k, return_info=True)
    return Found((labels.numpy(),), info["passes"])


GRAPH_PEERS = [EXPERT, ARPACK, LOBPCG]


def graph_contestants(
    adjacency: Any, k: int, scikit_learn_nodes: int = SCIKIT_LEARN_NODES
) -> dict[str, Contestant]:
    """Return, by name, functions that find the clusters; scikit-learn's only up to a number of nodes."""
    peers: dict[str, Callable[[Any, int], Labels]] = {EXPERT: expert}
    if adjacency.shape[0] <= scikit_learn_nodes:
        peers[ARPACK] = partial(scikit_learn_graph, eigen_solver="arpack")
        peers[LOBPCG] = partial(scikit_learn_graph, eigen_solver="lobpcg")

    def found(peer: Callable[[Any, int], Labels]) -> Contestant:
        return lambda: Found((peer(adjacency, k),))

    return {
        OURS: partial(modfast_graph, adjacency, k),
        **{name: found(peer) for name, peer in peers.items()},
    }
