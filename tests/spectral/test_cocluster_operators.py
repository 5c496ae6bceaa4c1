"""The operators that each do a whole step of co-clustering, held to their specification in float64."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu import needs_cpu_kernels
from torch import Tensor

from modfast import ConvergenceWarning, backend, reference, spectral_cocluster
from modfast.reference import spectral_operators as plain
from modfast.spectral import embedding, operators
from modfast.spectral.refinement import refine_sides
from modfast.spectral.similarity import DenseSimilarity, read_similarity

ops: Any = torch.ops.modfast
DOUBLE = torch.float64


def with_spectrum(values: list[float], rows: int = 120, cols: int = 90, seed: int = 0) -> Tensor:
    """A positive matrix with blocks, whose normalised form has some large singular values and a tail."""
    generator = torch.Generator().manual_seed(seed)
    row_of, col_of = (torch.randint(len(values), (size,), generator=generator) for size in (rows, cols))
    strength = torch.tensor(values, dtype=DOUBLE)[row_of]
    inside = strength[:, None] * (row_of[:, None] == col_of)
    return inside + 0.05 * torch.rand(rows, cols, dtype=DOUBLE, generator=generator)


def solve(
    weight: Tensor,
    count: int,
    affinity: int = 0,
    tol: float = 1e-3,
    max_passes: int = 200,
    blocks: int = 4,
    seed: int = 0,
    function: Any = ops.similarity_singular_vectors,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = (count + 7) // 8 * 8
    degrees = plain.similarity_sums(weight, affinity, 0.5)
    random = torch.rand(weight.shape[1], width, generator=torch.Generator().manual_seed(seed))
    found: tuple[Tensor, Tensor, Tensor, Tensor] = function(
        weight, affinity, 0.5, *degrees, random, count, tol, max_passes, blocks * width, seed
    )
    return found


def normalised(weight: Tensor, affinity: int) -> tuple[Tensor, Tensor, Tensor]:
    """``D_row^-1/2 A D_col^-1/2``, and the degrees."""
    similarity = plain._similarity(weight, affinity, 0.5, DOUBLE)
    rows, cols = similarity.sum(1), similarity.sum(0)
    of_rows, of_cols = (torch.where(each > 0, each.rsqrt(), 0.0) for each in (rows, cols))
    return of_rows[:, None] * similarity * of_cols, rows, cols


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affinity", [0, 1, 2])
@pytest.mark.parametrize("tol", [1e-3, 1e-9])
@pytest.mark.parametrize(("rows", "cols", "count"), [(120, 90, 3), (90, 120, 8), (300, 210, 13)])
def test_singular_vectors_are_those_of_the_whole_matrix(
    dtype: torch.dtype, affinity: int, tol: float, rows: int, cols: int, count: int
) -> None:
    weight = with_spectrum([1.0, 0.8, 0.5, 0.9], rows, cols).to(dtype)
    vectors, values, residuals, outcome = solve(weight, count, affinity, tol)
    _, expected, _, _ = solve(weight, count, affinity, tol, function=plain.similarity_singular_vectors)
    passes, converged, in_double = outcome.tolist()
    assert converged
    assert 0 < passes < 200
    assert in_double == (tol < 1e-5 or float(values[-1]) ** 2 * 1e-3 < 1e-7)
    assert (residuals <= tol * values.clamp(min=1e-7)).all()
    torch.testing.assert_close(values, expected, rtol=0, atol=max(tol, 1e-10))
    # The residuals are what they say, and the vectors orthonormal.
    matrix, row_degrees, col_degrees = normalised(weight, affinity)
    left = row_degrees.sqrt()[:, None] * vectors[:rows]
    right = col_degrees.sqrt()[:, None] * vectors[rows:]
    # The solver takes a basis that is off by this for orthonormal.
    rounding = 10 * (1e-14 if in_double else 1e-6)
    actual = torch.linalg.vector_norm(matrix.T @ left - right * values, dim=0)
    # N^T u is N^T N v / s, so the rounding of the product is divided by s, too.
    assert ((actual - residuals).abs() <= 1e-2 * residuals + rounding / values).all()
    unit = torch.eye(count, dtype=DOUBLE)
    torch.testing.assert_close(right.T @ right, unit, rtol=0, atol=rounding)


def test_the_vectors_of_well_separated_values_are_exact() -> None:
    weight = with_spectrum([1.0, 0.7, 0.4])
    vectors, _, _, _ = solve(weight, 3, tol=1e-9)
    expected, _, _, _ = solve(weight, 3, function=plain.similarity_singular_vectors)
    signs = (vectors * expected).sum(0).sign()
    torch.testing.assert_close(vectors * signs, expected, rtol=0, atol=1e-6)


def test_fewer_values_than_vectors_in_a_block() -> None:
    """A matrix of rank two: most of a block's directions are found to be empty, and are replaced."""
    weight = torch.block_diag(torch.ones(30, 25), torch.full((40, 45), 2.0))
    vectors, values, _, outcome = solve(weight, 6)
    torch.testing.assert_close(values[:2], torch.ones(2, dtype=DOUBLE), rtol=0, atol=1e-6)
    assert (values[2:] < 1e-5).all()
    assert vectors.isfinite().all()
    assert outcome[1]


def test_rows_and_columns_without_weight_have_vectors_of_zeros() -> None:
    weight = with_spectrum([1.0, 0.7, 0.4])
    weight[::7], weight[:, ::5] = 0.0, 0.0
    vectors, values, _, _ = solve(weight, 3)
    _, expected, _, _ = solve(weight, 3, function=plain.similarity_singular_vectors)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    assert (vectors[:120][::7] == 0).all()
    assert (vectors[120:][::5] == 0).all()


def test_it_stops_after_so_many_passes() -> None:
    weight = torch.rand(300, 200, generator=torch.Generator().manual_seed(0))
    _, _, residuals, outcome = solve(weight, 6, tol=1e-4, max_passes=2)
    assert outcome.tolist() == [2, 0, 0]
    assert residuals.max() > 1e-4
    # Where the step is not one call, another pass makes the left vectors.
    passes = 2 if operators.does_whole_steps(weight) else 3
    with pytest.warns(ConvergenceWarning, match=f"after {passes} passes"):
        _, info = spectral_cocluster(weight, 6, tol=1e-4, max_iter=2, return_info=True)
    assert not info["converged"]


def test_values_that_are_too_small_for_float32_take_float64() -> None:
    weight = 1.0 + 1e-3 * with_spectrum([1.0, 0.7, 0.4])
    _, values, _, outcome = solve(weight, 3)
    _, expected, _, _ = solve(weight, 3, function=plain.similarity_singular_vectors)
    assert outcome[1:].tolist() == [1, 1]
    assert values[2] < 1e-3
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("tol", [1e-3, 1e-9])
def test_same_bits_for_any_number_of_threads(tol: float, set_threads: Callable[[int], None]) -> None:
    weight = torch.rand(1500, 300, generator=torch.Generator().manual_seed(3))
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(solve(weight, 9, tol=tol))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_numbers_that_are_not_finite_are_refused() -> None:
    weight = torch.rand(40, 40)
    degrees = plain.similarity_sums(weight, 0, 0.5)
    for bad in (torch.nan, torch.inf):
        changed = degrees[1].clone()
        changed[3] = bad
        with pytest.raises(RuntimeError, match="a solver met numbers that are not finite"):
            ops.similarity_singular_vectors(
                weight, 0, 0.5, degrees[0], changed, torch.rand(40, 8), 2, 1e-3, 9, 24, 0
            )
    nothing = torch.zeros(40, dtype=DOUBLE)
    with pytest.raises(RuntimeError, match="starting vectors must not be zero"):
        ops.similarity_singular_vectors(
            weight, 0, 0.5, nothing, nothing, torch.rand(40, 8), 2, 1e-3, 9, 24, 0
        )


@needs_cpu_kernels
@pytest.mark.parametrize("seed", range(4))
def test_both_solvers_find_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled solver, and the one that serves all other matrices."""
    weight = with_spectrum([1.0, 0.8, 0.5], 400, 300, seed)
    whole, info = spectral_cocluster(weight, 3, seed=seed, return_info=True)
    with monkeypatch.context() as patched:
        patched.setattr(operators, "does_whole_steps", lambda tensor: False)
        steps, other = spectral_cocluster(weight, 3, seed=seed, return_info=True)
    assert whole == steps
    torch.testing.assert_close(info["singular_values"], other["singular_values"], rtol=0, atol=1e-5)
    assert info["passes"] == other["passes"] - 1  # the left vectors take no further pass
    assert info["iterations"] == other["iterations"]


@needs_cpu_kernels
def test_wide_blocks_and_long_bases_are_solved_step_by_step() -> None:
    for shape, count, expected in [((400, 300), 16, True), ((400, 300), 17, False), ((9, 200_000), 3, False)]:
        similarity = DenseSimilarity(torch.ones(1).expand(shape), 0, 1.0)
        capacity = embedding._capacity(similarity.memory, shape[1], count)
        assert embedding._is_solved_at_once(similarity, capacity, count) is expected


# --- moves of rows and columns


def some_labels(rows: int, cols: int, k: int, unclustered: int, seed: int) -> Tensor:
    labels = torch.randint(k, (rows + cols,), generator=torch.Generator().manual_seed(seed))
    if unclustered:
        labels[::unclustered] = -1
    return labels


@pytest.mark.parametrize("in_double", [False, True])
@pytest.mark.parametrize("affinity", [0, 1, 2])
@pytest.mark.parametrize("unclustered", [0, 9])
@pytest.mark.parametrize(("rows", "cols", "k"), [(1, 1, 1), (40, 30, 3), (30, 40, 8), (50, 60, 9)])
def test_moves_are_those_of_the_specification(
    in_double: bool, affinity: int, unclustered: int, rows: int, cols: int, k: int
) -> None:
    for seed in range(3):
        weight = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) + 0.1
        labels = some_labels(rows, cols, k, unclustered, seed)
        degrees = plain.similarity_sums(weight, affinity, 0.5)
        arguments = (weight, affinity, 0.5, *degrees, labels, k, in_double, 1e-6, 20)
        found, expected = ops.move_sides(*arguments), plain.move_sides(*arguments)
        assert torch.equal(found, expected)
        assert torch.equal(found < 0, labels < 0)
        if rows > 1:
            assert not torch.equal(found, labels)


def test_no_sweeps_move_nothing() -> None:
    weight, labels = torch.rand(6, 5), torch.arange(11) % 2
    degrees = plain.similarity_sums(weight, 0, 1.0)
    assert torch.equal(ops.move_sides(weight, 0, 1.0, *degrees, labels, 2, True, 1e-6, 0), labels)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        # A move that may raise the cut is followed by another for ever.
        ({"least": -1.0}, "least must be a finite number above 0, got -1.0"),
        ({"least": 0.0}, "least must be a finite number above 0, got 0.0"),
        ({"least": math.nan}, "least must be a finite number above 0, got nan"),
        ({"max_sweeps": -1}, "max_sweeps must be a 32-bit number that is not negative, got -1"),
        ({"max_sweeps": 2**62}, f"max_sweeps must be a 32-bit number that is not negative, got {2**62}"),
        # Or else the kernel would ask for terabytes.
        (
            {"num_clusters": 2**31 - 2},
            f"num_clusters must be at most the number of nodes, 11, got {2**31 - 2}",
        ),
    ],
)
@needs_cpu_kernels
def test_moves_that_would_not_end_are_refused(changed: dict[str, Any], message: str, device: str) -> None:
    weight, labels = torch.rand(6, 5), torch.arange(11) % 2
    tensors = [tensor.to(device) for tensor in (weight, *plain.similarity_sums(weight, 0, 1.0), labels)]
    numbers = {"num_clusters": 2, "in_double": True, "least": 1e-6, "max_sweeps": 20, **changed}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.modfast.move_sides(tensors[0], 0, 1.0, *tensors[1:], **numbers)


@needs_cpu_kernels
def test_far_more_clusters_than_nodes_are_numbered_in_little_memory() -> None:
    most = 2**31 - 2
    labels = torch.tensor([most - 1, -1, 7, most - 1, 0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * most, hard))  # a table of all clusters takes more
    try:
        found = torch.ops.modfast.numbered_as_met(labels, most)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert found.tolist() == [0, -1, 1, 0, 2]


@needs_cpu_kernels
def test_moves_at_once_are_those_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        weight = with_spectrum([1.0, 0.8, 0.5], seed=seed)
        similarity = read_similarity(weight, "abs")
        degrees, labels = similarity.sums(), some_labels(*similarity.shape, 3, 0, seed + 100)
        whole = refine_sides(similarity, degrees, labels, 3, DOUBLE)
        with monkeypatch.context() as patched:
            patched.setattr(operators, "does_whole_steps", lambda tensor: False)
            steps = refine_sides(similarity, degrees, labels, 3, DOUBLE)
        assert torch.equal(whole, steps)
        assert not torch.equal(whole, labels)


# --- numbers of clusters


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], []),
        ([2], [0]),
        ([-1, -1], [-1, -1]),
        ([3, 1, -1, 3, 0, 1], [0, 1, -1, 0, 2, 1]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_numbered_as_met(labels: list[int], expected: list[int]) -> None:
    given = torch.tensor(labels, dtype=torch.int64)
    for function in (ops.numbered_as_met, plain.numbered_as_met):
        assert function(given, 4).tolist() == expected
    assert given.tolist() == labels


def test_labels_out_of_range_are_refused() -> None:
    for bad in (-2, 4):
        with pytest.raises(RuntimeError, match=rf"labels\[1\] is {bad}, allowed is -1 to 3"):
            ops.numbered_as_met(torch.tensor([0, bad]), 4)


# --- the whole, beside the specification


@pytest.mark.parametrize("affinity", ["abs", "square", "given"])
@pytest.mark.parametrize(("rows", "cols", "k"), [(120, 90, 1), (120, 90, 2), (300, 250, 5), (250, 300, 16)])
def test_clusters_are_those_of_the_specification(affinity: str, rows: int, cols: int, k: int) -> None:
    weight = with_spectrum([1.0 + 0.1 * cluster for cluster in range(k)], rows, cols).float()
    expected = reference.spectral_cocluster(weight, k, affinity=affinity)
    assert spectral_cocluster(weight, k, affinity=affinity) == expected
    assert spectral_cocluster(weight.T, k, affinity=affinity).shape == (cols, rows)


@pytest.mark.parametrize("level", [name for name in backend()["cpu_available"] if name != backend()["cpu"]])
def test_other_instruction_sets(level: str, run_python: Any) -> None:
    code = """
import torch
from modfast import spectral_cocluster
generator = torch.Generator().manual_seed(0)
rows, cols = (torch.randint(4, (size,), generator=generator) for size in (300, 200))
weight = torch.rand(300, 200, generator=generator) + 2.0 * (rows[:, None] == cols)
found, info = spectral_cocluster(weight, 4, return_info=True)
print(found.row_labels.tolist(), found.col_labels.tolist(), info["passes"])
"""
    results = [run_python(code, MODFAST_CPU=name).stdout for name in (level, backend()["cpu"])]
    assert results[0] == results[1]
    assert results[0]
