"""The solver options of all spectral functions, and the warning that the solver stopped early."""

from __future__ import annotations

import warnings

from torch import Tensor

from modfast.arguments import SEED, Integer, Number, check


class ConvergenceWarning(UserWarning):
    """Warns that an eigensolver stopped before it reached the requested tolerance."""


def check_solver(n_init: object, tol: object, max_iter: object, seed: object) -> None:
    """Check the options of a solver.

    Raises:
        ValueError: an option is out of range.
    """
    check("n_init", n_init, Integer(1, 2**31 - 1))
    check("max_iter", max_iter, Integer(1, 2**31 - 1))
    check("seed", seed, SEED)
    check("tol", tol, Number(0, 1))


def warn_unless(converged: bool, passes: int, residuals: Tensor) -> None:
    """Warn that the result is inexact, unless the solver has converged."""
    if not converged:
        warnings.warn(
            f"the eigensolver stopped after {passes} passes with residuals up to "
            f"{float(residuals.max()):.1e}; raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
