"""Count the passes that eigensolvers make over planted matrices and a graph. See docs/speed/spectral.md.

The choice of modfast's solver rests on this: passes take most of the time, and no machine changes them. Every
solver gets the same product with a block of vectors, in float32, the same start and the same stopping rule.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from scipy.sparse.linalg import LinearOperator, lobpcg
from torch import Tensor

from benchmarks.common.pages import (
    add_page_option,
    as_markdown,
    check_page,
    put_into_page,
    show,
    what_times_depend_on,
)
from benchmarks.spectral.cases import Case, GraphCase, WeightCase, as_cases, block_model, plant
from modfast.files import write_json
from modfast.spectral.embedding import inverse
from modfast.spectral.krylov import block_width, largest_eigenvectors
from modfast.spectral.matrices import as_matrix
from modfast.spectral.similarity import Similarity, read_similarity

TOL = 1e-3
MAX_PASSES = 300
CASES: list[Case] = [
    WeightCase(2048, 512, 4),
    WeightCase(3072, 768, 8),
    WeightCase(4096, 4096, 16, spread=0.5),
    WeightCase(3072, 768, 8, heavy=True),
    WeightCase(3072, 768, 6, unequal=True),
    GraphCase(20_000, 8),
]


class Problem:
    """A symmetric matrix of norm one, given by its products with vectors, which it counts.

    For a weight it is ``N^T N`` of the normalised similarities N, whose eigenvalues are the squares of the
    singular values; for a graph the normalised adjacency.
    """

    def __init__(self, case: Case) -> None:
        self.count = case.clusters
        self.passes = 0
        if isinstance(case, WeightCase):
            self._similarity: Similarity = read_similarity(plant(case).weight, "abs")
            row_degrees, degrees = self._similarity.sums()
            self._row_weights: Tensor | None = inverse(row_degrees).float()
        else:
            adjacency, _ = block_model(case)
            self._similarity = read_similarity(as_matrix(adjacency, "adjacency"), "given")
            degrees, _ = self._similarity.sums()
            self._row_weights = None
        self.of_weight = self._row_weights is not None
        self._scale = inverse(degrees).sqrt().float()[:, None]
        self._first = degrees.sqrt().float()
        self.size = len(degrees)

    def product(self, block: Tensor) -> Tensor:
        self.passes += 1
        right = (block * self._scale).contiguous()
        # A block of any width takes one pass: the operators need full lanes.
        padded = torch.nn.functional.pad(right, (0, block_width(block.shape[1]) - block.shape[1]))
        forward, back = self._similarity.product(right=padded, row_weights=self._row_weights)
        image = forward if self._row_weights is None else back
        return image[:, : block.shape[1]] * self._scale

    def tolerance(self, values: Tensor) -> Tensor:
        """Return the residual that modfast allows for each eigenvalue."""
        return TOL * values if self.of_weight else torch.full_like(values, TOL)

    def start(self, width: int) -> Tensor:
        """Return the first eigenvector, which is known, and random vectors."""
        block = torch.randn(self.size, width, generator=torch.Generator().manual_seed(0))
        block[:, 0] = self._first
        return block / torch.linalg.vector_norm(block, dim=0)


class Outcome(NamedTuple):
    """What a solver needed, and what it found."""

    passes: int
    width: int  # of the blocks that were multiplied
    vectors: int  # of the matrix's length, in memory at once
    values: Tensor
    converged: bool


def krylov(problem: Problem, capacity: int) -> Outcome:
    """Run modfast's solver: a basis of ``capacity`` blocks, restarted with its better half."""
    width = block_width(problem.count)

    def product(block: Tensor, out: Tensor) -> None:
        out.copy_(problem.product(block))

    solution = largest_eigenvectors(
        product,
        torch.ones(problem.size),
        problem.start(width),
        problem.count,
        tolerance=lambda values: problem.tolerance(torch.from_numpy(values)).numpy(),
        max_products=MAX_PASSES,
        capacity=capacity * width,
        generator=torch.Generator().manual_seed(0),
    )
    # The basis, the block that is multiplied, and its product.
    vectors = (min(problem.passes, capacity) + 2) * width
    return Outcome(problem.passes, width, vectors, solution.values, solution.converged)


def rayleigh_ritz(problem: Problem, block: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Make one pass; return Ritz values, vectors, their products, and whether they have converged."""
    basis, _ = torch.linalg.qr(block)
    image = problem.product(basis)
    values, rotation = torch.linalg.eigh((basis.T @ image).double())
    values, rotation = values.flip(0), rotation.flip(1).float()
    basis, image = basis @ rotation, image @ rotation
    wanted = values[: problem.count]
    residuals = image[:, : problem.count] - basis[:, : problem.count] * wanted.float()
    lengths = torch.linalg.vector_norm(residuals, dim=0).double()
    return values, basis, image, bool((lengths <= problem.tolerance(wanted)).all())


def subspace(problem: Problem, guard: int = 8) -> Outcome:
    """Run block power iteration: a randomized SVD with as many power iterations as it takes."""
    width = block_width(problem.count) + guard
    block = problem.start(width)
    while True:
        values, _, block, converged = rayleigh_ritz(problem, block)
        if converged or problem.passes >= MAX_PASSES:
            return Outcome(problem.passes, width, 2 * width, values[: problem.count], converged)


def chebyshev(problem: Problem, degree: int, guard: int = 8) -> Outcome:
    """Run subspace iteration with a Chebyshev polynomial of the matrix in place of the matrix.

    The polynomial is small on the unwanted interval, from the least eigenvalue (0 for a weight, estimated by
    a few Lanczos steps for a graph) to the block's smallest Ritz value, which rises to where the wanted end.
    Source: Y. Zhou, Y. Saad, M. L. Tiago and J. R. Chelikowsky, "Self-consistent-field calculations using
    Chebyshev-filtered subspace iteration", J. Comput. Phys. 219, 2006.
    """
    width = block_width(problem.count) + guard
    low = 0.0 if problem.of_weight else least_eigenvalue(problem)
    values, block, image, converged = rayleigh_ritz(problem, problem.start(width))
    while not converged and problem.passes < MAX_PASSES:
        centre, half = float(values[-1] + low) / 2, max(float(values[-1] - low) / 2, 1e-6)
        # T_0 X and T_1 X of the interval mapped to [-1, 1]; the latter's product is known already.
        before, current = block, (image - centre * block) / half
        for _ in range(degree - 1):
            before, current = current, 2 / half * (problem.product(current) - centre * current) - before
            # The recurrence is linear: against overflow both may shrink.
            shrink = 1 / torch.linalg.vector_norm(current, dim=0).clamp(min=1.0)
            before, current = before * shrink, current * shrink
        values, block, image, converged = rayleigh_ritz(problem, current)
    return Outcome(problem.passes, width, 3 * width, values[: problem.count], converged)


def least_eigenvalue(problem: Problem, steps: int = 5) -> float:
    """Return a number that is usually below it: the least Ritz value of Lanczos steps, less the residual."""
    vector = torch.randn(problem.size, 1, generator=torch.Generator().manual_seed(1))
    basis = [vector / torch.linalg.vector_norm(vector)]
    small = torch.zeros(steps, steps, dtype=torch.float64)
    for step in range(steps):
        image = problem.product(basis[-1])
        for row, direction in enumerate(basis):
            small[row, step] = float((direction * image).sum())
            image = image - float(small[row, step]) * direction
        length = float(torch.linalg.vector_norm(image))
        basis.append(image / length)
    return float(torch.linalg.eigvalsh((small + small.T) / 2)[0]) - length


def locally_optimal(problem: Problem, guard: int = 8) -> Outcome:
    """Run SciPy's LOBPCG until its history shows residuals as small as the others'."""
    width = block_width(problem.count) + guard

    def multiply(block: Any) -> Any:
        return problem.product(torch.from_numpy(np.ascontiguousarray(block))).numpy()

    operator = LinearOperator((problem.size,) * 2, matvec=multiply, matmat=multiply, dtype=np.float32)
    with warnings.catch_warnings():
        # LOBPCG has one tolerance for all vectors, which guard vectors and float32 may not reach.
        warnings.simplefilter("ignore", UserWarning)
        _, _, values, lengths = lobpcg(
            operator,
            problem.start(width).numpy(),
            tol=1e-5,
            maxiter=MAX_PASSES,
            largest=True,
            retLambdaHistory=True,
            retResidualNormsHistory=True,
        )
    # The first entry is known after the first pass, each other after one more. LOBPCG holds the vectors,
    # their residuals and the last directions, and the products of all three.
    for passes, entry in enumerate(zip(values, lengths, strict=False), start=1):
        wanted, residuals = (torch.as_tensor(np.asarray(part)[: problem.count]).double() for part in entry)
        if bool((residuals <= problem.tolerance(wanted)).all()):
            return Outcome(passes, width, 6 * width, wanted, True)
    return Outcome(problem.passes, width, 6 * width, wanted, False)


# modfast's basis has from 4 blocks, for most graphs, to 12, depending on the matrix. The other solvers get a
# few more vectors than are wanted, which helps them.
SOLVERS: dict[str, Callable[[Problem], Outcome]] = {
    "Krylov, 12 blocks": partial(krylov, capacity=12),
    "Krylov, 4 blocks": partial(krylov, capacity=4),
    "Chebyshev, degree 3": partial(chebyshev, degree=3),
    "Chebyshev, degree 8": partial(chebyshev, degree=8),
    "block power": subspace,
    "LOBPCG": partial(locally_optimal, guard=0),
    "LOBPCG, 8 more": locally_optimal,
}
HEADINGS = ["matrix", *SOLVERS]
CAPTION = (
    f"Passes over the matrix until all residuals are at most {TOL:g} of the eigenvalue (graph: of 1), times "
    "the vectors that are multiplied at once; and the memory that the solver's vectors take."
)


def told(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    if not outcome.converged:
        return {"converged": False, "passes": outcome.passes}
    megabytes = 4 * problem.size * outcome.vectors / 1e6
    return {
        "converged": True, "passes": outcome.passes, "width": outcome.width, "megabytes": megabytes
    }  # fmt: skip


def cell(result: dict[str, Any]) -> str:
    if not result["converged"]:
        return f"not in {result['passes']}"
    return f"{result['passes']} x {result['width']}, {result['megabytes']:.2f} MB"


def rows_of(report: dict[str, Any]) -> list[list[str]]:
    return [[each["case"], *(cell(each["solvers"][name]) for name in SOLVERS)] for each in report["results"]]


def markdown(report: dict[str, Any]) -> str:
    """Return what a page shows of a report."""
    return f"{as_markdown(HEADINGS, rows_of(report))}\n\n{CAPTION}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases",
        nargs="+",
        type=as_cases,
        default=[CASES],
        metavar="CASE",
        help="weights, graphs, for example 2048x512x4 for a weight, 2000x8 for a graph",
    )
    add_page_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, "solvers")
    cases = [case for group in options.cases for case in group]
    report: dict[str, Any] = {**what_times_depend_on(), "results": []}
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        for case in cases:
            task = progress.add_task(str(case), total=len(SOLVERS))
            results = {}
            for name, solve in SOLVERS.items():
                problem = Problem(case)
                results[name] = told(problem, solve(problem))
                progress.update(task, advance=1, refresh=True)
            report["results"].append({"case": str(case), "solvers": results})
    show("Passes of eigensolvers", CAPTION, HEADINGS, rows_of(report))
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, "solvers", markdown(report))


if __name__ == "__main__":
    main()
