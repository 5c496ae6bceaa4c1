"""How many clusters a weight or a network has: the largest gap between its singular values or eigenvalues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modfast.arguments import SEED, Integer, Number, OneOf, check, check_callback
from modfast.display import html_table
from modfast.network.units import Network

from .clustering import read_graph
from .embedding import embed_graph, singular_vectors
from .matrices import as_matrix
from .shuffling import shuffle
from .similarity import read_similarity
from .solver import warn_unless

_MAX_ITER = 100

# Values that are equal, such as those of clusters without edges between them, come out with differences of up
# to about 1e-6: gaps that differ by less than this are taken as equal.
GAP_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Eigengap:
    """The singular values of a weight, the gaps between them, and those of the same weights shuffled.

    Made by :func:`eigengap`. Of a network the values are the eigenvalues of its graph.

    Attributes:
        values: float64, ``(m,)``, descending: the singular values, or eigenvalues. The first is 1.
        shuffled_values: float64, ``(shuffles, m)``: the same for each shuffle of the weights.

    Raises:
        ValueError: they have other shapes, there are fewer than 3 values, or one is not finite.
        TypeError: they are no tensors of float64.
    """

    values: Tensor
    shuffled_values: Tensor

    def __post_init__(self) -> None:
        for name, dim, shape in (("values", 1, "(m,)"), ("shuffled_values", 2, "(shuffles, m)")):
            given = getattr(self, name)
            if not isinstance(given, Tensor) or given.dtype != torch.float64:
                got = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"{name} must be a tensor of torch.float64, got {got}")
            if given.dim() != dim or given.shape[-1] != len(self.values) or given.shape[-1] < 3:
                raise ValueError(
                    f"{name} must have shape {shape} with m of at least 3, the same for both, got "
                    f"{tuple(given.shape)}"
                )
            if not bool(given.isfinite().all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity in it")

    @property
    def gaps(self) -> Tensor:
        """float64, ``(m - 1,)``: ``gaps[k - 1]`` is the gap after the first ``k`` values."""
        return (-self.values.diff()).clamp(min=0.0) + 0.0  # -0.0 becomes 0.0

    @property
    def num_clusters(self) -> int:
        """The number of clusters that the largest gap stands for, from 2 on; the smallest if several do.

        Gaps that differ by less than 1e-5 count as equal, also in :attr:`p_value` and :attr:`supported`: the
        values are not more exact than that.
        """
        gaps = self.gaps[1:]
        return 2 + int((gaps >= gaps.max() - GAP_ROUNDING).nonzero()[0])

    @property
    def gap(self) -> float:
        """The largest gap, that after :attr:`num_clusters` values."""
        return float(self.gaps[self.num_clusters - 1])

    @property
    def shuffled_gaps(self) -> Tensor:
        """float64, ``(shuffles,)``: the largest gap of each shuffle, from 2 clusters on."""
        return (-self.shuffled_values[:, 1:].diff(dim=1)).amax(1).clamp(min=0.0)

    @property
    def p_value(self) -> float:
        """The share of gaps, the own one among them, that are at least the own one; NaN without shuffles.

        It is at least ``1 / (shuffles + 1)``: 0.05 for 19 shuffles.
        """
        shuffles = len(self.shuffled_values)
        if not shuffles:
            return float("nan")
        return (1 + int((self.shuffled_gaps > self.gap - GAP_ROUNDING).sum())) / (1 + shuffles)

    @property
    def supported(self) -> bool | None:
        """Whether the gap is larger than that of every shuffle; None without shuffles."""
        return (
            bool((self.shuffled_gaps <= self.gap - GAP_ROUNDING).all()) if len(self.shuffled_values) else None
        )

    def _verdict(self) -> str:
        if self.supported is None:
            return "not compared with shuffled weights"
        count, most = len(self.shuffled_values), float(self.shuffled_gaps.max())
        word = "supported" if self.supported else "not supported"
        had = "1 shuffle has a gap" if count == 1 else f"{count} shuffles have gaps"
        return f"{word}: {had} of at most {most:.4f} (p = {self.p_value:.2g})"

    def __repr__(self) -> str:
        return (
            f"Eigengap({self.num_clusters} clusters: the gap {self.gap:.4f} is the largest of "
            f"{len(self.values) - 2})\n  {self._verdict()}"
        )

    def _repr_html_(self) -> str:
        gaps = self.gaps.tolist()
        others = (
            self.shuffled_values.diff(dim=1).neg().amax(0).clamp(min=0.0).tolist()
            if len(self.shuffled_values)
            else []
        )
        rows = [
            [number, value, *(each[number - 1] if number <= len(each) else None for each in (gaps, others))]
            for number, value in enumerate(self.values.tolist(), 1)
        ]
        headings = ("number", "value", "gap after it", "largest of shuffles")
        return html_table(" ".join(repr(self).split()), headings, rows)


def eigengap(
    weight: Any,
    max_clusters: int = 20,
    *,
    affinity: str = "abs",
    shuffles: int = 19,
    tol: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Eigengap:
    """Find how many clusters a weight or a network has, and whether its weights support that number.

    The number of clusters is where the singular values ``s_1 = 1 >= s_2 >= ...`` of
    ``D_row^-1/2 A D_col^-1/2`` fall most, ``A`` being the similarity and ``D`` its row and column sums. ``k``
    clusters without edges between them have ``s_k = 1``, and ``s_(k+1) < 1`` if each is connected. Some gap
    is always the largest, in any weights: so the gap is compared with the largest one of the same weights in
    random places. Without structure a gap exceeds those of all ``n`` shuffles with a probability of
    ``1 / (n + 1)``.

    Choose this before :func:`spectral_cocluster` or :func:`spectral_cluster`, which want a number of
    clusters. :func:`modfast.plot.eigengap` draws the result. To test one number of clusters that you have
    already, use :func:`shuffle_test`.

    Args:
        weight: ``(out, in, *kernel)``, a dense tensor of any real dtype, or a NumPy array. Or a
            :class:`Network`, whose units are clustered through all layers: then the values are the
            eigenvalues of its graph, and each layer's weights are shuffled within the layer.
        max_clusters: the largest number of clusters to consider, at least 2. A weight with fewer rows or
            columns than that has fewer values, and fewer numbers are considered.
        affinity: how a weight becomes a similarity, as for :func:`spectral_cocluster`: ``"abs"``,
            ``"square"``, or, for a weight, ``"given"``.
        shuffles: how many times the weights are shuffled. 19 allow a p-value of 0.05; 0 skips the comparison.
        tol: the residual below which a value has converged. The default suits a choice; lower it for more
            exact values.
        seed: seeds the shuffles and the solver. With the same seed as ``modfast cluster`` the shuffles are
            the same.
        progress: called as ``progress(done, shuffles)`` after each shuffle.

    Returns:
        The :class:`Eigengap`, on the CPU, with ``.values``, ``.gaps``, ``.num_clusters``, ``.shuffled_gaps``,
        ``.p_value`` and ``.supported``.

    Raises:
        ValueError: fewer than 3 rows or columns have a weight that is not zero (of a network, fewer than 3
            units); the weight is not finite or, with ``"given"``, negative; another argument is out of range.
        TypeError: ``weight`` is sparse (give ``weight.to_dense()``), a ``DTensor``, or no numbers.

    Warns:
        ConvergenceWarning: the solver stopped before values converged.

    Source: Davis and Kahan (1970) and Wedin (1972): an error of size ``e`` in the matrix turns the space of
    the first ``k`` vectors by at most about ``e`` divided by the gap. The shuffles are those of
    "Clusterability in Neural Networks" (arXiv 2103.03386).

    Example:
        >>> weight = torch.block_diag(*[torch.ones(5, 4)] * 3) + 0.1
        >>> found = eigengap(weight)
        >>> found.num_clusters, found.supported
        (3, True)
        >>> found
        Eigengap(3 clusters: the gap 0.7692 is the largest of 10)
          supported: 19 shuffles have gaps of at most 0.1502 (p = 0.05)
    """
    check("max_clusters", max_clusters, Integer(2, 2**31 - 3))
    check("affinity", affinity, OneOf(("abs", "square") if isinstance(weight, Network) else _AFFINITIES))
    check("shuffles", shuffles, Integer(0, 2**31 - 2))
    check("tol", tol, Number(0, 1))
    check("seed", seed, SEED)
    check_callback("progress", progress)
    count = int(max_clusters) + 1
    options: dict[str, Any] = {"tol": float(tol), "seed": int(seed)}
    if isinstance(weight, Network):
        values = graph_eigenvalues(weight.graph(affinity=affinity), count, **options)
        others = (
            graph_eigenvalues(
                weight.changed_graph(shuffle(int(seed), number), affinity=affinity), count, **options
            )
            for number in range(shuffles)
        )
    else:
        matrix = as_matrix(weight, "weight")
        if not isinstance(matrix, Tensor):
            raise TypeError("weight must be dense, got a sparse matrix: give weight.to_dense()")
        values = singular_values(matrix, count, affinity, **options)
        others = (
            singular_values(each, count, affinity, **options)
            for each in shuffled_weights(matrix, int(shuffles), int(seed))
        )
    if len(values) < 3:
        what = "units that weights join" if isinstance(weight, Network) else "rows and columns with a weight"
        raise ValueError(f"weight must have at least 3 {what} other than 0, got {len(values)}")
    rows = []  # not one tensor from the beginning: memory is for the shuffles that are done
    for done, each in enumerate(others, 1):
        # A shuffle of few weights may leave fewer rows or columns with any: what is beyond them is 0.
        rows.append(torch.nn.functional.pad(each, (0, max(len(values) - len(each), 0)))[: len(values)])
        if progress is not None:
            progress(done, int(shuffles))
    return Eigengap(values, torch.stack(rows) if rows else values.new_empty((0, len(values))))


_AFFINITIES = ("abs", "square", "given")


def singular_values(matrix: Tensor, count: int, affinity: str, *, tol: float, seed: int) -> Tensor:
    """Return the largest singular values of a weight's normalised similarities.

    Args:
        matrix: the weight, dense.
        count: how many. Beyond the rows or columns that have a weight there are only zeros, which say
            nothing: they are left out.
        affinity: as for :func:`eigengap`.
        tol: as there.
        seed: as there.

    Returns:
        float64, descending, on the CPU.

    Example:
        >>> singular_values(torch.ones(3, 2), 5, "abs", tol=1e-3, seed=0).round().abs()
        tensor([1., 0.], dtype=torch.float64)
    """
    # The kernels need contiguous rows: a weight stored by columns is read as its transpose.
    by_columns = matrix.dim() == 2 and matrix.stride(0) == 1 != matrix.stride(1)
    similarity = read_similarity(matrix.T if by_columns else matrix, affinity)
    degrees = similarity.sums()
    count = min(count, *(int((of_side > 0).sum()) for of_side in degrees))
    if count == 0:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    found = singular_vectors(similarity, degrees, count, tol=tol, max_iter=_MAX_ITER, seed=seed)
    warn_unless(found.converged, found.passes, found.residuals)
    return found.values[:count].cpu().to(torch.float64)


def graph_eigenvalues(graph: Tensor, count: int, *, tol: float, seed: int) -> Tensor:
    """Return the largest eigenvalues of a graph's normalised similarities, as :func:`singular_values` does.

    Example:
        >>> graph_eigenvalues(torch.ones(3, 3), 1, tol=1e-3, seed=0).round()
        tensor([1.], dtype=torch.float64)
    """
    similarity, degrees = read_graph(graph)
    count = min(count, int((degrees > 0).sum()))
    if count == 0:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    found = embed_graph(similarity, degrees, count, tol=tol, max_iter=_MAX_ITER, seed=seed)
    warn_unless(found.converged, found.passes, found.residuals)
    return found.values[:count].cpu().to(torch.float64)


def shuffled_weights(weight: Tensor, shuffles: int, seed: int) -> Iterator[Tensor]:
    """Yield the same weights in random orders, those of a kernel together."""
    # Drawn on the CPU, so that the orders do not depend on the device.
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(shuffles):
        order = torch.randperm(weight.shape[0] * weight.shape[1], generator=generator, device="cpu")
        yield weight.flatten(0, 1)[order.to(weight.device)].view(weight.shape)


def gaps_after(values: Sequence[float], num_clusters: Sequence[int]) -> dict[int, float | None]:
    """Return ``s_k - s_(k+1)`` for each ``k``; None if the matrix has no ``s_(k+1)``.

    Example:
        >>> gaps_after([1.0, 0.75, 0.25], [1, 2, 3])
        {1: 0.25, 2: 0.5, 3: None}
    """
    # Any matrix has only zeros beyond its smaller side, so a gap to them would mean nothing.
    return {k: values[k - 1] - values[k] if k < len(values) else None for k in num_clusters}


def choose_count(gaps: Mapping[int, float | None]) -> int:
    """Return the ``k`` with the largest gap, the smallest if several do; the first ``k`` if none has a gap.

    Example:
        >>> choose_count({2: 0.1, 3: 0.5, 4: None})
        3
    """
    known = {k: gap for k, gap in gaps.items() if gap is not None}
    if not known:
        return next(iter(gaps))
    largest = max(known.values())
    return min(k for k, gap in known.items() if gap >= largest - GAP_ROUNDING)
