"""The Laplacian's eigenvalues and their derivative against those of a dense decomposition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modfast import ConvergenceWarning, laplacian_eigenvalues, normalized_cut, spectral_cocluster
from modfast.reference import laplacian_eigenvalues as reference_eigenvalues

CHAINS = {
    "one": [(5, 7)],
    "one, larger": [(300, 200)],
    "high": [(400, 30)],
    "three": [(9, 6), (8, 9), (4, 8)],
    "two, larger": [(200, 150), (160, 200)],
    "kernels": [(6, 5, 3, 3)],
    "kernels, larger": [(300, 140, 2, 2)],
    "kernels, then linear": [(6, 5, 2), (7, 6)],
}


def drawn(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", list(CHAINS))
def test_values_and_derivative(name: str) -> None:
    weights = drawn(CHAINS[name])
    slopes = torch.tensor([0.3, 1.0, -0.7], dtype=torch.float64)
    found = laplacian_eigenvalues(weights if len(weights) > 1 else weights[0], 3)
    expected = reference_eigenvalues(weights, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    # The error of the vectors, 1e-6, over the gaps between the eigenvalues, of about 0.01.
    for ours, theirs in zip(
        torch.autograd.grad((found * slopes).sum(), weights),
        torch.autograd.grad((expected * slopes).sum(), weights),
        strict=True,
    ):
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-4 * torch.linalg.vector_norm(theirs)


def test_a_tighter_tolerance_gives_a_better_derivative() -> None:
    weights = drawn([(200, 150), (160, 200)])
    (exact, _) = torch.autograd.grad(reference_eigenvalues(weights, 3).sum(), weights)
    errors = []
    for tol in (1e-4, 1e-9):
        (found, _) = torch.autograd.grad(laplacian_eigenvalues(weights, 3, tol=tol).sum(), weights)
        errors.append(float(torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact)))
    assert errors[1] < 1e-7
    assert errors[1] < 0.01 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    (weight,) = drawn([(40, 30)], dtype)
    found = laplacian_eigenvalues(weight, 4)
    assert found.dtype == torch.float32
    exact = weight.detach().double().requires_grad_()
    expected = reference_eigenvalues([exact], 4)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)
    found.sum().backward()
    expected.sum().backward()
    assert weight.grad is not None
    assert exact.grad is not None
    assert weight.grad.dtype == dtype
    torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=4 * torch.finfo(dtype).eps, atol=1e-7)


def test_layers_of_different_scale() -> None:
    weights = [torch.randn(8, 6, dtype=torch.float64) * 1e-8, torch.randn(5, 8, dtype=torch.float64) * 1e3]
    for weight in weights:
        weight.requires_grad_()
    found, expected = laplacian_eigenvalues(weights, 3), reference_eigenvalues(weights, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found[1], weights), torch.autograd.grad(expected[1], weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12 * float(theirs.abs().max()))


def test_only_the_weights_that_need_it_get_a_gradient() -> None:
    weights = drawn([(6, 5), (4, 6)])
    weights[0].requires_grad_(False)
    laplacian_eigenvalues(weights, 2).sum().backward()
    assert weights[0].grad is None
    assert weights[1].grad is not None


def test_nodes_without_ties_are_left_out() -> None:
    weight = torch.rand(20, 15) + 0.1
    larger = torch.zeros(22, 18)
    larger[:20, 2:17] = weight
    torch.testing.assert_close(laplacian_eigenvalues(larger, 4), laplacian_eigenvalues(weight, 4))


def test_as_many_zeros_as_separate_parts() -> None:
    weight = torch.block_diag(*[torch.rand(60, 50) + 0.1 for _ in range(3)])
    values = laplacian_eigenvalues(weight, 5)
    assert values[:3].abs().max() < 1e-6
    assert values[3] > 0.1


def test_no_cut_is_below_the_sum() -> None:
    weight = torch.randn(50, 40)
    for k in (2, 3, 5):
        assert normalized_cut(weight, spectral_cocluster(weight, k)) >= laplacian_eigenvalues(weight, k).sum()


def test_descent_lowers_the_normalised_cut() -> None:
    weight = torch.randn(48, 40, requires_grad=True)
    before = normalized_cut(weight, spectral_cocluster(weight, 4))
    optimizer = torch.optim.SGD([weight], lr=300.0)
    for _ in range(60):
        optimizer.zero_grad()
        laplacian_eigenvalues(weight, 4).sum().backward()
        optimizer.step()
    after = normalized_cut(weight, spectral_cocluster(weight, 4))
    assert after < 0.7 * before


def test_no_convergence_is_said() -> None:
    with pytest.warns(ConvergenceWarning):
        laplacian_eigenvalues(torch.randn(300, 300), 5, max_iter=3)


@pytest.mark.parametrize(
    ("weights", "k", "error", "message"),
    [
        ([], 1, ValueError, "weights must hold at least one weight"),
        ([[1.0]], 1, TypeError, r"weights\[0\] must be a dense floating-point tensor, got list"),
        (
            torch.ones(3, 3, dtype=torch.int64),
            1,
            TypeError,
            "must be a dense floating-point tensor, got torch.int64",
        ),
        (torch.eye(3).to_sparse(), 1, TypeError, "must be a dense floating-point tensor"),
        (torch.ones(3), 1, ValueError, r"weights\[0\] must have shape"),
        (
            [torch.ones(3, 4), torch.ones(5, 2)],
            1,
            ValueError,
            r"weights\[1\] must read what weights\[0\] puts out",
        ),
        (torch.full((3, 3), torch.nan), 1, ValueError, r"weights\[0\] must be finite"),
        (torch.zeros(3, 3), 1, ValueError, "weights must not be all zero"),
        (torch.ones(3, 4), 4, ValueError, r"k must be an integer in \[1, 3\]"),
        (torch.ones(3, 4), 0, ValueError, r"k must be an integer in \[1, 3\]"),
    ],
)
def test_bad_arguments(weights: Any, k: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        laplacian_eigenvalues(weights, k)
