"""scikit-learn's two spectral clusterings on modfast's solver: change one import.

Parameters, their validation, attributes, similarities and tags are inherited from scikit-learn; the singular
vectors or eigenvectors, and the clusters found in them, come from :func:`modfast.spectral_cocluster` and
:func:`modfast.spectral_cluster`. These differences are on purpose:

- The embedding has ``n_clusters`` vectors, k-means weighs each node by its degree, and the clusters are
  refined until no single move lowers the normalised cut.
- A node of degree 0 (a row or column of zeros, a sample without neighbours) is in no cluster: its label is
  -1, as for noise in scikit-learn's DBSCAN. The original co-clustering raises an error, the original spectral
  clustering puts such a sample into any cluster.
- A cluster is empty only if fewer than ``n_clusters`` rows, columns or samples differ.

This module needs SciPy and scikit-learn 1.3 or later; nothing else of modfast imports it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .arrays import require_whole
from .spectral.clustering import graph_embedding, spectral_cluster, spectral_cocluster

try:
    import scipy.sparse
    import sklearn.cluster
    from scipy.sparse.csgraph import connected_components
    from sklearn.base import _fit_context
    from sklearn.metrics.pairwise import pairwise_kernels
    from sklearn.neighbors import NearestNeighbors, kneighbors_graph
    from sklearn.utils import check_random_state, check_symmetric
    from sklearn.utils.extmath import make_nonnegative
    from sklearn.utils.validation import check_non_negative
except ImportError as error:
    raise ImportError(
        f"modfast.estimators needs scikit-learn 1.3 or later ({error}); run: "
        'pip install "modfast[experiments]"'
    ) from error

try:
    from sklearn.utils.validation import validate_data as _validate_data
except ImportError:  # before scikit-learn 1.6 it was a method

    def _validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        return estimator._validate_data(X, **options)


__all__ = ["SpectralClustering", "SpectralCoclustering"]

# The smallest residual that rounding lets the solver reach.
_SMALLEST_TOL = 1e-12


class SpectralCoclustering(sklearn.cluster.SpectralCoclustering):  # type: ignore[misc]
    """:class:`sklearn.cluster.SpectralCoclustering` by :func:`modfast.spectral_cocluster`.

    ``X[i, j]`` is the weight of the edge between row ``i`` and column ``j``; rows and columns share a cluster
    if the edges between them weigh more than those to the rest. Sparse input stays sparse, and must not be
    negative. As in the original, a dense ``X`` with negative entries is shifted until its smallest is 0,
    which adds edges nearly everywhere: where the sign has no meaning, as in a weight matrix, give ``abs(X)``.

    Args:
        n_clusters: from 1 to the number of rows.
        svd_method: no effect. modfast has one solver for singular vectors.
        n_svd_vecs: no effect. The solver chooses the size of its subspace; the embedding has ``n_clusters``
            vectors, where the original has ``ceil(log2(n_clusters))``, too few to separate many clusters.
        mini_batch: no effect. k-means takes all rows and columns at once.
        init: no effect if ``"k-means++"`` or ``"random"``: k-means starts by k-means++. An array is an error,
            since its centres are points in the original's embedding, not in this one.
        n_init: how many times k-means starts anew; the tightest result is kept. Use more starts if labels
            change with ``random_state``.
        random_state: the only source of chance; an int gives the same labels at each fit.

    Attributes:
        row_labels_: ``(n_rows,)`` int64, the cluster of each row, -1 for a row of zeros (the original raises
            an error). Clusters are numbered in order of appearance, in rows and then in columns.
        column_labels_: ``(n_columns,)`` int64, the cluster of each column.
        rows_: ``(n_clusters, n_rows)`` bool, whether the cluster holds the row.
        columns_: ``(n_clusters, n_columns)`` bool, whether it holds the column.
        biclusters_: ``(rows_, columns_)``.
        n_features_in_: the number of columns.
        feature_names_in_: their names, if ``X`` was a data frame with names.

    Example:
        >>> X = np.array([[5.0, 0.1, 4.0], [0.1, 3.0, 0.2], [6.0, 0.2, 5.0]])
        >>> model = SpectralCoclustering(n_clusters=2, random_state=0).fit(X)
        >>> model.row_labels_, model.column_labels_
        (array([0, 1, 0]), array([0, 1, 0]))
        >>> model.get_submatrix(0, X)
        array([[5., 4.],
               [6., 5.]])
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> SpectralCoclustering:
        """Find the clusters of rows and columns.

        Args:
            X: array-like or sparse, ``(n_rows, n_columns)``; computed in float64.
            y: ignored.

        Returns:
            The estimator.

        Raises:
            ValueError: a parameter is out of range, ``n_clusters`` exceeds the number of rows, ``init`` is an
                array, or ``X`` is not finite, or sparse with a negative entry.
        """
        require_whole("X", X)
        X = _validate_data(self, X, accept_sparse="csr", dtype=np.float64)
        _check_n_clusters(self.n_clusters, X.shape[0])
        if isinstance(self.init, np.ndarray):
            raise ValueError(
                f"init must be 'k-means++' or 'random', got an array of shape {self.init.shape}: centres in "
                "scikit-learn's embedding have no meaning in modfast's"
            )
        X = make_nonnegative(X)
        seed = _seed(check_random_state(self.random_state))
        options: dict[str, Any] = {"n_init": int(self.n_init), "seed": seed}
        if self.n_clusters <= X.shape[1]:
            partition = spectral_cocluster(X, int(self.n_clusters), affinity="given", **options)
            labels = np.concatenate([partition.row_labels.numpy(), partition.col_labels.numpy()])
        else:
            # X has no more singular vectors than columns, but its rows and columns, as nodes of one graph,
            # may still form more clusters than that.
            graph = scipy.sparse.bmat([[None, X], [X.T, None]], format="csr")
            labels = spectral_cluster(graph, int(self.n_clusters), **options).numpy()

        self.row_labels_, self.column_labels_ = np.split(labels, [X.shape[0]])
        clusters = np.arange(self.n_clusters)[:, None]
        self.rows_, self.columns_ = clusters == self.row_labels_, clusters == self.column_labels_
        return self


class SpectralClustering(sklearn.cluster.SpectralClustering):  # type: ignore[misc]
    """:class:`sklearn.cluster.SpectralClustering` by :func:`modfast.spectral_cluster`.

    scikit-learn computes the similarities of the samples (``affinity``), modfast finds the clusters of the
    graph whose edge weights they are. As in the original, the similarity of a sample to itself does not
    count, and similarities that are not symmetric are averaged with their transpose, with a warning.

    Args:
        n_clusters: from 1 to the number of samples.
        eigen_solver: no effect. modfast has one solver for eigenvectors; pyamg is never needed.
        n_components: how many eigenvectors embed the samples, by default ``n_clusters``. With another number
            :func:`sklearn.cluster.k_means` finds the clusters in modfast's embedding, as the original does in
            its own: neither weighted nor refined.
        random_state: the only source of chance; an int gives the same labels at each fit.
        n_init: how many times k-means starts anew; the tightest result is kept. Use more starts if labels
            change with ``random_state``.
        gamma: the coefficient of the kernels, as in the original.
        affinity: as in the original: a kernel such as ``"rbf"`` for samples, ``"nearest_neighbors"`` for many
            samples, as its graph is sparse, ``"precomputed"`` for a graph. Similarities below 0, for which a
            normalised cut is not defined, are an error; the original takes them without a check.
        n_neighbors: as in the original.
        eigen_tol: ``tol`` of :func:`modfast.spectral_cluster`. Begin with ``"auto"``, its default of 1e-3;
            anything below 1e-12 is 1e-12.
        assign_labels: ``"kmeans"`` is modfast's own, with the refinement: use it unless you compare with
            scikit-learn's ``"discretize"`` or ``"cluster_qr"``, which run on modfast's embedding.
        degree: the degree of the polynomial kernel, as in the original.
        coef0: the constant of the polynomial and sigmoid kernels, as in the original.
        kernel_params: as in the original.
        n_jobs: the number of jobs in the search for neighbours, as in the original. modfast's threads are
            PyTorch's.
        verbose: print how labels are assigned, and how the solver converged.

    Attributes:
        affinity_matrix_: ``(n_samples, n_samples)``, the similarities, dense or sparse.
        labels_: ``(n_samples,)`` int64, the cluster of each sample, numbered by modfast's k-means in order of
            appearance; -1 for a sample without neighbours, which the original puts into any cluster.
        n_features_in_: the number of columns of ``X``.
        feature_names_in_: their names, if ``X`` was a data frame with names.

    Example:
        >>> X = np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 0.0], [4.0, 7.0], [3.0, 5.0], [3.0, 6.0]])
        >>> SpectralClustering(n_clusters=2, random_state=0).fit(X).labels_
        array([0, 0, 0, 1, 1, 1])
        >>> two_pairs = np.kron(np.eye(2), np.ones((2, 2))) + 0.1
        >>> SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(two_pairs)
        array([0, 0, 1, 1])
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> SpectralClustering:
        """Find the clusters of the samples.

        Args:
            X: array-like or sparse: ``(n_samples, n_features)``, or ``(n_samples, n_samples)`` similarities
                for ``affinity="precomputed"`` and distances for ``"precomputed_nearest_neighbors"``.
            y: ignored.

        Returns:
            The estimator.

        Raises:
            ValueError: a parameter is out of range, ``n_clusters`` exceeds the number of samples, ``X`` is
                not finite, or similarities are negative or not square.

        Warns:
            UserWarning: the similarities are not symmetric, or the graph is not fully connected; ``X`` is
                square though samples were expected.
        """
        require_whole("X", X)
        X = _validate_data(
            self, X, accept_sparse=["csr", "csc", "coo"], dtype=np.float64, ensure_min_samples=2
        )
        _check_n_clusters(self.n_clusters, X.shape[0])
        self.affinity_matrix_ = self._affinity_of(X)
        check_non_negative(
            self.affinity_matrix_,
            f"SpectralClustering(affinity={self.affinity!r}), whose similarities must be 0 or more",
        )
        graph = _graph_of(self.affinity_matrix_)
        if not _is_connected(graph):
            warnings.warn(
                "Graph is not fully connected: clusters follow its separate parts, and a sample without "
                "neighbours gets the label -1.",
                stacklevel=3,
            )
        if self.verbose:
            print(f"Computing label assignment using {self.assign_labels}")
        random_state = check_random_state(self.random_state)
        options: dict[str, Any] = {
            "tol": 1e-3 if self.eigen_tol == "auto" else max(float(self.eigen_tol), _SMALLEST_TOL),
            "seed": _seed(random_state),
        }
        if self.assign_labels == "kmeans" and self.n_components in (None, self.n_clusters):
            labels, info = spectral_cluster(
                graph, int(self.n_clusters), n_init=int(self.n_init), return_info=True, **options
            )
            self.labels_ = labels.numpy()
            if self.verbose:
                print(
                    f"Initialization complete: {info['passes']} passes over the graph, "
                    f"largest residual {float(max(info['residuals'], default=0.0)):.1e}\n"
                    f"Iteration {info['iterations']}, inertia {info['inertia']:.6g}: "
                    f"the last of k-means, after {info['seconds']:.3g} s"
                )
        else:
            self.labels_ = self._labels_by_scikit_learn(graph, random_state, options)
        return self

    def _affinity_of(self, X: Any) -> Any:
        """Return the similarities that the parameters ask for."""
        if self.affinity == "precomputed":
            return X
        if self.affinity == "precomputed_nearest_neighbors":
            nearest = NearestNeighbors(n_neighbors=self.n_neighbors, n_jobs=self.n_jobs, metric="precomputed")
            neighbours = nearest.fit(X).kneighbors_graph(X)
            return 0.5 * (neighbours + neighbours.T)
        if X.shape[0] == X.shape[1]:
            warnings.warn(
                "X is square, and taken as samples: for a matrix of similarities set affinity='precomputed'.",
                stacklevel=4,
            )
        if self.affinity == "nearest_neighbors":
            neighbours = kneighbors_graph(
                X, n_neighbors=self.n_neighbors, include_self=True, n_jobs=self.n_jobs
            )
            return 0.5 * (neighbours + neighbours.T)
        params = dict(self.kernel_params or {})
        if not callable(self.affinity):
            params |= {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        return pairwise_kernels(X, metric=self.affinity, filter_params=True, **params)

    def _labels_by_scikit_learn(self, graph: Any, random_state: Any, options: dict[str, Any]) -> Any:
        """Return the labels that scikit-learn finds in modfast's embedding."""
        # scikit-learn has no public name for these two; they are imported only for those who ask for them.
        from sklearn.cluster._spectral import cluster_qr, discretize

        labels = np.full(graph.shape[0], -1)
        connected = np.asarray(graph.sum(axis=1)).ravel() > 0
        count = int(connected.sum())
        if count == 0:
            return labels
        num_vectors = min(int(self.n_components or self.n_clusters), count)
        places = graph_embedding(graph[connected][:, connected], num_vectors, **options).numpy()
        if self.assign_labels == "kmeans":
            _, labels[connected], _ = sklearn.cluster.k_means(
                places,
                min(self.n_clusters, count),
                random_state=random_state,
                n_init=self.n_init,
                verbose=self.verbose,
            )
        elif self.assign_labels == "cluster_qr":
            labels[connected] = cluster_qr(places)
        else:
            # A part of the graph that none of the vectors shows lies at the origin. discretize divides by the
            # distance from there, so the part is moved, and any direction will do.
            places[~places.any(axis=1)] = 1.0
            labels[connected] = discretize(places, random_state=random_state)
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.affinity == "precomputed"
        return tags

    def _more_tags(self) -> dict[str, Any]:  # the same for scikit-learn before 1.6, which adds the rest
        return {"requires_positive_X": self.affinity == "precomputed"}


def _check_n_clusters(n_clusters: int, n_samples: int) -> None:
    if n_clusters > n_samples:
        raise ValueError(f"n_clusters should be <= n_samples={n_samples}. Got {n_clusters} instead.")


def _seed(random_state: Any) -> int:
    return int(random_state.randint(np.iinfo(np.int32).max))


def _graph_of(affinity: Any) -> Any:
    """Return a copy of the similarities, dense or CSR, symmetric and with a zero diagonal."""
    # The check lets rounding differences pass, so the mean is taken in any case.
    graph = check_symmetric(affinity)
    graph = 0.5 * (graph + graph.T)
    if scipy.sparse.issparse(graph):
        return (graph - scipy.sparse.diags(graph.diagonal())).tocsr()
    np.fill_diagonal(graph, 0.0)
    return graph


def _is_connected(graph: Any) -> bool:
    if scipy.sparse.issparse(graph):
        return bool(connected_components(graph, directed=False, return_labels=False) == 1)
    # Breadth first, each row read at most once: usually the first row already reaches all the others.
    reached, read = np.zeros(len(graph), bool), np.zeros(len(graph), bool)
    reached[0] = True
    while not reached.all() and (fresh := reached & ~read).any():
        reached, read = reached | (graph[fresh] > 0).any(axis=0), read | fresh
    return bool(reached.all())
