"""Spectral co-clustering, specified and compiled: planted clusters, degenerate inputs, arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import modfast
from modfast import Partition, reference
from modfast.reference import clusterability
from modfast.reference.spectral import _embedding, _kmeans, _similarity, first_centres, lloyd

Cocluster: TypeAlias = Callable[..., Partition]


@pytest.fixture(
    scope="module",
    params=[reference.spectral_cocluster, modfast.spectral_cocluster],
    ids=["reference", "modfast"],
)
def spectral_cocluster(request: pytest.FixtureRequest) -> Cocluster:
    found: Cocluster = request.param
    return found


def assert_recovers(cocluster: Cocluster, weight: Tensor, truth: Partition, **options: Any) -> Partition:
    """The planted labels, and one numbering for both sides, which clusterability sees."""
    found = cocluster(weight, truth.num_clusters, **options)
    assert adjusted_rand_score(truth.row_labels, found.row_labels) == 1.0
    assert adjusted_rand_score(truth.col_labels, found.col_labels) == 1.0
    assert clusterability(weight, found) >= 0.99 * clusterability(weight, truth)
    return found


# --- planted clusters


@pytest.mark.parametrize("affinity", ["abs", "square"])
@pytest.mark.parametrize("seed", range(3))
def test_planted(spectral_cocluster: Cocluster, seed: int, affinity: str) -> None:
    weight, truth = planted([16] * 4, [16] * 4, seed)
    assert clusterability(weight, truth).item() == pytest.approx(0.85, abs=0.02)
    assert_recovers(spectral_cocluster, weight, truth, affinity=affinity)


@pytest.mark.parametrize(
    ("row_sizes", "col_sizes"),
    [
        ([60, 30, 12], [50, 12, 25]),
        ([100, 10], [100, 10]),
        ([90, 30], [30, 90]),
        ([40, 40, 8, 8, 8], [12] * 5),
        ([16] * 12, [12] * 12),
        ([160, 80, 40, 20, 10], [160, 80, 40, 20, 10]),
    ],
    ids=["unequal", "one large, one small", "high and wide", "few large, many small", "many", "doubling"],
)
@pytest.mark.parametrize("seed", range(2))
def test_planted_unbalanced(
    spectral_cocluster: Cocluster, row_sizes: list[int], col_sizes: list[int], seed: int
) -> None:
    assert_recovers(spectral_cocluster, *planted(row_sizes, col_sizes, seed, spread=0.1))


def test_more_vectors_than_log2_are_needed(spectral_cocluster: Cocluster) -> None:
    weight, truth = planted([48] * 8, [24] * 8, 0)
    assert_recovers(spectral_cocluster, weight, truth)
    # scikit-learn's choice, 1 + ceil(log2 8).
    points, weights = _embedding(_similarity(weight, "abs"), 4, rounding=1e-7)
    rows, cols = _kmeans(points, weights, 8, 10, torch.Generator().manual_seed(0)).split(list(weight.shape))
    assert clusterability(weight, Partition(rows, cols, 8)) < 0.95 * clusterability(weight, truth)


def test_zero_rows_and_columns_are_in_no_cluster(spectral_cocluster: Cocluster) -> None:
    weight, truth = planted([16] * 4, [16] * 4, 0)
    rows, cols = truth.row_labels.clone(), truth.col_labels.clone()
    rows[[0, 20, 63]] = -1
    cols[[5, 6]] = -1
    weight[rows < 0] = 0.0
    weight[:, cols < 0] = 0.0
    found = assert_recovers(spectral_cocluster, weight, Partition(rows, cols, 4))
    assert torch.equal(found.row_labels < 0, rows < 0)
    assert torch.equal(found.col_labels < 0, cols < 0)


def test_convolution_kernels_are_summed(spectral_cocluster: Cocluster) -> None:
    weight, truth = planted([8] * 3, [10] * 3, 1, spread=0.1)
    kernels = torch.zeros(24, 30, 3, 3)
    # Each weight at one place of its kernel, another one for each: only their sum shows the clusters.
    place = torch.randint(9, (24, 30, 1), generator=torch.Generator().manual_seed(0))
    kernels.view(24, 30, 9).scatter_(2, place, weight[:, :, None])
    assert spectral_cocluster(kernels, 3) == assert_recovers(spectral_cocluster, weight, truth)


def test_similarity_given(spectral_cocluster: Cocluster) -> None:
    weight, _ = planted([8] * 3, [10] * 3, 1, spread=0.1)
    assert spectral_cocluster(weight.abs(), 3, affinity="given") == spectral_cocluster(weight, 3)
    counts = (weight.abs() * 10).to(torch.int32)
    assert spectral_cocluster(counts, 3, affinity="given") == spectral_cocluster(counts.double(), 3)


# --- what must not matter


def test_same_seed_same_labels(spectral_cocluster: Cocluster) -> None:
    # Without structure: every start ends elsewhere.
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first = spectral_cocluster(weight, 5, n_init=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert spectral_cocluster(weight, 5, n_init=1, seed=3) == first
    others = [spectral_cocluster(weight, 5, n_init=1, seed=seed) for seed in range(10, 16)]
    assert any(other != first for other in others)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_scale_does_not_matter(spectral_cocluster: Cocluster, scale: float) -> None:
    weight, truth = planted([8] * 3, [10] * 3, 1, spread=0.1)
    for affinity in ("abs", "square"):
        assert_recovers(spectral_cocluster, weight, truth, affinity=affinity)
        scaled = spectral_cocluster(weight.double() * scale, 3, affinity=affinity)
        assert scaled == spectral_cocluster(weight, 3, affinity=affinity)


def test_order_of_rows_and_columns_does_not_matter(spectral_cocluster: Cocluster) -> None:
    weight, _ = planted([8] * 3, [10] * 3, 1, spread=0.1)
    found = spectral_cocluster(weight, 3)
    flipped = spectral_cocluster(weight.flip(0, 1), 3)
    assert adjusted_rand_score(found.row_labels.flip(0), flipped.row_labels) == 1.0
    transposed = spectral_cocluster(weight.T, 3)
    assert adjusted_rand_score(found.row_labels, transposed.col_labels) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_gradient_do_not_matter(spectral_cocluster: Cocluster, dtype: torch.dtype) -> None:
    weight, truth = planted([8] * 3, [10] * 3, 1, spread=0.1)
    assert_recovers(spectral_cocluster, weight.to(dtype).requires_grad_(), truth)


def test_clusters_are_numbered_as_met(spectral_cocluster: Cocluster) -> None:
    weight = torch.block_diag(*[torch.ones(3, 2)] * 4)
    expected = Partition.blocks((12, 8), 4)
    assert spectral_cocluster(weight, 4, seed=5) == expected
    swapped = spectral_cocluster(weight.flip(0), 4)
    assert torch.equal(swapped.row_labels, expected.row_labels)
    assert torch.equal(swapped.col_labels, expected.col_labels.flip(0))


# --- degenerate inputs


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(5, 7),
        -torch.ones(5, 7),
        torch.full((6, 6), 1e308, dtype=torch.float64),
        torch.outer(torch.linspace(0.1, 2, 30), torch.linspace(-1, 3, 20)),
        torch.outer(torch.linspace(0.1, 2, 30), torch.linspace(-1, 3, 20)).half(),
        torch.outer(torch.linspace(0.1, 2, 30), torch.linspace(-1, 3, 20)).bfloat16(),
    ],
    ids=["constant", "negative", "huge", "rank one", "rank one, float16", "rank one, bfloat16"],
)
@pytest.mark.parametrize("num_clusters", [1, 2, 4])
def test_without_any_difference_there_is_one_cluster(
    spectral_cocluster: Cocluster, weight: Tensor, num_clusters: int
) -> None:
    found = spectral_cocluster(weight, num_clusters)
    assert not found.row_labels.any()
    assert not found.col_labels.any()
    assert found.num_clusters == num_clusters


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (1, 4, 3, 3)])
def test_one_row_or_one_column(spectral_cocluster: Cocluster, shape: tuple[int, ...]) -> None:
    found = spectral_cocluster(torch.full(shape, 0.5), 1)
    assert not found.row_labels.any()
    assert not found.col_labels.any()


def test_all_zero(spectral_cocluster: Cocluster) -> None:
    assert spectral_cocluster(torch.zeros(3, 4), 2) == Partition([-1] * 3, [-1] * 4, 2)


def test_one_weight(spectral_cocluster: Cocluster) -> None:
    weight = torch.zeros(3, 4)
    weight[1, 2] = -5.0
    assert spectral_cocluster(weight, 2) == Partition([-1, 0, -1], [-1, -1, 0, -1], 2)


def test_fewer_places_than_clusters(spectral_cocluster: Cocluster) -> None:
    # Two kinds of rows and columns, tied: there is nothing by which to make four clusters.
    weight = torch.block_diag(torch.ones(4, 3), torch.ones(4, 3)) + 0.1
    assert spectral_cocluster(weight, 4).sizes().tolist() == [[4, 3], [4, 3], [0, 0], [0, 0]]


def test_separate_parts_each_a_cluster(spectral_cocluster: Cocluster) -> None:
    # Parts so different in scale that only the normalisation shows them as equals.
    parts = [torch.rand(4, 3, generator=torch.Generator().manual_seed(i)).double() + 0.1 for i in range(3)]
    weight = torch.block_diag(parts[0], 1e-5 * parts[1], 1e-12 * parts[2])
    assert spectral_cocluster(weight, 3) == Partition.blocks((12, 9), 3)


@pytest.mark.parametrize("num_clusters", [2, 3])
def test_more_separate_parts_than_clusters_are_not_divided(
    spectral_cocluster: Cocluster, num_clusters: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(4, 3, generator=generator).double() + 0.1 for _ in range(5)]
    weight = torch.block_diag(*parts)
    found = spectral_cocluster(weight, num_clusters)
    assert clusterability(weight, found).item() == 1.0
    assert set(found.row_labels.tolist()) == set(range(num_clusters))


def test_more_clusters_than_rows_with_weight(spectral_cocluster: Cocluster) -> None:
    weight = torch.zeros(6, 6)
    weight[:2] = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    found = spectral_cocluster(weight, 5)
    assert found.row_labels[2:].tolist() == [-1] * 4
    # Eight nodes, all different: none of the clusters is empty.
    assert found.sizes().sum(1).gt(0).all()


@settings(max_examples=60)
@given(
    rows=st.integers(1, 12),
    cols=st.integers(1, 12),
    data=st.data(),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_any_weight(
    spectral_cocluster: Cocluster, rows: int, cols: int, data: st.DataObject, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight = torch.where(torch.rand(rows, cols, generator=generator) < share, weight, 0.0)
    k = data.draw(st.integers(1, min(rows, cols)))
    found = spectral_cocluster(weight, k, n_init=2)
    assert torch.equal(found.row_labels >= 0, weight.any(1))
    assert torch.equal(found.col_labels >= 0, weight.any(0))
    # Numbers are used from 0 up, without a gap; the first row that has weight is in cluster 0.
    used = found.sizes().sum(1) > 0
    assert torch.equal(used, used.sort(descending=True).values)
    if weight.any():
        assert found.row_labels[found.row_labels >= 0][0] == 0


def test_an_emptied_cluster_gets_the_farthest_point() -> None:
    # Both far centres lose every point to the near one.
    points = torch.tensor([[0.0], [0.1], [1.0]], dtype=torch.float64)
    labels, cost, _ = lloyd(
        points,
        torch.ones(3, dtype=torch.float64),
        torch.tensor([[0.4], [50.0], [60.0]], dtype=torch.float64),
    )
    assert sorted(torch.bincount(labels, minlength=3).tolist()) == [1, 1, 1]
    assert cost == 0.0


def test_equal_points_are_never_two_centres() -> None:
    points = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0], [1e-12, 1.0]], dtype=torch.float64)
    for seed in range(10):
        centres = first_centres(
            points, torch.ones(7, dtype=torch.float64), 4, torch.Generator().manual_seed(seed)
        )
        assert len(centres) == 2


# --- arguments


@pytest.mark.parametrize("num_clusters", [0, -1, 4, 2.0, True, None, "2"])
def test_num_clusters_out_of_range(spectral_cocluster: Cocluster, num_clusters: Any) -> None:
    with pytest.raises(ValueError, match=r"num_clusters must be an integer in \[1, 3\] for shape \(3, 5\)"):
        spectral_cocluster(torch.ones(3, 5), num_clusters)


def test_numpy_integers_are_integers(spectral_cocluster: Cocluster) -> None:
    weight = torch.eye(4)
    numbers: dict[str, Any] = {"num_clusters": np.int64(4), "n_init": np.int32(10), "seed": np.int64(0)}
    assert spectral_cocluster(weight, **numbers) == spectral_cocluster(weight, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_init": 0}, "n_init must be an integer in .* got 0"),
        ({"n_init": 1.5}, "n_init must be an integer in .* got 1.5"),
        ({"seed": -1}, "seed must be an integer in .* got -1"),
        ({"seed": 2**63}, "seed must be an integer in .* got 9223372036854775808"),
        ({"affinity": "cosine"}, "affinity must be one of .*'square'.* got 'cosine'"),
    ],
)
def test_options_out_of_range(spectral_cocluster: Cocluster, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_cocluster(torch.ones(3, 5), 2, **options)


@pytest.mark.parametrize("affinity", ["abs", "square", "given"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity(spectral_cocluster: Cocluster, affinity: str, bad: float) -> None:
    weight = torch.ones(3, 5)
    weight[2, 1] = bad
    with pytest.raises(ValueError, match=rf"weight must be finite.*, got {bad} at \(2, 1\)"):
        spectral_cocluster(weight, 2, affinity=affinity)


def test_negative_given_similarity(spectral_cocluster: Cocluster) -> None:
    weight = torch.ones(2, 2, 3)
    weight[1, 0, 2] = -0.5
    with pytest.raises(ValueError, match=r"weight must be finite and.*not negative, got -0.5 at \(1, 0, 2\)"):
        spectral_cocluster(weight, 2, affinity="given")


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        ([[1.0, 2.0]], TypeError),
        (torch.eye(3, dtype=torch.complex64), TypeError),
        (torch.ones(3), ValueError),
        (torch.ones(0, 3), ValueError),
        (torch.ones(3, 3, 0), ValueError),
    ],
)
def test_bad_weight_is_named(spectral_cocluster: Cocluster, weight: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="weight must"):
        spectral_cocluster(weight, 1)
