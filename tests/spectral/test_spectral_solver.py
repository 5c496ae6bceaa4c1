"""The eigensolver, and co-clustering beyond the size that is decomposed whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planted import planted
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import modfast
from modfast import (
    ConvergenceWarning,
    Partition,
    clusterability,
    normalized_cut,
    reference,
    spectral_cocluster,
)
from modfast.spectral.krylov import block_width, largest_eigenvectors, random_block


def symmetric(values: list[float], size: int, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues, and zeros."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q[:, : len(values)] * torch.tensor(values, dtype=torch.float64) @ q[:, : len(values)].T


def solve(matrix: Tensor, count: int, weights: Tensor | None = None, **options: Any) -> Any:
    """The largest eigenvectors; with weights D those of D^-1 A."""
    size = len(matrix)
    dtype = options.pop("dtype", torch.float64)
    degrees = torch.ones(size, dtype=dtype) if weights is None else weights.to(dtype)
    scaled = (matrix.to(dtype) / degrees[:, None]).to(dtype)
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    settings: dict[str, Any] = {
        "tolerance": lambda values: np.full_like(values, 1e-10),
        "max_products": 500,
        "capacity": 4 * block_width(count),
        "generator": generator,
    }
    start = random_block(size, block_width(count), generator, degrees)
    return largest_eigenvectors(
        lambda block, out: torch.mm(scaled, block, out=out), degrees, start, count, **{**settings, **options}
    )


# --- the eigensolver


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 0.9, 0.8, 0.7, 0.3, 0.2, 0.1],
        [1.0] * 8 + [0.5] * 20,
        [1.0, 1.0, 1.0, 0.999, 0.5],
        [1.0, 0.5, 0.25, *(0.2 - 0.001 * i for i in range(100)), *(-0.9 + 0.01 * i for i in range(50))],
        [1e-3, 1e-4, 1e-5],
        [],
    ],
    ids=["separate", "repeated", "close", "both signs", "small", "zero"],
)
def test_eigenvalues_and_vectors(values: list[float]) -> None:
    matrix = symmetric(values, 200)
    found = solve(matrix, 5)
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:5]
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)
    assert found.converged
    vectors = found.vectors[:, :5]
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-9)
    residuals = torch.linalg.vector_norm(matrix @ vectors - vectors * found.values, dim=0)
    assert (residuals <= 2e-10).all()


def test_residuals_are_what_they_say() -> None:
    matrix = symmetric([1.0, 0.9, *(0.8 - 0.005 * i for i in range(150))], 300)
    found = solve(matrix, 6, tolerance=lambda values: np.full_like(values, 1e-3))
    vectors = found.vectors[:, :6]
    residuals = torch.linalg.vector_norm(matrix @ vectors - vectors * found.values, dim=0)
    torch.testing.assert_close(found.residuals, residuals, rtol=1e-3, atol=1e-12)
    assert found.converged
    assert found.residuals.max() <= 1e-3


def test_weights_are_an_inner_product() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = symmetric([1.0, 0.8, 0.6, 0.3], 150)
    weights = torch.rand(150, dtype=torch.float64, generator=generator) * 1e4 + 1e-3
    scaled = weights.sqrt()[:, None] * matrix * weights.sqrt()
    found = solve(scaled, 3, weights)
    expected = torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)
    vectors = found.vectors[:, :3]
    unit = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(vectors.T @ (weights[:, None] * vectors), unit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_nearly_depend_on_each_other(dtype: torch.dtype) -> None:
    """The products of a block with a matrix of rank 3 span three directions and rounding."""
    found = solve(symmetric([1.0, 0.5, 0.25], 160), 6, dtype=dtype)
    precision = 1e-6 if dtype == torch.float32 else 1e-10
    expected = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=precision)
    gram = (found.vectors.T @ found.vectors).double()
    torch.testing.assert_close(gram, torch.eye(8, dtype=torch.float64), rtol=0, atol=20 * precision)


def test_it_stops_after_so_many_products() -> None:
    matrix = symmetric([1.0 - 1e-4 * i for i in range(190)], 200)
    found = solve(matrix, 4, max_products=7)
    assert found.products == 7
    assert not found.converged
    assert found.residuals.max() > 1e-10


# --- co-clustering of larger matrices


@pytest.mark.parametrize(
    ("rows", "cols", "spread"),
    [
        ([96] * 4, [64] * 4, 0.25),
        ([64] * 4, [96] * 4, 0.25),
        ([40] * 9, [30] * 9, 0.1),
        ([400, 100, 60], [60, 300, 100], 0.1),
        ([130, 130], [200, 200], 0.5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_planted(rows: list[int], cols: list[int], spread: float, dtype: torch.dtype) -> None:
    weight, truth = planted(rows, cols, 0, spread)
    found, info = spectral_cocluster(weight.to(dtype), truth.num_clusters, return_info=True)
    assert adjusted_rand_score(truth.row_labels, found.row_labels) >= 0.97
    assert adjusted_rand_score(truth.col_labels, found.col_labels) >= 0.97
    assert clusterability(weight, found) >= 0.99 * clusterability(weight, truth)
    assert info["converged"]


def singular_values(weight: Tensor) -> Tensor:
    similarity = weight.abs().double()
    rows, cols = similarity.sum(1), similarity.sum(0)
    scaled = similarity * torch.where(rows > 0, rows.rsqrt(), 0.0)[:, None]
    return torch.linalg.svdvals(scaled * torch.where(cols > 0, cols.rsqrt(), 0.0))


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-8])
@pytest.mark.parametrize(("rows", "cols"), [(300, 200), (200, 300)])
def test_singular_values_are_exact(rows: int, cols: int, tol: float) -> None:
    """Without structure, where they lie close together."""
    weight = torch.randn(rows, cols)
    _, info = spectral_cocluster(weight, 6, tol=tol, return_info=True)
    expected = singular_values(weight)[:6]
    assert info["converged"]
    assert (info["residuals"] <= tol * expected).all()
    # A residual r leaves an error of r^2 / gap, or r at worst.
    assert ((info["singular_values"] - expected).abs() <= tol * expected).all()


@pytest.mark.parametrize("turned", [False, True])
def test_layouts_do_not_matter(turned: bool) -> None:
    weight, _ = planted([60] * 3, [50] * 3, 2, spread=0.2)
    expected = spectral_cocluster(weight.T.contiguous() if turned else weight, 3)
    wide = torch.zeros(180, 300)
    wide[:, ::2] = weight
    sparse = scipy.sparse.csr_matrix(weight.numpy())
    copies: list[Any] = [
        weight.T.contiguous().T,
        wide[:, ::2],
        weight.numpy(),
        np.asfortranarray(weight.numpy()),
        np.broadcast_to(weight.numpy(), (1, 180, 150))[0],
        weight.to_sparse(),
        sparse,
        sparse.tocsc(),
        sparse.tocoo(),
    ]
    for copy in copies:
        assert spectral_cocluster(copy.T if turned else copy, 3) == expected


def test_a_read_only_array_is_taken() -> None:
    weight = np.abs(np.random.default_rng(0).normal(size=(20, 30)))
    weight.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spectral_cocluster(weight, 2).shape == (20, 30)


def pruned(weight: Tensor, share: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(weight.shape, generator=generator) < share, weight, 0.0)


def test_a_pruned_weight_is_clustered_alike_dense_and_sparse() -> None:
    weight, truth = planted([150] * 4, [100] * 4, 0, spread=0.1)
    weight = pruned(weight, 0.1)
    dense = spectral_cocluster(weight, 4)
    sparse = spectral_cocluster(scipy.sparse.csr_array(weight.numpy()), 4)
    assert dense == sparse
    assert adjusted_rand_score(truth.row_labels, dense.row_labels) == 1.0


def test_zero_rows_and_columns_of_a_large_matrix() -> None:
    weight, truth = planted([80] * 3, [70] * 3, 0)
    weight[::7], weight[:, ::5] = 0.0, 0.0
    for given_weight in (weight, scipy.sparse.csr_matrix(weight.numpy())):
        found = spectral_cocluster(given_weight, 3)
        assert torch.equal(found.row_labels < 0, torch.arange(240) % 7 == 0)
        assert torch.equal(found.col_labels < 0, torch.arange(210) % 5 == 0)
        tied = found.row_labels >= 0
        assert adjusted_rand_score(truth.row_labels[tied], found.row_labels[tied]) == 1.0


@pytest.mark.parametrize("sparse", [False, True])
def test_little_weight_in_a_large_matrix(sparse: bool) -> None:
    """What is left without zeros is small, and is decomposed whole."""
    weight = torch.zeros(500, 400)
    weight[7:400:100, 9:300:50] = torch.rand(4, 6) + 0.1
    whole, info = spectral_cocluster(
        scipy.sparse.csr_matrix(weight.numpy()) if sparse else weight, 5, return_info=True
    )
    part = spectral_cocluster(weight[7:400:100, 9:300:50], 4)
    assert (whole.row_labels >= 0).sum() == 4
    assert whole.sizes().sum(1).gt(0).all()
    assert part.shape == (4, 6)
    torch.testing.assert_close(info["singular_values"], singular_values(weight)[:5], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_clusters", [2, 5, 12, 15])
def test_separate_parts(num_clusters: int) -> None:
    weight = torch.block_diag(*[torch.rand(25, 20) + 0.1 for _ in range(12)])
    found, info = spectral_cocluster(weight, num_clusters, return_info=True)
    whole = min(num_clusters, 12)
    torch.testing.assert_close(info["singular_values"][:whole], torch.ones(whole).double(), rtol=0, atol=1e-5)
    assert found.sizes().sum(1).gt(0).all()
    if num_clusters <= 12:
        assert clusterability(weight, found).item() == 1.0


@pytest.mark.parametrize(
    "weight",
    [torch.ones(200, 300), torch.outer(torch.linspace(0.1, 2, 300), torch.linspace(-1, 3, 400))],
    ids=["constant", "rank one"],
)
def test_without_any_difference_there_is_one_cluster(weight: Tensor) -> None:
    found = spectral_cocluster(weight, 4)
    assert not found.row_labels.any()
    assert not found.col_labels.any()


def test_a_difference_too_small_for_float32() -> None:
    """The second singular value is 2.5e-5: its square is lost in float32, so that float64 takes over."""
    weight = torch.ones(200, 200) + 1e-4 * torch.block_diag(*[torch.ones(50, 50)] * 4)
    found, info = spectral_cocluster(weight, 4, return_info=True)
    assert found == Partition.blocks((200, 200), 4)
    torch.testing.assert_close(info["singular_values"], singular_values(weight)[:4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    weight, _ = planted([60] * 3, [50] * 3, 2, spread=0.2)
    for affinity in ("abs", "square"):
        assert spectral_cocluster(weight * scale, 3, affinity=affinity) == spectral_cocluster(
            weight, 3, affinity=affinity
        )


@pytest.mark.parametrize("make", [lambda w: w, lambda w: scipy.sparse.csr_matrix(w.numpy())])
def test_same_labels_for_any_number_of_threads(
    set_threads: Callable[[int], None], make: Callable[[Tensor], Any]
) -> None:
    weight = make(torch.randn(700, 500))  # without structure: the least difference would show
    results = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        partition, info = spectral_cocluster(weight, 7, return_info=True)
        assert torch.get_num_threads() == threads
        results.append((partition, info["singular_values"], info["residuals"]))
    for partition, values, residuals in results[1:]:
        assert partition == results[0][0]
        assert torch.equal(values, results[0][1])
        assert torch.equal(residuals, results[0][2])


def test_no_convergence_is_said_once() -> None:
    weight = torch.randn(300, 300)
    with pytest.warns(ConvergenceWarning, match="stopped after .* passes with residuals up to") as told:
        _, info = spectral_cocluster(weight, 8, tol=1e-6, max_iter=4, return_info=True)
    assert len(told) == 1
    assert not info["converged"]
    assert info["residuals"].max() > 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = spectral_cocluster(weight, 8, return_info=True)
    assert info["converged"]
    assert 3 < info["passes"] < 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0.0}, "tol must be a number between 0 and 1, both excluded, got 0.0"),
        ({"tol": 1}, "tol must be a number between"),
        ({"tol": float("nan")}, "tol must be a number between"),
        ({"tol": "small"}, "tol must be a number between .* got 'small'"),
        ({"max_iter": 0}, "max_iter must be an integer in .* got 0"),
        ({"max_iter": True}, "max_iter must be an integer in .* got True"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_cocluster(torch.ones(3, 5), 2, **options)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_bad_entries_of_a_sparse_weight(bad: float) -> None:
    weight = scipy.sparse.csr_matrix(np.eye(4))
    weight.data[2] = bad
    with pytest.raises(ValueError, match=rf"weight's values must be finite.*, got {bad} at \(2,\)"):
        spectral_cocluster(weight, 2, affinity="given")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("starts", "indices", "message"),
    [
        ([0, 1, 2, 3, 4], [0, -1, 2, 3], "a sparse weight's column indices must be in .0, 3., got -1"),
        ([0, 1, 2, 3, 4], [0, 1, 4, 3], "column indices must be in .0, 3., got 4"),
        ([0, 1, 2, 3, 4], [0, 2**40, 2, 3], "column indices must be in"),
        ([0, 1, 2, 3, 5], [0, 1, 2, 3], "row starts must rise from 0 to 4"),
        ([1, 1, 2, 3, 4], [0, 1, 2, 3], "row starts must rise"),
        ([0, 3, 2, 3, 4], [0, 1, 2, 3], "row starts must rise"),
    ],
)
def test_malformed_sparse_weights(starts: list[int], indices: list[int], message: str) -> None:
    weight = torch.sparse_csr_tensor(
        torch.tensor(starts), torch.tensor(indices), torch.ones(4), (4, 4), check_invariants=False
    )
    with pytest.raises(ValueError, match=message):
        spectral_cocluster(weight, 2)


# --- the normalised cut


def test_refinement_lowers_the_normalised_cut() -> None:
    """No single row or column could lower it further; nor does the reference's refinement find one."""
    weight, _ = planted([70] * 3, [60] * 3, 0, spread=0.85)
    found = spectral_cocluster(weight, 3)
    graph = reference.spectral.bipartite(weight.abs().double())
    labels = torch.cat([found.row_labels, found.col_labels])
    assert torch.equal(reference.spectral.refine(graph, labels, 3, max_sweeps=1, least=1e-5), labels)
    rough = reference.spectral_cocluster(weight, 3, n_init=1)
    assert normalized_cut(weight, found) <= normalized_cut(weight, rough) + 0.01


@settings(max_examples=25)
@given(
    rows=st.integers(129, 220),
    cols=st.integers(129, 220),
    k=st.integers(1, 12),
    share=st.sampled_from([0.02, 0.1, 1.0]),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**31),
)
@example(rows=200, cols=155, k=7, share=0.02, exponent=-2, seed=1690941)
def test_any_weight(rows: int, cols: int, k: int, share: float, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = pruned(torch.randn(rows, cols, generator=generator) * 10.0**exponent, share, seed)
    found, info = spectral_cocluster(weight, k, n_init=2, return_info=True)
    assert torch.equal(found.row_labels >= 0, weight.any(1))
    assert torch.equal(found.col_labels >= 0, weight.any(0))
    used = found.sizes().sum(1) > 0
    assert torch.equal(used, used.sort(descending=True).values)
    assert info["converged"]
    values = singular_values(weight)[:k]
    assert ((info["singular_values"] - values).abs() <= 2e-3 * values.clamp(min=1e-6)).all()
    assert normalized_cut(weight, found) >= (1.0 - values).sum().item() - 1e-3 - (~used).sum().item()


def test_everything_on_the_reference(run_python: Any) -> None:
    code = (
        "import torch, modfast; torch.manual_seed(0);"
        "w = torch.block_diag(*[torch.rand(60, 50) + 0.1] * 3) + 0.01;"
        "print(modfast.backend()['backend'], modfast.spectral_cocluster(w, 3) == "
        "modfast.Partition.blocks((180, 150), 3))"
    )
    done = run_python(code, MODFAST_BACKEND="reference")
    assert done.stdout.split() == ["reference", "True"], done.stderr


def test_public_names() -> None:
    for name in ("spectral_cocluster", "spectral_cluster", "normalized_cut"):
        assert name in modfast.__all__
        assert hasattr(reference, name)
