"""Each operator of the spectral family held to its specification in float64, and its checks of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scipy.sparse
import torch
from gpu import needs_cpu_kernels
from torch import Tensor

from modfast import backend
from modfast.reference import spectral_operators as plain

ops: Any = torch.ops.modfast

SHAPES = [(1, 1), (1, 9), (9, 1), (3, 5), (8, 16), (65, 129), (200, 33), (67, 1030)]
COMPUTE = [torch.float32, torch.float64]


def assert_within_rounding(found: Tensor, expected: Tensor, sizes: Tensor, terms: int) -> None:
    """Each sum of so many terms is off by a rounding for each of them, at most, of the sum of their sizes."""
    allowed = torch.finfo(found.dtype).eps * (terms + 8) * sizes
    assert ((found.double() - expected).abs() <= allowed).all()


def absolute(values: Any) -> Any:
    return [each.abs() if isinstance(each, Tensor) else each for each in values]


def sparse_parts(weight: Tensor, index: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor]:
    matrix = scipy.sparse.csr_matrix(weight.double().numpy())
    values = torch.from_numpy(matrix.data).to(weight.dtype)
    return torch.from_numpy(matrix.indptr).to(index), torch.from_numpy(matrix.indices).to(index), values


def drawn(rows: int, cols: int, dtype: torch.dtype, share: float = 1.0) -> Tensor:
    weight = torch.randn(rows, cols) / cols**0.5
    return torch.where(torch.rand(rows, cols) < share, weight, 0.0).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affinity", [0, 1, 2])
def test_similarity_sums(shape: tuple[int, int], dtype: torch.dtype, affinity: int) -> None:
    weight = drawn(*shape, dtype)
    found = ops.similarity_sums(weight, affinity, 0.5)
    expected = plain.similarity_sums(weight, affinity, 0.5)
    sizes = plain.similarity_sums(weight.abs(), affinity, 0.5)
    for ours, theirs, size in zip(found, expected, sizes, strict=True):
        assert_within_rounding(ours, theirs, size, max(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("width", [8, 16, 24, 56])
def test_similarity_product(
    shape: tuple[int, int], dtype: torch.dtype, compute: torch.dtype, width: int
) -> None:
    rows, cols = shape
    weight = drawn(rows, cols, dtype)
    right, left = torch.randn(cols, width, dtype=compute), torch.randn(rows, width, dtype=compute)
    row_weights = torch.rand(rows, dtype=compute)
    for affinity, given in [
        (0, (right, None, row_weights)),
        (1, (right, None, row_weights)),
        (2, (right, left, None)),
        (0, (right, None, None)),
        (0, (None, left, None)),
    ]:
        wide = [None if each is None else each.double() for each in given]
        found = ops.similarity_product(weight, affinity, 2.0, *given)
        expected = plain.similarity_product(weight, affinity, 2.0, *wide)
        sizes = plain.similarity_product(weight.abs(), affinity, 2.0, *absolute(wide))
        for ours, theirs, size in zip(found, expected, sizes, strict=True):
            assert ours.dtype == compute
            assert_within_rounding(ours, theirs, size, sum(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", COMPUTE)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("compute", COMPUTE)
def test_sparse_products(
    shape: tuple[int, int], dtype: torch.dtype, index: torch.dtype, compute: torch.dtype
) -> None:
    rows, cols = shape
    weight = drawn(rows, cols, dtype, share=0.2)
    parts = sparse_parts(weight, index)
    right, left = torch.randn(cols, 16, dtype=compute), torch.randn(rows, 16, dtype=compute)
    row_weights = torch.rand(rows, dtype=compute)
    for affinity, given in [
        (0, (right, None, row_weights)),
        (1, (right, left, None)),
        (2, (right, None, None)),
        (0, (None, left, None)),
    ]:
        wide = [None if each is None else each.double() for each in given]
        found = ops.sparse_similarity_product(*parts, cols, affinity, 2.0, *given)
        expected = plain.similarity_product(weight, affinity, 2.0, *wide)
        sizes = plain.similarity_product(weight.abs(), affinity, 2.0, *absolute(wide))
        for ours, theirs, size in zip(found, expected, sizes, strict=True):
            assert_within_rounding(ours, theirs, size, sum(shape))
    probes = (torch.randn(cols, dtype=torch.float64), torch.randn(rows, dtype=torch.float64))
    for right_left in ((None, None), probes):
        found = ops.sparse_similarity_sums(*parts, cols, 0, 2.0, *right_left, True)
        expected = plain.sparse_similarity_sums(*parts, cols, 0, 2.0, *right_left, True)
        sizes = plain.sparse_similarity_sums(*parts, cols, 0, 2.0, *absolute(right_left), True)
        for ours, theirs, size in zip(found, expected, sizes, strict=True):
            assert_within_rounding(ours, theirs, size, sum(shape))
    only_rows, nothing = ops.sparse_similarity_sums(*parts, cols, 0, 2.0, None, None, False)
    torch.testing.assert_close(only_rows, weight.double().abs().sum(1) * 2)
    assert nothing.numel() == 0


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_products_with_nothing(shape: tuple[int, int]) -> None:
    rows, cols = shape
    nothing = torch.zeros(rows + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    right, left = torch.ones(cols, 8), torch.ones(rows, 8)
    for given in (
        (right, None, None),
        (None, left, None),
        (right, left, None),
        (right, None, torch.ones(rows)),
    ):
        expected = plain.similarity_product(torch.ones(shape), 0, 1.0, *given)
        for found in (
            ops.similarity_product(torch.ones(shape), 0, 1.0, *given),
            ops.sparse_similarity_product(*nothing, cols, 0, 1.0, *given),
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", COMPUTE)
@pytest.mark.parametrize("shape", [(1, 1), (30, 70), (70, 30), (0, 5), (5, 0), (0, 0)])
def test_sparse_transpose(shape: tuple[int, int], dtype: torch.dtype, index: torch.dtype) -> None:
    """With rows whose columns are in any order, and repeat: the entries of a column stay in order."""
    rows, cols = shape
    counts = torch.randint(6, (rows,)) if cols else torch.zeros(rows, dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(index)
    indices = torch.randint(max(cols, 1), (int(counts.sum()),)).to(index)
    values = torch.randn(len(indices)).to(dtype)
    found = ops.sparse_transpose(starts, indices, values, cols)
    for ours, theirs in zip(found, plain.sparse_transpose(starts, indices, values, cols), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    dense, turned = plain._dense(starts, indices, values, cols), plain._dense(*found, rows)
    torch.testing.assert_close(turned, dense.T)


@pytest.mark.parametrize("compute", COMPUTE)
def test_graph_product(compute: torch.dtype) -> None:
    weight = drawn(70, 70, torch.float32, share=0.2).abs()
    right, row_weights = torch.randn(70, 24, dtype=compute), torch.rand(70, dtype=compute)
    out = torch.full_like(right, torch.nan)
    ops.graph_product_(out, *sparse_parts(weight), 2.0, right, row_weights)
    expected = row_weights.double()[:, None] * (2.0 * weight.double() @ right.double())
    sizes = row_weights.double()[:, None] * (2.0 * weight.double() @ right.double().abs())
    assert_within_rounding(out, expected, sizes, 70)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("length", [1, 63, 64, 2048, 5001])
@pytest.mark.parametrize(("widths", "width"), [([8], 8), ([8, 8, 8], 8), ([16, 24], 16), ([40, 8], 40)])
def test_basis(compute: torch.dtype, length: int, widths: list[int], width: int) -> None:
    basis = [torch.randn(length, each, dtype=compute) for each in widths]
    block, weights = torch.randn(length, width, dtype=compute), torch.rand(length, dtype=compute)
    joint, exact = torch.cat(basis, 1).double(), block.double()
    # Accumulated in float64, of sums of 64 terms in the blocks' dtype.
    for given, factor in ((None, torch.ones(length, 1)), (weights, weights[:, None])):
        found = ops.basis_inner(basis, block, given).to(compute)
        sizes = joint.abs().T @ (factor.double() * exact.abs())
        assert_within_rounding(found, joint.T @ (factor.double() * exact), sizes, 64)
    factors = torch.randn(sum(widths), widths[0], dtype=torch.float64)
    rest = [each.clone() for each in basis[1:]]
    ops.basis_rotate_(basis, factors)
    assert_within_rounding(basis[0], joint @ factors, joint.abs() @ factors.abs(), sum(widths))
    for after, before in zip(basis[1:], rest, strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_edge_gradient(shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, cols = shape
    weight = drawn(rows, cols, dtype, share=0.7)
    terms = [torch.randn(size, dtype=torch.float64) for size in shape]
    vectors = [torch.randn(size, 3, dtype=torch.float64) for size in shape]
    found = ops.edge_gradient(weight, *terms, *vectors)
    expected = plain.edge_gradient(weight, *terms, *vectors)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-13)
    assert torch.equal(found == 0, weight == 0)


# --- k-means and moves


def clouds(count: int, dims: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(count, (400,), generator=generator)
    centres = torch.randn(count, dims, generator=generator) * 10
    return centres[labels] + 0.1 * torch.randn(400, dims, generator=generator), labels


def same_clusters(one: Tensor, other: Tensor) -> bool:
    pairs = torch.stack([one, other]).unique(dim=1)
    return pairs.shape[1] == len(one.unique()) == len(other.unique())


@pytest.mark.parametrize("dims", [1, 3, 8, 20])
@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_k_means_finds_clouds(count: int, dims: int) -> None:
    points, truth = clouds(count, max(dims, 1) if dims > 1 else 1)
    if dims == 1:  # on a line they have to be put apart
        points = points * 0.01 + 10.0 * truth[:, None]
    labels, cost, iterations = ops.k_means(points, torch.ones(len(points)), count, 30, 0, 300, 1e-6)
    assert same_clusters(labels, truth)
    means = torch.stack([points[labels == c].double().mean(0) for c in range(count)])
    assert cost.item() == pytest.approx(((points - means[labels]) ** 2).sum().item(), rel=1e-3)
    assert 1 <= iterations.item() <= 300


def test_k_means_is_as_tight_as_the_reference() -> None:
    points = torch.randn(500, 4)
    _, cost, _ = ops.k_means(points, torch.ones(len(points)), 6, 20, 1, 300, 1e-6)
    _, expected, _ = plain.k_means(points, torch.ones(len(points)), 6, 20, 1, 300, 1e-6)
    assert cost.item() == pytest.approx(expected.item(), rel=0.01)


def test_k_means_weighs_points() -> None:
    """Three places on a line: the two that weigh least together are joined, though they lie farther apart."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    for weights, expected in (([1.0, 1.0, 1.0], [0, 0, 1]), ([9.0, 9.0, 0.5], [1, 0, 0])):
        labels, cost, _ = ops.k_means(points, torch.tensor(weights), 2, 20, 0, 300, 1e-6)
        _, least, _ = plain.k_means(points, torch.tensor(weights), 2, 20, 0, 300, 1e-6)
        assert same_clusters(labels, torch.tensor(expected))
        assert cost.item() == pytest.approx(least.item(), rel=1e-5)


def test_k_means_of_equal_points() -> None:
    points = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 3 + [[1e-8, 1.0]])
    labels, cost, _ = ops.k_means(points, torch.ones(len(points)), 4, 5, 0, 300, 1e-6)
    assert len(labels.unique()) == 2
    assert cost.item() < 1e-12
    labels, _, _ = ops.k_means(torch.ones(7, 3), torch.ones(7), 3, 2, 0, 300, 1e-6)
    assert labels.tolist() == [0] * 7
    labels, _, _ = ops.k_means(torch.ones(7, 0), torch.ones(7), 3, 2, 0, 300, 1e-6)
    assert labels.tolist() == [0] * 7


def test_k_means_of_fewer_points_than_clusters() -> None:
    labels, cost, _ = ops.k_means(torch.arange(3.0)[:, None], torch.ones(3), 9, 3, 0, 300, 1e-6)
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert cost.item() == 0.0


def test_k_means_same_labels_for_any_number_of_threads(set_threads: Callable[[int], None]) -> None:
    points = torch.randn(50_000, 5)  # more than its starts are tried on
    results = []
    for threads in (1, 2, 7):
        set_threads(threads)
        results.append(ops.k_means(points, torch.ones(len(points)), 6, 4, 3, 50, 1e-6))
    for labels, cost, iterations in results[1:]:
        assert torch.equal(labels, results[0][0])
        assert torch.equal(cost, results[0][1])
        assert torch.equal(iterations, results[0][2])
    other, _, _ = ops.k_means(points, torch.ones(len(points)), 6, 4, 4, 50, 1e-6)
    assert not torch.equal(other, results[0][0])


@pytest.mark.parametrize("unclustered", [0, 12])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_moves_are_those_of_the_reference(k: int, unclustered: int) -> None:
    weight = torch.rand(60, 60, dtype=torch.float64)
    graph = torch.where(torch.rand(60, 60) < 0.2, weight, 0.0)
    graph = graph + graph.T
    labels = torch.randint(k, (60,))
    labels[:k] = torch.arange(k)
    labels[len(labels) - unclustered :] = -1  # they have edges, which count in their neighbours' degrees
    parts = sparse_parts(graph)
    inside, volume = ops.graph_cut(*parts, 1.0, labels, k)
    expected = plain.graph_cut(*parts, 1.0, labels, k)
    torch.testing.assert_close((inside, volume), expected)
    moved = ops.move_graph(*parts, 1.0, labels, k, 1e-9, 20)
    inside, volume = ops.graph_cut(*parts, 1.0, moved, k)
    assert (inside / volume).sum() >= (expected[0] / expected[1]).sum()
    # Where it ends, none of the reference's moves helps.
    assert torch.equal(plain.move_graph(*parts, 1.0, moved, k, 1e-8, 1), moved)

    clustered = labels >= 0
    ties, sizes = torch.rand(60, 8, dtype=torch.float64), torch.bincount(labels[clustered], minlength=k)
    ties[:, k:] = 0.0
    degrees = ties.sum(1) + 0.1
    none = torch.zeros(k, dtype=torch.float64)
    volume = none.index_add(0, labels[clustered], degrees[clustered]) * 2
    given = (labels, volume * 0.4, volume, sizes, ties, degrees, torch.rand(60).double() * 0.1, 1e-9, 3)
    for ours, theirs in zip(ops.move_side(*given), plain.move_side(*given), strict=True):
        torch.testing.assert_close(ours, theirs)


# --- every instruction set


@pytest.mark.parametrize("level", [name for name in backend()["cpu_available"] if name != backend()["cpu"]])
def test_other_instruction_sets(level: str, run_python: Any) -> None:
    """A fresh process runs a few of these tests with slower instructions."""
    code = (
        "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-n', '0', "
        f"{str(__file__)!r}, '-k', 'not instruction and (basis or k_means or 129 or 1030)']))"
    )
    done = run_python(code, MODFAST_CPU=level, PYTEST_ADDOPTS="")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


# --- arguments: nothing that a direct caller passes may read or write where it must not


def calls() -> dict[str, Callable[[], object]]:
    weight, right = torch.ones(4, 6), torch.ones(6, 8)
    starts, indices, values = torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2)
    square = (starts, indices, values)
    labels = torch.tensor([0, 1])
    return {
        "weight must have two dimensions": lambda: ops.similarity_sums(torch.ones(3), 0, 1.0),
        "rows must be contiguous": lambda: ops.similarity_sums(torch.ones(4, 6).T, 0, 1.0),
        "weight must be float32": lambda: ops.similarity_sums(torch.ones(4, 6, dtype=torch.int32), 0, 1.0),
        "affinity must be": lambda: ops.similarity_sums(weight, 3, 1.0),
        "scale must be finite": lambda: ops.similarity_sums(weight, 0, float("nan")),
        "right must be contiguous": lambda: ops.similarity_product(
            weight, 0, 1.0, torch.ones(5, 8), None, None
        ),
        "multiple of 8": lambda: ops.similarity_product(weight, 0, 1.0, torch.ones(6, 7), None, None),
        "right or left": lambda: ops.similarity_product(weight, 0, 1.0, None, None, None),
        "row_weights go": lambda: ops.similarity_product(
            weight, 0, 1.0, None, torch.ones(4, 8), torch.ones(4)
        ),
        "row_weights must": lambda: ops.similarity_product(weight, 0, 1.0, right, None, torch.ones(3)),
        "must be Float": lambda: ops.similarity_product(
            weight, 0, 1.0, right, torch.ones(4, 8).double(), None
        ),
        "starts must begin": lambda: ops.sparse_similarity_sums(
            torch.tensor([0, 1, 3]), indices, values, 2, 0, 1.0, None, None, True
        ),
        "starts must not fall": lambda: ops.sparse_similarity_sums(
            torch.tensor([0, 5, 2]), indices, values, 2, 0, 1.0, None, None, True
        ),
        "indices must be at least 0": lambda: ops.sparse_similarity_sums(
            starts, torch.tensor([0, 7]), values, 2, 0, 1.0, None, None, True
        ),
        "less than the number of columns": lambda: ops.sparse_similarity_product(
            starts, torch.tensor([-1, 0]), values, 2, 0, 1.0, torch.ones(2, 8), None, None
        ),
        "at least 0 and less": lambda: ops.sparse_similarity_product(
            starts, torch.tensor([2**33, 0]), values, 2, 0, 1.0, None, torch.ones(2, 8), None
        ),
        "values must be float32 or float64": lambda: ops.sparse_similarity_sums(
            starts, indices, values.half(), 2, 0, 1.0, None, None, True
        ),
        "out must not be right": lambda: ops.graph_product_(
            shared := torch.ones(2, 8), *square, 1.0, shared, torch.ones(2)
        ),
        "indices must be in": lambda: ops.graph_cut(starts, torch.tensor([0, 2]), values, 1.0, labels, 2),
        r"labels\[1\] is 5": lambda: ops.graph_cut(*square, 1.0, torch.tensor([0, 5]), 2),
        "labels must be contiguous": lambda: ops.move_graph(*square, 1.0, torch.tensor([0]), 2, 0.0, 1),
        "basis must be contiguous": lambda: ops.basis_inner([torch.ones(5, 8)], torch.ones(4, 8), None),
        "basis must hold": lambda: ops.basis_inner([], torch.ones(4, 8), None),
        "factors must be as wide": lambda: ops.basis_rotate_(
            [torch.ones(4, 8), torch.ones(4, 16)], torch.ones(24, 16).double()
        ),
        "factors must be contiguous": lambda: ops.basis_rotate_(
            [torch.ones(4, 8)], torch.ones(9, 8).double()
        ),
        "points must be Float": lambda: ops.k_means(
            torch.ones(3, 2).double(), torch.ones(3), 1, 1, 0, 1, 0.0
        ),
        "points must hold": lambda: ops.k_means(torch.ones(0, 2), torch.ones(0), 1, 1, 0, 1, 0.0),
        "must be positive": lambda: ops.k_means(torch.ones(3, 2), torch.ones(3), 0, 1, 0, 1, 0.0),
        "ties must have a column": lambda: ops.move_side(
            labels,
            torch.ones(3).double(),
            torch.ones(3).double(),
            torch.ones(3, dtype=torch.int64),
            torch.ones(2, 2).double(),
            torch.ones(2).double(),
            None,
            0.0,
            1,
        ),
        "col_vectors must": lambda: ops.edge_gradient(
            weight,
            *(torch.ones(n).double() for n in (4, 6)),
            torch.ones(4, 2).double(),
            torch.ones(6, 3).double(),
        ),
    }


def test_a_graph_without_nodes_has_a_product() -> None:
    out = torch.empty(0, 8)
    starts, indices = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    ops.graph_product_(out, starts, indices, torch.empty(0), 1.0, torch.empty(0, 8), torch.empty(0))
    assert out.shape == (0, 8)


# What the kernels for the CPU say of the values of starts, indices and labels; see gpu.py.
OF_VALUES = [
    "starts must begin",
    "starts must not fall",
    "indices must be at least 0",
    "less than the number of columns",
    "at least 0 and less",
    "indices must be in",
    r"labels\[1\] is 5",
]


@pytest.mark.parametrize(
    "message",
    [pytest.param(each, marks=needs_cpu_kernels) if each in OF_VALUES else each for each in calls()],
)
def test_bad_arguments(message: str) -> None:
    with pytest.raises((RuntimeError, IndexError), match=message):
        calls()[message]()


def test_opcheck() -> None:
    """Schemas, shapes under tracing, and what is written, as PyTorch's own checks see them."""
    weight, right, left = torch.randn(5, 7), torch.randn(7, 8), torch.randn(5, 8)
    graph = torch.rand(6, 6).round(decimals=1)
    parts, block, labels = sparse_parts(graph + graph.T), torch.randn(6, 8), torch.tensor([0, 1, 0, 1, 0, 1])
    halves = torch.ones(2, dtype=torch.float64)
    samples: dict[str, list[tuple[Any, ...]]] = {
        "similarity_sums": [(weight, 0, 1.0)],
        "similarity_product": [
            (weight, 0, 1.0, right, left, None),
            (weight, 1, 1.0, right, None, torch.rand(5)),
            (weight, 2, 1.0, None, left, None),
        ],
        "sparse_similarity_sums": [
            (*parts, 6, 0, 1.0, None, None, True),
            (*parts, 6, 0, 1.0, None, None, False),
        ],
        "sparse_similarity_product": [(*parts, 6, 0, 1.0, block, None, torch.rand(6))],
        "sparse_transpose": [(*parts, 6)],
        "graph_product_": [(torch.empty(6, 8), *parts, 1.0, block, torch.rand(6))],
        "basis_inner": [([block, torch.randn(6, 16)], block, torch.rand(6))],
        "basis_rotate_": [([block.clone(), torch.randn(6, 8)], torch.randn(16, 8, dtype=torch.float64))],
        "k_means": [(torch.randn(9, 2), torch.rand(9), 2, 2, 0, 10, 1e-6)],
        "move_side": [
            (
                labels,
                halves,
                halves * 9,
                torch.tensor([3, 3]),
                torch.rand(6, 2).double(),
                torch.rand(6).double(),
                torch.rand(6).double(),
                0.0,
                2,
            )
        ],
        "move_graph": [(*parts, 1.0, labels, 2, 1e-6, 3)],
        "graph_cut": [(*parts, 1.0, labels, 2)],
        "edge_gradient": [
            (
                weight,
                torch.rand(5).double(),
                torch.rand(7).double(),
                torch.rand(5, 2).double(),
                torch.rand(7, 2).double(),
            )
        ],
    }
    for name, given in samples.items():
        for arguments in given:
            torch.library.opcheck(getattr(ops, name).default, arguments)
