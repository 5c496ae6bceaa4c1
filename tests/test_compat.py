"""The published scripts' interface against a plain restatement of their definition."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from planted import planted
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import modfast
from modfast import Partition
from modfast.compat import clusterability, spectral_clustering

Indices = dict[int, list[int]]


def published(matrix: Tensor, rows: Indices | None, cols: Indices | None, num_clusters: int) -> Tensor:
    """The definition as published: a mask set by advanced indexing, squares inside over all squares."""
    if rows is None or cols is None:
        height, width = (size // num_clusters for size in matrix.shape[:2])
        rows = {c: list(range(c * height, (c + 1) * height)) for c in range(num_clusters)}
        cols = {c: list(range(c * width, (c + 1) * width)) for c in range(num_clusters)}
    inside = torch.zeros(matrix.shape[:2], dtype=torch.bool)
    for c in range(num_clusters):
        inside[torch.tensor(rows[c], dtype=torch.long)[:, None], torch.tensor(cols[c], dtype=torch.long)] = (
            True
        )
    squares = matrix.square()
    return squares[inside].sum() / squares.sum()


def random_clusters(size: int, num_clusters: int, generator: torch.Generator) -> Indices:
    """Uneven, unordered, some neurons in no cluster, now and then an empty cluster."""
    labels = torch.randint(-1, num_clusters, (size,), generator=generator)
    order = torch.randperm(size, generator=generator)
    return {c: [int(i) for i in order if labels[i] == c] for c in range(num_clusters)}


# float64: sums of a few thousand squares in another order. float32: the result's own rounding.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 64), (31, 5), (12, 6, 3, 3)])
@pytest.mark.parametrize("num_clusters", [1, 2, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_published_definition(
    shape: tuple[int, ...], num_clusters: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(num_clusters)
    matrix = torch.randn(shape, dtype=dtype, generator=generator)
    rows, cols = (random_clusters(size, num_clusters, generator) for size in shape[:2])
    for u, v in ((rows, cols), (None, None), (rows, None), (None, cols)):
        value = clusterability(matrix, u, v, num_clusters)
        expected = published(matrix.to(torch.float64), u, v, num_clusters)
        assert value.shape == ()
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("given", [True, False])
def test_gradient_agrees_with_the_published_definition(given: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(10, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    rows, cols = (random_clusters(size, 3, generator) if given else None for size in matrix.shape)
    (gradient,) = torch.autograd.grad(clusterability(matrix, rows, cols, 3), matrix)
    (expected,) = torch.autograd.grad(published(matrix, rows, cols, 3), matrix)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda w: clusterability(w, rows, cols, 3), matrix)


def test_training_as_the_scripts_do_raises_clusterability() -> None:
    layer = torch.nn.Linear(12, 12, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    before = clusterability(layer.weight, None, None, 4).item()
    for _ in range(50):
        optimizer.zero_grad()
        (-clusterability(layer.weight, None, None, 4)).backward()
        optimizer.step()
    assert clusterability(layer.weight, None, None, 4).item() > max(before, 0.9)


def test_left_over_rows_and_columns_are_in_no_cluster() -> None:
    # 7 rows and 5 columns in 2 clusters: 2 blocks of 3 x 2 equal weights of 35.
    assert clusterability(torch.ones(7, 5), None, None, 2).item() == pytest.approx(12 / 35)
    # Partition.blocks shares the left-over out: 4 x 3 and 3 x 2.
    assert modfast.clusterability(torch.ones(7, 5), Partition.blocks((7, 5), 2)).item() == pytest.approx(
        18 / 35
    )


def test_more_clusters_than_neurons_leave_all_in_none() -> None:
    assert clusterability(torch.ones(3, 8), None, None, 4).item() == 0.0


def test_by_position_and_by_keyword() -> None:
    matrix, clusters = torch.eye(2), {0: [0], 1: [1]}
    by_keyword = clusterability(
        matrix=matrix, cluster_U_indices=clusters, cluster_V_indices=clusters, num_clusters=2
    )
    assert clusterability(matrix, clusters, clusters, 2) == by_keyword == 1.0


@pytest.mark.parametrize(
    "rows",
    [
        {0: [0, 2], 1: [1]},
        {1: (1,), 0: (2, 0)},
        {np.int32(0): np.array([0, 2], dtype=np.uint8), np.int64(1): np.array([1])},
        {0: torch.tensor([0, 2]), 1: torch.tensor([1], dtype=torch.int16)},
        {0: range(0, 3, 2), 1: [np.int64(1)]},
        {0: [0, 2, 2, 0], 1: [torch.tensor(1)]},
    ],
    ids=["lists", "tuples", "numpy", "tensors", "ranges", "twice in one cluster"],
)
def test_kinds_of_indices(rows: Any) -> None:
    matrix = torch.arange(1.0, 7.0).reshape(3, 2)
    # Inside: 1 and 5 of column 0, 4 of column 1.
    assert clusterability(matrix, rows, {0: [0], 1: [1]}, 2).item() == pytest.approx((1 + 25 + 16) / 91)


def test_empty_clusters_and_neurons_in_none() -> None:
    clusters: Any = {0: [], 1: np.array([]), 2: [0]}
    assert clusterability(torch.ones(2, 2), clusters, clusters, 3).item() == 0.25


def test_does_not_change_the_callers_clusters() -> None:
    rows: Indices = {1: [2, 0], 0: [1]}
    clusterability(torch.ones(3, 3), rows, rows, 2)
    assert list(rows.items()) == [(1, [2, 0]), (0, [1])]


EYE = torch.eye(3)
WHOLE: Indices = {0: [0, 1], 1: [2]}


@pytest.mark.parametrize(
    ("rows", "cols", "message"),
    [
        ({0: [0, 3], 1: [1]}, WHOLE, r"cluster_U_indices\[0\] .*\[0, 2\].*got 3"),
        (WHOLE, {0: [0], 1: [-1]}, r"cluster_V_indices\[1\] .*negative.*got -1"),
        ({0: [0, 1], 1: [1]}, WHOLE, "cluster_U_indices .*one cluster.*got 1 in clusters 0 and 1"),
        (WHOLE, {0: [0.5], 1: []}, r"cluster_V_indices\[0\] must be a 1-D sequence of integers"),
        (
            WHOLE,
            {0: [True, False, False], 1: []},
            r"cluster_V_indices\[0\] must be a 1-D sequence of integers",
        ),
        ({0: [[0], [1]], 1: []}, WHOLE, r"cluster_U_indices\[0\] must be a 1-D sequence of integers"),
        ({0: 0, 1: []}, WHOLE, r"cluster_U_indices\[0\] must be a 1-D sequence of integers"),
        ({0: [0, [1]], 1: []}, WHOLE, r"cluster_U_indices\[0\] must be a 1-D sequence of integers"),
        ({0: ["a"], 1: []}, WHOLE, r"cluster_U_indices\[0\] must be a 1-D sequence of integers"),
        ({0: None, 1: []}, WHOLE, r"cluster_U_indices\[0\] must be a 1-D sequence of integers"),
        ({0: [0]}, WHOLE, r"cluster_U_indices must have the keys 0 to 1.*got \[0\]"),
        (WHOLE, {0: [0], 1: [1], 2: [2]}, r"cluster_V_indices must have the keys 0 to 1.*got \[0, 1, 2\]"),
        (WHOLE, {1: [0], 2: [1]}, r"cluster_V_indices must have the keys 0 to 1.*got \[1, 2\]"),
    ],
)
def test_bad_clusters_are_named(rows: Any, cols: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clusterability(EYE, rows, cols, 2)


@pytest.mark.parametrize("num_clusters", [0, -1, 2.0, True, None])
def test_bad_num_clusters_is_named(num_clusters: Any) -> None:
    with pytest.raises(ValueError, match="num_clusters must be a positive integer"):
        clusterability(EYE, None, None, num_clusters)


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        (np.eye(3), TypeError),
        (torch.eye(3, dtype=torch.int64), TypeError),
        (torch.ones(3), ValueError),
        (torch.eye(3).to_sparse(), ValueError),
    ],
)
def test_bad_matrix_is_named(matrix: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="matrix must"):
        clusterability(matrix, None, None, 1)


def test_clusters_that_are_no_mapping() -> None:
    rows: Any = [[0, 1], [2]]
    with pytest.raises(TypeError, match=r"cluster_U_indices must map .* got list"):
        clusterability(EYE, rows, WHOLE, 2)


def test_zero_nan_and_half_precision() -> None:
    zero = torch.zeros(4, 4, requires_grad=True)
    value = clusterability(zero, None, None, 2)
    value.backward()
    assert value.item() == 1.0
    assert zero.grad is not None
    assert not zero.grad.any()
    for bad in (torch.nan, torch.inf):
        assert clusterability(torch.full((4, 4), bad), None, None, 2).isnan()
    half = clusterability(torch.full((4, 4), 300.0, dtype=torch.float16), None, None, 2)
    assert half.dtype == torch.float32
    assert half.item() == 0.5


def test_compiled_with_a_graph_break() -> None:
    matrix = torch.randn(6, 6, requires_grad=True)
    compiled = torch.compile(clusterability, backend="eager")
    assert compiled(matrix, WHOLE, WHOLE, 2).item() == clusterability(matrix, WHOLE, WHOLE, 2).item()


# --- spectral_clustering


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_come_back(seed: int) -> None:
    layer, truth = planted([16] * 4, [16] * 4, seed)
    rows, cols = spectral_clustering(layer.requires_grad_(), 4)
    found = clusterability(layer, rows, cols, 4).item()
    assert 0.83 < modfast.clusterability(layer, truth).item() < 0.87
    assert found >= 0.99 * modfast.clusterability(layer, truth).item()
    for clusters, labels in ((rows, truth.row_labels), (cols, truth.col_labels)):
        found_labels = {neuron: c for c, neurons in clusters.items() for neuron in neurons}
        assert adjusted_rand_score(labels, [found_labels[i] for i in range(64)]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_give_the_same_clusters(dtype: torch.dtype) -> None:
    layer, _ = planted([10, 20, 6], [8, 8, 9], 0)
    assert spectral_clustering(layer.to(dtype), 3) == spectral_clustering(layer, 3)


def test_result_is_plain_and_complete() -> None:
    layer = torch.block_diag(torch.ones(3, 2), torch.ones(2, 2), torch.zeros(1, 1))
    rows, cols = spectral_clustering(layer, 4)
    # The last row and column have no weight; only two places differ, so two clusters are empty.
    assert rows == {0: [0, 1, 2], 1: [3, 4], 2: [], 3: []}
    assert cols == {0: [0, 1], 1: [2, 3], 2: [], 3: []}
    assert clusterability(layer, rows, cols, 4).item() == 1.0
    for clusters in (rows, cols):
        assert type(clusters) is dict
        assert list(clusters) == [0, 1, 2, 3]
        assert {type(i) for neurons in clusters.values() for i in neurons} == {int}
        assert {type(c) for c in clusters} == {int}
        assert {int(c): i for c, i in json.loads(json.dumps(clusters)).items()} == clusters
        file = BytesIO()
        torch.save(clusters, file)
        file.seek(0)
        assert torch.load(file, weights_only=True) == clusters


def test_leaves_the_layer_and_the_random_state_alone() -> None:
    layer, _ = planted([4, 4], [4, 4], 0)
    before, state = layer.clone(), torch.get_rng_state()
    first = spectral_clustering(layer, 2)
    assert torch.equal(layer, before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(17)
    assert spectral_clustering(layer, 2) == first


@pytest.mark.parametrize(
    ("layer", "k", "error", "message"),
    [
        (np.eye(3), 2, TypeError, "layer must be a torch.Tensor, got ndarray"),
        (torch.ones(3), 2, ValueError, r"layer must have shape .*got \(3,\)"),
        (torch.full((3, 3), torch.nan), 2, ValueError, "layer must be finite, got nan"),
        (torch.full((3, 3), -torch.inf), 2, ValueError, "layer must be finite, got -inf"),
        (torch.eye(3), 0, ValueError, "k must be a positive integer, got 0"),
        (torch.ones(5, 3), 4, ValueError, r"k must be at most 3 for shape \(5, 3\), got 4"),
    ],
)
def test_bad_arguments_are_named(layer: Any, k: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spectral_clustering(layer, k)


def test_tensors_without_plain_numbers_are_named():
    nested = torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(2, 2)])
    for call in (
        lambda: clusterability(nested, None, None, 2),
        lambda: spectral_clustering(nested, 2),
        lambda: modfast.enmeshment(nested, modfast.Partition.blocks((2, 2), 2)),
    ):
        with pytest.raises(TypeError, match="must be one tensor of plain numbers, got a nested tensor"):
            call()
    meta = torch.zeros(1, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"cluster_U_indices\[0\] must be a 1-D sequence of integers"):
        clusterability(torch.ones(2, 2), {0: meta, 1: [1]}, {0: [0], 1: [1]}, 2)
