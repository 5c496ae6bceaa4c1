"""For how many clusters of units the answer to each example depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from modfast.arguments import Integer, check, check_callback
from modfast.batches import Batches
from modfast.display import html_table
from modfast.metrics import Metric
from modfast.network.units import Network
from modfast.partition import Labels

from .clusters import Clusters
from .evaluation import Evaluation
from .several import per_example_of

_MOST_SHARES = 7


@dataclass(frozen=True, eq=False, repr=False)
class ClusterDependence:
    """How many of k clusters each answer depends on.

    An answer depends on a cluster if it is right with the whole model, and wrong with that cluster alone
    ablated. Examples that the whole model gets wrong are left out.

    Attributes:
        right: bool, ``(n,)``: the examples that the whole model gets right, m of them.
        needed: bool, ``(m, k)``: whether each of these depends on each cluster.
        random_shares: float64, ``(n_random, k + 1)``: :attr:`shares` of random clusters, of the same sizes in
            each space.
        ablation: ``"zero"``, ``"mean"`` or ``"resample"``.
        num_passes: how often the examples went through the model.
        seed: of the random clusters.
    """

    right: Tensor
    needed: Tensor
    random_shares: Tensor
    ablation: str
    num_passes: int
    seed: int

    def __repr__(self) -> str:
        k, sets = self.needed.shape[1], len(self.random_shares)
        lines = [
            f"ClusterDependence({len(self.needed)} of {len(self.right)} examples right, {k} clusters, "
            f"{self.ablation} ablation)",
            f"  an answer depends on {self.mean:.2f} clusters on average"
            + (f", and on {self.random_mean:.2f} random clusters ({sets} sets)" if sets else ""),
        ]
        low, high = self.random_interval
        for count in range(min(k + 1, _MOST_SHARES)):
            beside = f"   random: {float(low[count]):.3f} to {float(high[count]):.3f}" if sets else ""
            lines.append(f"  {count}: {float(self.shares[count]):.3f}{beside}")
        if k + 1 > _MOST_SHARES:
            lines.append(f"  {_MOST_SHARES} and more: {float(self.shares[_MOST_SHARES:].sum()):.3f}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        low, high = self.random_interval.tolist()
        has = len(self.random_shares) > 0
        rows = [
            [count, share, *((low[count], high[count]) if has else (None, None))]
            for count, share in enumerate(self.shares.tolist())
        ]
        title = " ".join(repr(self).split("\n")[:2])
        headings = ("clusters needed", "share of answers", "random, 2.5 %", "random, 97.5 %")
        return html_table(title, headings, rows)

    @property
    def counts(self) -> Tensor:
        """int64, ``(m,)``: the number of clusters that each right answer depends on."""
        return self.needed.sum(1)

    @property
    def shares(self) -> Tensor:
        """float64, ``(k + 1,)``: the share of right answers that depend on 0, 1, ..., k clusters."""
        return shares_of(self.needed)

    @property
    def mean(self) -> float:
        """The mean number of clusters that a right answer depends on."""
        return float(self.counts.double().mean())

    @property
    def random_mean(self) -> float:
        """The mean of :attr:`mean` over random clusters; NaN if there are none."""
        numbers = torch.arange(self.random_shares.shape[1], dtype=torch.float64, device="cpu")
        return float((self.random_shares @ numbers).mean())

    @property
    def random_mean_shares(self) -> Tensor:
        """float64, ``(k + 1,)``: the mean of ``random_shares``; NaN if there are none."""
        return self.random_shares.mean(0)

    @property
    def random_interval(self) -> Tensor:
        """float64, ``(2, k + 1)``: the 2.5 % and 97.5 % quantiles of ``random_shares``; NaN without any.

        Quantiles between two values are interpolated; with 20 sets of random clusters these are close to the
        least and the largest.
        """
        if not len(self.random_shares):
            return self.random_shares.new_full((2, self.random_shares.shape[1]), torch.nan)
        return self.random_shares.quantile(self.random_shares.new_tensor([0.025, 0.975]), dim=0)


def cluster_dependence(
    model: nn.Module,
    batches: Batches,
    metric: Metric,
    network: Network,
    labels: Labels | int,
    *,
    n_random: int = 20,
    seed: int = 0,
    spaces: Iterable[str] | str | None = None,
    ablation: str = "zero",
    reference: Batches = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClusterDependence:
    """Return for each example that the model gets right how many clusters its answer depends on.

    In a modular model one expects answers that depend on few clusters. Any clusters give some numbers, small
    clusters smaller ones: compare with random clusters of the same sizes.

    This is the corrected form of a published measure. That one zeroes four contiguous quarters of an MLP's
    hidden neurons, and counts how many each answer needs. But its quarters end where the trained
    clusters do not (256 wide, where the clusters have 768 or 512 neurons), so that three of the four lie
    inside one cluster; and it has nothing to compare with. Here the clusters are those that you give. To
    reproduce it, give its borders as labels, with -1 for the neurons in none of its slices.

    Args:
        model: as for :func:`cluster_ablation`.
        batches: as for :func:`cluster_ablation`.
        metric: returns for each example 1 if the answer is right, else 0, as :func:`modfast.accuracy`
            does.
        network: the units.
        labels: as for :func:`cluster_ablation`.
        n_random: the number of sets of random clusters. Each costs a pass over the examples for each cluster.
            In each space the labels of the units that may be ablated and are in a cluster are permuted.
        seed: seeds the random clusters.
        spaces: as for :func:`cluster_ablation`.
        ablation: as for :func:`ablate_units`.
        reference: as for :func:`unit_scores`.
        progress: called with the number of passes over the examples so far, and of all. Many run at once.

    Returns:
        The :class:`ClusterDependence`.

    Raises:
        ValueError: the metric is not 0 or 1 for each example, or the whole model gets no example right;
            ``n_random`` or ``seed`` is negative; or what :func:`cluster_ablation` raises.
        TypeError: as for :func:`cluster_ablation`.

    Warns:
        UserWarning: as :func:`faithfulness_curve`.

    Source: per-sample dependence on modules in the public code of arXiv 2409.15747.

    Example:
        >>> from modfast import accuracy, read_network
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> for layer in model:
        ...     layer.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> inputs, targets = torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([0, 1])
        >>> cluster_dependence(model, (inputs, targets), accuracy, network, 2).shares
        tensor([0., 1., 0.], dtype=torch.float64)
    """
    check("n_random", n_random, Integer(0))
    check("seed", seed, Integer(0))
    check_callback("progress", progress)
    task = Evaluation(model, batches, metric, network, ablation=ablation, reference=reference, spaces=spaces)
    clusters = Clusters(task, labels)
    k, total = clusters.number, clusters.number * (1 + n_random)

    def note(done: int) -> None:
        if progress is not None:
            progress(1 + done, 1 + total)

    def sets() -> Iterator[Tensor]:
        for of_units in clusters.draws(n_random, seed):
            yield from (of_units == cluster for cluster in range(k))

    right = _answers(task.per_example(torch.zeros_like(task.asked)))
    if not bool(right.any()):
        raise ValueError("metric is 0 for all examples: the whole model gets none right, so none can depend")
    note(0)
    wrong = (~_answers(found)[right] for found in per_example_of(task, sets(), total, note))
    own = torch.stack(list(islice(wrong, k)), dim=1)
    others = [shares_of(torch.stack(list(islice(wrong, k)), dim=1)) for _ in range(n_random)]
    none = torch.empty(0, k + 1, dtype=torch.float64, device="cpu")
    return ClusterDependence(
        right=right,
        needed=own,
        random_shares=torch.stack(others) if others else none,
        ablation=ablation,
        num_passes=task.num_passes,
        seed=int(seed),
    )


def _answers(found: Tensor) -> Tensor:
    """Which answers are right, from a metric of 0 or 1."""
    other = found[(found != 0) & (found != 1)]
    if len(other):
        raise ValueError(
            f"metric must be 1 for each right answer and 0 for each wrong one, got {float(other[0])}"
        )
    return found == 1


def shares_of(needed: Tensor) -> Tensor:
    """The share of rows with 0, 1, ..., k True among their k, float64 ``(k + 1,)``."""
    counts = needed.sum(1).bincount(minlength=needed.shape[1] + 1)
    return counts.double() / len(needed)
