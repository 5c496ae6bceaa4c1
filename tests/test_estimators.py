"""The estimators against scikit-learn's own checks and tests, and against modfast's functions."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
import torch
from planted import planted
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, consensus_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import parametrize_with_checks

import modfast
from modfast import estimators
from modfast.estimators import SpectralClustering, SpectralCoclustering

SPARSE = [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, scipy.sparse.coo_matrix, scipy.sparse.csr_array]


def scikit_learns_tests(module: str, ours: type) -> dict[str, Any]:
    """scikit-learn's tests of the class that ``ours`` stands in for, loaded anew with ours in its place."""
    try:
        spec = importlib.util.find_spec(f"sklearn.cluster.tests.{module}")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.loader is None:
        skip = pytest.mark.skip(reason=f"this scikit-learn comes without its tests, {module} among them")
        return {f"test_scikit_learns_{module}": skip(lambda: None)}
    tests = importlib.util.module_from_spec(spec)
    with mock.patch.object(sklearn.cluster, ours.__name__, ours):
        spec.loader.exec_module(tests)
    assert vars(tests)[ours.__name__] is ours
    # A test is of the class if it names it, or is given one.
    return {
        name.replace("test_", "test_scikit_learns_", 1): test
        for name, test in vars(tests).items()
        if name.startswith("test_")
        and (ours.__name__ in test.__code__.co_names or ours.__name__ in str(getattr(test, "pytestmark", "")))
    }


globals().update(scikit_learns_tests("test_bicluster", SpectralCoclustering))
globals().update(scikit_learns_tests("test_spectral", SpectralClustering))


@pytest.fixture
def global_random_seed() -> int:
    """What scikit-learn's tests call it; this is its own choice, and any from 0 to 99 is to do."""
    return 42


def test_scikit_learns_tests_are_found() -> None:
    if importlib.util.find_spec("sklearn.cluster.tests") is None:
        pytest.skip("this scikit-learn comes without its tests")
    names = {name for name in globals() if name.startswith("test_scikit_learns_")}
    for name in ("spectral_coclustering", "n_features_in_", "spectral_clustering", "affinities", "verbose"):
        assert f"test_scikit_learns_{name}" in names


@parametrize_with_checks(
    [
        SpectralCoclustering(),
        SpectralClustering(),
        SpectralClustering(assign_labels="discretize", n_clusters=3),
        SpectralClustering(affinity="precomputed", n_clusters=3),
    ]
)
def test_check_estimator(estimator: Any, check: Any) -> None:
    if getattr(estimator, "affinity", None) == "precomputed" and check.func.__name__ == "check_clustering":
        # This check gives samples where similarities are due; the original raises as well.
        with pytest.raises(ValueError, match="Negative values in data"):
            check(estimator)
    else:
        check(estimator)


@pytest.mark.parametrize("ours", [SpectralCoclustering, SpectralClustering])
def test_parameters_are_the_originals(ours: Any) -> None:
    original = getattr(sklearn.cluster, ours.__name__)
    assert ours.__module__ == "modfast.estimators"
    assert inspect.signature(ours) == inspect.signature(original)
    assert ours().get_params() == original().get_params()
    assert repr(ours(n_clusters=5)) == repr(original(n_clusters=5))
    for name in inspect.signature(ours).parameters:
        assert f"    {name}: " in ours.__doc__


@pytest.mark.parametrize(
    ("ours", "params"),
    [
        (SpectralCoclustering, {"n_clusters": 0}),
        (SpectralCoclustering, {"svd_method": "lanczos"}),
        (SpectralCoclustering, {"n_svd_vecs": -1}),
        (SpectralCoclustering, {"mini_batch": "yes"}),
        (SpectralCoclustering, {"init": "farthest"}),
        (SpectralCoclustering, {"n_init": 0}),
        (SpectralCoclustering, {"random_state": "one"}),
        (SpectralCoclustering, {"n_clusters": 7}),
        (SpectralClustering, {"n_clusters": 2.0}),
        (SpectralClustering, {"eigen_solver": "lanczos"}),
        (SpectralClustering, {"n_components": 0}),
        (SpectralClustering, {"affinity": "distance"}),
        (SpectralClustering, {"eigen_tol": -1.0}),
        (SpectralClustering, {"assign_labels": "nearest"}),
    ],
)
def test_bad_parameters_are_told_as_by_the_original(ours: Any, params: dict[str, Any]) -> None:
    X = np.arange(12.0).reshape(6, 2)
    with pytest.raises(ValueError, match=next(iter(params))) as told:
        getattr(sklearn.cluster, ours.__name__)(**params).fit(X)
    with pytest.raises(ValueError, match=next(iter(params))) as ours_told:
        ours(**params).fit(X)
    assert str(ours_told.value) == str(told.value)


@pytest.mark.parametrize(
    "model",
    [
        SpectralCoclustering(3, svd_method="arpack", n_init=4, random_state=7),
        SpectralClustering(3, gamma=0.5, n_init=4, random_state=7),
        SpectralClustering(3, gamma=0.5, assign_labels="discretize", random_state=7),
        SpectralClustering(3, gamma=0.5, n_components=2, random_state=7),
    ],
)
def test_fits_alike_again_cloned_and_pickled(model: Any) -> None:
    X = np.random.RandomState(0).rand(30, 12)
    state = vars(clone(model).fit(X))
    labels = "labels_" if "labels_" in state else "row_labels_"
    for other in (
        clone(model).fit(X),
        clone(model).set_params(random_state=np.random.RandomState(7)).fit(X),
        pickle.loads(pickle.dumps(clone(model))).fit(X),
        pickle.loads(pickle.dumps(clone(model).fit(X))),
    ):
        np.testing.assert_array_equal(vars(other)[labels], state[labels])
        assert other.get_params().keys() == model.get_params().keys()
    assert set(state[labels]) == {0, 1, 2}


# Co-clustering


def test_coclustering_is_modfasts() -> None:
    X = np.random.RandomState(0).rand(40, 20)
    # Noise has no clear clusters, so another embedding, or another seed, gives other labels.
    model = SpectralCoclustering(5, n_init=3, random_state=1).fit(X)
    seed = int(check_random_state(1).randint(np.iinfo(np.int32).max))
    partition = modfast.spectral_cocluster(torch.tensor(X), 5, affinity="given", n_init=3, seed=seed)
    np.testing.assert_array_equal(model.row_labels_, partition.row_labels)
    np.testing.assert_array_equal(model.column_labels_, partition.col_labels)
    for cluster in range(5):
        np.testing.assert_array_equal(model.rows_[cluster], model.row_labels_ == cluster)
        np.testing.assert_array_equal(model.columns_[cluster], model.column_labels_ == cluster)
    assert model.biclusters_ == (model.rows_, model.columns_)
    assert model.rows_.dtype == model.columns_.dtype == bool


def test_many_planted_clusters_are_found_where_the_original_mixes_them() -> None:
    weight, partition = planted([12] * 16, [12] * 16, seed=0, spread=0.3)
    X = weight.abs().numpy()

    def quality(model: Any) -> float:
        fitted = model.fit(X)
        return min(
            adjusted_rand_score(partition.row_labels, fitted.row_labels_),
            adjusted_rand_score(partition.col_labels, fitted.column_labels_),
        )

    assert quality(sklearn.cluster.SpectralCoclustering(16, random_state=0)) < 0.7
    assert quality(SpectralCoclustering(16, random_state=0)) > 0.95


@pytest.mark.parametrize("form", SPARSE)
def test_coclustering_of_sparse_input(form: Any) -> None:
    weight, _ = planted([8, 6, 10], [5, 9, 7], seed=1, spread=0.2)
    X = np.where(weight.abs() > 0.1, weight.abs(), 0.0)
    dense = SpectralCoclustering(3, random_state=0).fit(X)
    sparse = SpectralCoclustering(3, random_state=0).fit(form(X))
    assert consensus_score(sparse.biclusters_, dense.biclusters_) == 1


@pytest.mark.parametrize("as_given", [np.asarray, scipy.sparse.csr_matrix])
def test_rows_and_columns_of_zeros_are_in_no_cluster(as_given: Any) -> None:
    X = np.kron(np.eye(2), np.ones((3, 2)))
    X[1], X[:, 3] = 0.0, 0.0
    model = SpectralCoclustering(2, random_state=0).fit(as_given(X))
    np.testing.assert_array_equal(model.row_labels_, [0, -1, 0, 1, 1, 1])
    np.testing.assert_array_equal(model.column_labels_, [0, 0, 1, -1])
    assert not model.rows_[:, 1].any()
    assert not model.columns_[:, 3].any()
    with pytest.raises(ValueError, match="NaN"), np.errstate(divide="ignore", invalid="ignore"):
        sklearn.cluster.SpectralCoclustering(2, random_state=0).fit(X)


def test_negative_entries_are_shifted_as_by_the_original() -> None:
    X = np.random.RandomState(0).randn(20, 10)
    before = X.copy()
    shifted = SpectralCoclustering(3, random_state=0).fit(X - X.min())
    model = SpectralCoclustering(3, random_state=0).fit(X)
    np.testing.assert_array_equal(model.row_labels_, shifted.row_labels_)
    np.testing.assert_array_equal(X, before)
    with pytest.raises(ValueError, match="nonnegative because it is sparse"):
        SpectralCoclustering(3).fit(scipy.sparse.csr_matrix(X))


@pytest.mark.parametrize("as_given", [np.asarray, scipy.sparse.csr_matrix])
def test_more_clusters_than_columns(as_given: Any) -> None:
    # Three clusters: a column with its rows, twice, and a row that leans to either column alike.
    X = np.array([[9.0, 0.0], [8.0, 0.0], [0.0, 9.0], [0.0, 8.0], [5.0, 5.0]])
    model = SpectralCoclustering(3, random_state=0).fit(as_given(X))
    np.testing.assert_array_equal(model.row_labels_, [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(model.column_labels_, [0, 1])
    assert model.columns_.shape == (3, 2)


def test_given_centres_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"init must be .* got an array of shape \(2, 1\)"):
        SpectralCoclustering(2, init=np.zeros((2, 1))).fit(np.eye(4))


# Clustering of samples


@pytest.mark.parametrize("n_components", [None, 4])
def test_clustering_is_modfasts(n_components: int | None) -> None:
    X = np.random.RandomState(0).rand(40, 3)
    model = SpectralClustering(4, gamma=2.0, n_init=3, random_state=1, n_components=n_components).fit(X)
    np.testing.assert_allclose(model.affinity_matrix_, rbf_kernel(X, gamma=2.0))
    graph = torch.tensor(model.affinity_matrix_).fill_diagonal_(0.0)
    seed = int(check_random_state(1).randint(np.iinfo(np.int32).max))
    np.testing.assert_array_equal(
        model.labels_, modfast.spectral_cluster((graph + graph.T) / 2, 4, n_init=3, seed=seed)
    )


@pytest.mark.parametrize(
    "params",
    [
        {"affinity": "nearest_neighbors", "n_neighbors": 5},
        {"affinity": "laplacian", "gamma": 0.3},
        {"affinity": "polynomial", "gamma": 0.5, "degree": 2, "coef0": 3.0},
        {"affinity": lambda x, y, power: float(x @ y) ** power, "kernel_params": {"power": 2}},
    ],
)
def test_similarities_are_the_originals(params: dict[str, Any]) -> None:
    X = np.random.RandomState(0).rand(25, 3)
    affinities = []
    for module in (sklearn.cluster, estimators):
        model = module.SpectralClustering(2, random_state=0, **params)
        affinity = model.fit(X).affinity_matrix_
        affinities.append(affinity.toarray() if scipy.sparse.issparse(affinity) else affinity)
    np.testing.assert_array_equal(*affinities)


def test_kernel_params_stay_the_callers() -> None:
    params: dict[str, Any] = {}
    SpectralClustering(2, kernel_params=params, random_state=0).fit(np.random.RandomState(0).rand(9, 2))
    assert params == {}


@pytest.mark.parametrize("assign_labels", ["kmeans", "discretize", "cluster_qr"])
@pytest.mark.parametrize("form", SPARSE)
def test_clustering_of_sparse_similarities(form: Any, assign_labels: str) -> None:
    X, y = make_blobs(30, centers=[[0, 0], [4, 0], [0, 4]], cluster_std=0.5, random_state=0)
    similarities = rbf_kernel(X)
    similarities[similarities < 1e-6] = 0.0
    model = SpectralClustering(3, affinity="precomputed", assign_labels=assign_labels, random_state=0)
    labels = model.fit_predict(form(similarities))
    assert adjusted_rand_score(y, labels) == 1
    assert adjusted_rand_score(model.fit_predict(similarities), labels) == 1


@pytest.mark.parametrize("n_components", [3, 6])
def test_more_or_fewer_components_than_clusters(n_components: int) -> None:
    X, y = make_blobs(
        60, centers=[[0, 0], [4, 0], [0, 4], [4, 4]], cluster_std=0.4, shuffle=False, random_state=0
    )
    model = SpectralClustering(4, gamma=0.5, n_components=n_components, random_state=0).fit(X)
    assert adjusted_rand_score(y, model.labels_) == 1


@pytest.mark.parametrize(
    "params", [{}, {"assign_labels": "discretize"}, {"assign_labels": "cluster_qr"}, {"n_components": 3}]
)
@pytest.mark.parametrize("as_given", [np.asarray, scipy.sparse.csr_matrix])
def test_samples_without_ties_are_in_no_cluster(as_given: Any, params: dict[str, Any]) -> None:
    similarities = scipy.linalg.block_diag(np.ones((3, 3)), 1.0, np.ones((4, 4)), 0.0)
    model = SpectralClustering(2, affinity="precomputed", random_state=0, **params)
    with pytest.warns(UserWarning, match="not fully connected") as told:
        model.fit(as_given(similarities))
    assert told[0].filename == __file__
    np.testing.assert_array_equal(np.flatnonzero(model.labels_ == -1), [3, 8])
    assert adjusted_rand_score(model.labels_[[0, 1, 2, 4, 5, 6, 7]], [0, 0, 0, 1, 1, 1, 1]) == 1
    with pytest.warns(UserWarning, match="not fully connected"):
        model.fit(as_given(np.eye(3)))
    np.testing.assert_array_equal(model.labels_, [-1, -1, -1])


@pytest.mark.parametrize("assign_labels", ["kmeans", "discretize", "cluster_qr"])
def test_more_parts_than_clusters(assign_labels: str) -> None:
    similarities = np.kron(np.eye(4), np.ones((3, 3)))
    model = SpectralClustering(2, affinity="precomputed", assign_labels=assign_labels, random_state=0)
    with pytest.warns(UserWarning, match="not fully connected"):
        labels = model.fit_predict(similarities)
    assert set(labels) == {0, 1}
    assert all(len(set(part)) == 1 for part in np.split(labels, 4))


@pytest.mark.parametrize("as_given", [np.asarray, scipy.sparse.csr_matrix])
def test_connected_graphs_do_not_warn(as_given: Any) -> None:
    path = np.diag(np.ones(9), 1)
    model = SpectralClustering(2, affinity="precomputed", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = model.fit_predict(as_given(path + path.T))
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 5))


def test_similarities_that_are_not_symmetric_are_averaged() -> None:
    similarities = np.kron(np.eye(2), np.ones((3, 3))) + 0.1
    similarities[0, 5] = 0.3
    model = SpectralClustering(2, affinity="precomputed", random_state=0)
    with pytest.warns(UserWarning, match="not symmetric"):
        model.fit(similarities)
    np.testing.assert_array_equal(model.labels_, [0, 0, 0, 1, 1, 1])
    assert similarities[0, 5] == 0.3


def test_bad_similarities_are_told() -> None:
    X = np.random.RandomState(0).randn(10, 3)
    with pytest.raises(ValueError, match=r"Negative values .*affinity='cosine'.* must be 0 or more"):
        SpectralClustering(2, affinity="cosine").fit(X)
    with pytest.raises(ValueError, match="Negative values in data"):
        SpectralClustering(2, affinity="precomputed").fit(X @ X.T)
    with pytest.raises(ValueError, match="square"):
        SpectralClustering(2, affinity="precomputed").fit(np.abs(X))


def test_square_samples_are_taken_for_samples_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="X is square") as told:
        SpectralClustering(2, random_state=0).fit(np.random.RandomState(0).rand(5, 5))
    assert told[0].filename == __file__


def test_more_clusters_than_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="n_clusters should be <= n_samples=5"):
        SpectralClustering().fit(np.random.RandomState(0).rand(5, 2))


@pytest.mark.parametrize(("eigen_tol", "tol"), [("auto", 1e-3), (0.02, 0.02), (0.0, 1e-12)])
@pytest.mark.parametrize(
    ("solver", "params"), [("spectral_cluster", {}), ("graph_embedding", {"assign_labels": "cluster_qr"})]
)
def test_eigen_tol_reaches_the_solver(
    eigen_tol: Any, tol: float, solver: str, params: dict[str, Any]
) -> None:
    X = np.random.RandomState(0).rand(9, 2)
    with mock.patch.object(estimators, solver, wraps=vars(estimators)[solver]) as called:
        SpectralClustering(2, eigen_tol=eigen_tol, random_state=0, **params).fit(X)
    assert called.call_args.kwargs["tol"] == tol


def test_verbose_tells_how_the_solver_fared(capsys: pytest.CaptureFixture[str]) -> None:
    X = np.random.RandomState(0).rand(9, 2)
    SpectralClustering(2, random_state=0).fit(X)
    assert capsys.readouterr().out == ""
    SpectralClustering(2, random_state=0, verbose=True).fit(X)
    told = capsys.readouterr().out
    assert told.startswith("Computing label assignment using kmeans\n")
    assert "passes over the graph" in told
    with pytest.warns(UserWarning, match="not fully connected"):
        SpectralClustering(2, affinity="precomputed", verbose=True).fit(np.eye(3))
    assert "passes over the graph" in capsys.readouterr().out


# Without scikit-learn


def test_modfast_does_not_import_scikit_learn(run_python: Any) -> None:
    code = "import sys; from modfast import *; print('sklearn' in sys.modules, 'scipy' in sys.modules)"
    done = run_python(code)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_without_scikit_learn_the_error_says_what_to_install(run_python: Any) -> None:
    done = run_python("import sys; sys.modules['sklearn'] = None; import modfast; import modfast.estimators")
    assert "ImportError: modfast.estimators needs scikit-learn 1.3 or later" in done.stderr
    assert 'pip install "modfast[experiments]"' in done.stderr
