"""What all spectral functions share of their solver: its options, and the warning that it stopped early."""

from __future__ import annotations

import warnings

from torch import Tensor

from modfast.arguments import SEED, Integer, Number, check


class ConvergenceWarning(UserWarning):
    """An eigensolver stopped before it was as exact as asked."""


def check_solver(n_init: object, tol: object, max_iter: object, seed: object) -> None:
    """Raises unless these options of a solver may be given.

    Raises:
        ValueError: one may not.
    """
    check("n_init", n_init, Integer(1, 2**31 - 1))
    check("max_iter", max_iter, Integer(1, 2**31 - 1))
    check("seed", seed, SEED)
    check("tol", tol, Number(0, 1))


def warn_unless(converged: bool, passes: int, residuals: Tensor) -> None:
    """Warn that what was found is not exact, unless the solver has converged."""
    if not converged:
        warnings.warn(
            f"the eigensolver stopped after {passes} passes with residuals up to "
            f"{float(residuals.max()):.1e}; raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
