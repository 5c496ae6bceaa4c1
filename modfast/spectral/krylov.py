"""The largest eigenvalues of a symmetric matrix that is known by its products: block Krylov, thick restart.

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

# Matrices as small as the basis has vectors: for each step NumPy takes a fraction of the time of PyTorch.
Small: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

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
    """Numbers between -1/2 and 1/2, the same on every device."""
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
    """Eigenvectors of a matrix M that is symmetric in a weighted inner product, of norm about one.

    With ``<x, y> = sum of weights x y``, eigenvectors are orthonormal and ``<M x, y> = <x, M y>``. That is
    what normalising a matrix of similarities by its degrees comes to, when the vectors and not the matrix
    are scaled: ``D^-1 A`` for ``D^-1/2 A D^-1/2``.

    Args:
        product: writes M times its first argument ``(n, width)`` to its second.
        weights: ``(n,)``, not negative; where they are 0, M x has to be 0.
        start: ``(n, width)``, at least as wide as ``count``, a multiple of ``LANES``; is overwritten.
        count: how many eigenvectors are wanted.
        tolerance: from the wanted Ritz values to the residual that is allowed for each.
        max_products: stop after so many, converged or not.
        capacity: of the basis, in vectors: three times the start's width or more, n less that width at most.
        generator: of directions that replace those in which the matrix has nothing more to offer.
        enough: asked about the Ritz values after each product; True ends without convergence.
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
            found = torch.from_numpy(wanted), torch.from_numpy(residuals)
            return Eigen(found[0], basis[0], found[1], products, converged)
        if size + width > capacity:
            # Half of the basis, its best, stays; the new block remains coupled to it.
            kept = max(width, size // 2 // width * width)
            _rotate(basis, rotation[:, :kept])
            spare += basis[kept // width :]
            del basis[kept // width :]
            projected[:] = 0.0
            projected[:kept, :kept] = np.diag(values[:kept])
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
    """An orthonormal block Q, at right angles to the basis V: ``block = V H + Q R``.

    By eigenvectors of ``W^T W`` (A. Stathopoulos and K. Wu, SIAM J. Sci. Comput. 23, 2002), again and again:
    a direction much shorter than the longest is known badly, is stretched only so far, and is known better
    by the next round. Directions of length zero are replaced by random ones, for which R has zeros.

    Args:
        block: is overwritten.
        basis: orthonormal blocks.
        weights: of the inner product.
        rounding: lengths up to this come from rounding.
        generator: of the random directions.

    Returns:
        Q, or None if no direction is longer than that; H and R.
    """
    width = block.shape[1]
    along = np.zeros((width * len(basis), width))
    coupling = np.eye(width)
    empty = np.ones(width, dtype=bool)
    for attempt in range(_MAX_ROUNDS):
        products = _inner([block, *basis], block, weights)
        gram, inner = products[:width], products[width:]
        along += inner @ coupling
        # Always looked at: what one block lacks would grow from block to block.
        if attempt > 0 and _is_identity(gram, inner, rounding):
            return block, along, coupling
        # What remains once the part in the basis has been taken off.
        squares, rotation = _eigh(gram - inner.T @ inner)
        if attempt == 0 and squares[-1] <= max(rounding**2, rounding * gram.diagonal().max()):
            # So little is left that only the difference itself can tell how much.
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
    """Whether a block is orthonormal, and at right angles to the basis, but for rounding."""
    away = np.abs(gram - np.eye(len(gram))).max()
    across = np.abs(inner).max(initial=0.0)
    return bool(max(away, across) <= 10 * rounding)


def _fill(
    block: Tensor, basis: list[Tensor], weights: Tensor, columns: list[int], generator: torch.Generator
) -> None:
    """Puts random directions at right angles to the basis and to each other into columns of a block."""
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
