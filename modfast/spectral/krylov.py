"""A block Krylov solver with thick restarts, for the largest eigenvalues of a symmetric matrix.

The solver needs only products of the matrix with blocks of vectors.

Method: G. H. Golub and R. Underwood, "The block Lanczos method for computing eigenvalues", 1977, with full
reorthogonalisation, restarted with Ritz vectors as in K. Wu and H. Simon, "Thick-restart Lanczos method for
large symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl. 22, 2000. A block as wide as the number of
wanted vectors finds eigenvalues that repeat as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .operators import LANES, basis_inner, basis_rotate_

# Matrices whose sides are numbers of basis vectors. On these NumPy takes a fraction of PyTorch's time.
Small: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# Rounds of orthonormalisation. Usually two suffice; nearly dependent directions take more.
_MAX_ROUNDS = 5


class Eigen(NamedTuple):
    """Some of a matrix's eigenvalues and eigenvectors, largest first."""

    values: Tensor  # (count,), float64, on the CPU
    vectors: Tensor  # (n, count or more), the first count of them
    residuals: Tensor  # (count,), the norms of M v - value v
    products: int  # number of products of M with a block of vectors
    converged: bool


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: its decompositions of small matrices round differently on several."""
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
    """Return the width of a block that holds ``count`` vectors."""
    return (count + LANES - 1) // LANES * LANES


def random_block(rows: int, cols: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return random numbers between -1/2 and 1/2, the same on every device."""
    return torch.rand(rows, cols, generator=generator, dtype=torch.float32, device="cpu").sub_(0.5).to(like)


def largest_eigenvectors(
    product: Callable[[Tensor, Tensor], None],
    weights: Tensor,
    start: Tensor,
    count: int,
    *,
    tolerance: Callable[[Small], Small],
    max_products: int,
    capacity: int,
    generator: torch.Generator,
    enough: Callable[[Small], bool] | None = None,
) -> Eigen:
    """Return the largest eigenvalues of a matrix M of norm about one, symmetric in a weighted inner product.

    In the inner product ``<x, y> = sum of weights x y`` the eigenvectors are orthonormal, and
    ``<M x, y> = <x, M y>``. So ``D^-1/2 A D^-1/2`` can be replaced by ``M = D^-1 A`` with the degrees as
    weights: its eigenvectors are those of ``D^-1/2 A D^-1/2``, times ``D^-1/2``.

    Args:
        product: ``product(x, out)`` writes ``M x`` to ``out``; both are ``(n, width)``.
        weights: ``(n,)``, not negative; where they are 0, M x has to be 0.
        start: ``(n, width)``, at least as wide as ``count``, a multiple of ``LANES``; is overwritten.
        count: the number of eigenvectors.
        tolerance: returns the allowed residual of each of the first ``count`` Ritz values.
        max_products: the maximum number of products; the solver then stops, converged or not.
        capacity: the maximum size of the basis in vectors, from three times the start's width to n less that
            width.
        generator: draws random directions in place of those that the basis contains already.
        enough: called with the Ritz values after each product; True stops the solver before it converges.
    """
    width = start.shape[1]
    # Components below this are rounding.
    rounding = 1e-6 if start.dtype == torch.float32 else 1e-14
    block, _, _ = _orthonormal(start, [], weights, rounding, generator)
    assert block is not None
    basis, spare = [block], list[Tensor]()
    projected = np.zeros((capacity, capacity))
    products = 0
    while True:
        size = width * len(basis)
        following = spare.pop() if spare else torch.empty_like(start)
        product(basis[-1], following)
        products += 1
        block, inner, coupling = _orthonormal(following, basis, weights, rounding, generator)
        projected[:size, size - width : size] = inner
        projected[size - width : size, :size] = inner.T
        corner = inner[size - width :]
        projected[size - width : size, size - width : size] = (corner + corner.T) / 2
        values, rotation = _eigh(projected[:size, :size])
        values, rotation = values[::-1], rotation[:, ::-1]
        wanted = values[:count].copy()
        residuals = np.linalg.norm(coupling @ rotation[size - width :, :count], axis=0)
        converged = block is None or (size >= count and bool((residuals <= tolerance(wanted)).all()))
        stopped = enough is not None and size >= 3 * width and enough(wanted)
        if block is None or converged or products >= max_products or stopped:
            _rotate(basis, rotation[:, :width])
            return Eigen(torch.from_numpy(wanted), basis[0], torch.from_numpy(residuals), products, converged)
        if size + width > capacity:
            # Restart with the half of the Ritz vectors that has the largest values, and with the new block.
            remaining = max(width, size // 2 // width * width)
            _rotate(basis, rotation[:, :remaining])
            spare += basis[remaining // width :]
            del basis[remaining // width :]
            projected[:] = 0.0
            projected[:remaining, :remaining] = np.diag(values[:remaining])
        basis.append(block)


def _inner(basis: list[Tensor], block: Tensor, weights: Tensor) -> Small:
    products: Small = basis_inner(basis, block, weights).cpu().numpy()
    return products


def _rotate(basis: list[Tensor], factors: Small) -> None:
    basis_rotate_(basis, torch.from_numpy(np.ascontiguousarray(factors)).to(basis[0].device))


def _eigh(matrix: Small) -> tuple[Small, Small]:
    with one_thread():
        values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()


def _orthonormal(
    block: Tensor, basis: list[Tensor], weights: Tensor, rounding: float, generator: torch.Generator
) -> tuple[Tensor | None, Small, Small]:
    """Return an orthonormal block Q that is orthogonal to the basis V, with ``block = V H + Q R``.

    Each round scales the block along the eigenvectors of ``W^T W`` (A. Stathopoulos and K. Wu, SIAM J. Sci.
    Comput. 23, 2002). A direction much shorter than the longest is inaccurate: it is stretched by a bounded
    factor, and the next round makes it more accurate. Directions of length zero are replaced by random ones,
    for which R has zeros.

    Args:
        block: is overwritten by Q.
        basis: orthonormal blocks.
        weights: of the inner product.
        rounding: lengths up to this come from rounding.
        generator: draws the random directions.

    Returns:
        Q, or None if no direction is longer than ``rounding``; H; and R.
    """
    width = block.shape[1]
    along = np.zeros((width * len(basis), width))
    coupling = np.eye(width)
    empty = np.ones(width, dtype=bool)
    for attempt in range(_MAX_ROUNDS):
        products = _inner([block, *basis], block, weights)
        gram, inner = products[:width], products[width:]
        along += inner @ coupling
        # Checked for every block: errors of one block grow in those that follow.
        if attempt > 0 and _is_identity(gram, inner, rounding):
            return block, along, coupling
        # The inner products of what remains without the part in the basis.
        squares, rotation = _eigh(gram - inner.T @ inner)
        if attempt == 0 and squares[-1] <= max(rounding**2, rounding * gram.diagonal().max()):
            # The difference of inner products has lost its digits: subtract the vectors themselves.
            _rotate([block, *basis], np.vstack([np.eye(width), -inner]))
            inner = np.zeros_like(inner)
            squares, rotation = _eigh(_inner([block], block, weights))
            if squares[-1] <= rounding**2:
                return None, along, np.zeros_like(coupling)
        lengths = np.sqrt(np.maximum(squares, rounding * squares[-1]))
        factors = rotation / lengths
        _rotate([block, *basis], np.vstack([factors, -inner @ factors]))
        coupling = (lengths[:, None] * rotation.T) @ coupling
        empty = squares < 0.5
    if empty.any():
        coupling[empty] = 0.0
        _fill(block, basis, weights, np.flatnonzero(empty).tolist(), generator)
    return block, along, coupling


def _is_identity(gram: Small, inner: Small, rounding: float) -> bool:
    """Return whether a block is orthonormal, and orthogonal to the basis, up to rounding."""
    away = np.abs(gram - np.eye(len(gram))).max()
    across = np.abs(inner).max(initial=0.0)
    return bool(max(away, across) <= 10 * rounding)


def _fill(
    block: Tensor, basis: list[Tensor], weights: Tensor, columns: list[int], generator: torch.Generator
) -> None:
    """Fill columns of a block with random directions, orthogonal to the basis and to each other."""
    fresh = torch.zeros_like(block)
    fresh[:, columns] = random_block(len(block), len(columns), generator, block) * (weights > 0)[:, None]
    block[:, columns] = 0.0
    for _ in range(3):
        inner = _inner([block, *basis], fresh, weights)
        _rotate([fresh, block, *basis], np.vstack([np.eye(block.shape[1]), -inner]))
        for place, column in enumerate(columns):
            for before in columns[:place]:
                overlap = (weights * fresh[:, before]) @ fresh[:, column]
                fresh[:, column] -= overlap * fresh[:, before]
            fresh[:, column] /= ((weights * fresh[:, column]) @ fresh[:, column]).sqrt()
    block[:, columns] = fresh[:, columns]
