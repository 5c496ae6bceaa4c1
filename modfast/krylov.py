"""The largest eigenvalues of a symmetric matrix that is known by its products: block Krylov, thick restart.

Method: G. H. Golub and R. Underwood, "The block Lanczos method for computing eigenvalues", 1977, with full
reorthogonalisation, restarted with Ritz vectors as in K. Wu and H. Simon, "Thick-restart Lanczos method for
large symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl. 22, 2000. A block as wide as the number of
wanted vectors finds eigenvalues that repeat as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .spectral_operators import LANES, basis_add_, basis_inner, basis_rotate_

# Of orthonormalisation. Two are the rule; more are for directions that nearly depend on each other.
_MAX_ROUNDS = 5


class Eigen(NamedTuple):
    """Some of a matrix's eigenvalues and eigenvectors, largest first."""

    values: Tensor  # (count,), float64, on the CPU
    vectors: Tensor  # (n, count or more), the first count of them
    residuals: Tensor  # (count,), the norms of M v - value v
    products: int  # with blocks of vectors
    converged: bool


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's decompositions of small matrices round differently on several threads; nothing else does."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def block_width(count: int) -> int:
    """The width of a block that holds so many vectors."""
    return (count + LANES - 1) // LANES * LANES


def random_block(rows: int, cols: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers, the same on every device."""
    return torch.randn(rows, cols, generator=generator).to(like)


def largest_eigenvectors(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    count: int,
    *,
    tolerance: Callable[[Tensor], Tensor],
    max_products: int,
    capacity: int,
    generator: torch.Generator,
    enough: Callable[[Tensor], bool] | None = None,
) -> Eigen:
    """Eigenvectors of a symmetric matrix M of norm about one.

    Args:
        product: ``(n, width)`` to M times that, a new tensor.
        start: ``(n, width)``, at least as wide as ``count``, a multiple of ``LANES``; is overwritten.
        count: how many eigenvectors are wanted.
        tolerance: from the wanted Ritz values to the residual that is allowed for each.
        max_products: stop after so many, converged or not.
        capacity: of the basis, in vectors: three times the start's width or more, at most n less that width.
        generator: of directions that replace those in which the matrix has nothing more to offer.
        enough: asked about the Ritz values after each product; True ends without convergence.
    """
    width = start.shape[1]
    # Components below this are rounding.
    least = 1e-6 if start.dtype == torch.float32 else 1e-14
    block, _ = _orthonormal(start, [], least, generator)
    assert block is not None
    basis = [block]
    projected = torch.zeros(capacity, capacity, dtype=torch.float64)
    products = 0
    while True:
        size = sum(each.shape[1] for each in basis)
        following = product(basis[-1])
        products += 1
        inner = basis_inner(basis, following)
        basis_add_(following, basis, -inner)
        block, coupling = _orthonormal(following, basis, least, generator, inner)
        inner = inner.cpu()
        projected[:size, size - width : size] = inner
        projected[size - width : size, :size] = inner.T
        corner = inner[size - width :]
        projected[size - width : size, size - width : size] = (corner + corner.T) / 2
        with one_thread():
            values, rotation = torch.linalg.eigh(projected[:size, :size])
        values, rotation = values.flip(0), rotation.flip(1)
        wanted = values[:count]
        residuals = torch.linalg.vector_norm(coupling.cpu() @ rotation[size - width :, :count], dim=0)
        converged = size >= count and bool((residuals <= tolerance(wanted)).all())
        stopped = enough is not None and size >= 3 * width and enough(wanted)
        if converged or block is None or products >= max_products or stopped:
            basis_rotate_(basis, rotation[:, :width].to(start.device))
            return Eigen(wanted, basis[0], residuals, products, converged or block is None)
        if size + width > capacity:
            # Half of the basis, its best, stays; the new block remains coupled to it.
            kept = max(width, size // 2 // width * width)
            basis_rotate_(basis, rotation[:, :kept].to(start.device))
            del basis[kept // width :]
            projected.zero_()
            projected[:kept, :kept] = values[:kept].diag()
        basis.append(block)


def _orthonormal(
    block: Tensor,
    basis: list[Tensor],
    least: float,
    generator: torch.Generator,
    inner: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """An orthonormal block, at right angles to the basis: ``block = Q R`` less what lay in the basis.

    By eigenvectors of ``W^T W`` (A. Stathopoulos and K. Wu, SIAM J. Sci. Comput. 23, 2002), again and again:
    a direction much shorter than the longest is known badly, is stretched only so far, and is known better
    by the next round. Directions of length zero are replaced by random ones, for which R has zeros.

    Args:
        block: is overwritten.
        basis: orthonormal blocks.
        least: lengths up to this come from rounding.
        generator: of the random directions.
        inner: what of the block lay in the basis; what is still found there is added.

    Returns:
        Q, or None if no direction is longer than that; and R.
    """
    width = block.shape[1]
    coupling = torch.eye(width, dtype=torch.float64)
    for attempt in range(_MAX_ROUNDS):
        with one_thread():
            squares, rotation = torch.linalg.eigh(basis_inner([block], block).cpu())
        longest = float(squares[-1])
        if attempt == 0 and longest <= least**2:
            return None, torch.zeros(width, width, dtype=torch.float64)
        lengths = squares.clamp(min=least * longest).sqrt()
        coupling = (lengths[:, None] * rotation.T) @ coupling
        basis_rotate_([block], (rotation / lengths).to(block.device))
        if attempt > 0 and float(squares[0]) > 0.5:
            break
        if basis:
            rest = basis_inner(basis, block)
            basis_add_(block, basis, -rest)
            if inner is not None:
                inner += rest @ coupling.to(rest.device)
    else:
        empty = squares < 0.5
        coupling[empty] = 0.0
        _fill(block, basis, empty, generator)
    return block, coupling


def _fill(block: Tensor, basis: list[Tensor], empty: Tensor, generator: torch.Generator) -> None:
    """Puts random directions at right angles to the basis and to each other into empty columns of a block."""
    columns = empty.nonzero().flatten().tolist()
    fresh = torch.zeros_like(block)
    fresh[:, columns] = random_block(len(block), len(columns), generator, block)
    for _ in range(3):
        basis_add_(fresh, [*basis, block], -basis_inner([*basis, block], fresh))
        for place, column in enumerate(columns):
            for before in columns[:place]:
                fresh[:, column] -= (fresh[:, before] @ fresh[:, column]) * fresh[:, before]
            fresh[:, column] /= torch.linalg.vector_norm(fresh[:, column])
    block[:, columns] = fresh[:, columns]
