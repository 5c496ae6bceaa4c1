"""How important and how coherent clusters of units are: lesions, beside those of random clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modfast.arguments import Flag, Integer, check, check_callback
from modfast.arrays import as_tensor, require_numbers, to_int64
from modfast.batches import Batches, inputs_of, num_examples, targets_of
from modfast.display import html_table
from modfast.metrics import Metric
from modfast.network.units import Network
from modfast.partition import Labels

from .clusters import Clusters
from .evaluation import Evaluation
from .greedy import least_metric
from .several import per_example_of

_LEAST_UNITS, _LARGEST_SHARE = 2, 0.99


@dataclass(frozen=True, eq=False, repr=False)
class ClusterLesions:
    """What ablating each of p parts (clusters, or their units in one space) does, beside random parts.

    **Importance** of a part is how much the metric falls without it, mean over classes. **Coherence** is how
    unevenly it falls: the largest fall of a class less the smallest, divided by the absolute value of their
    mean. A part that serves one class alone is coherent, one that serves all alike is not.

    Each has, beside ``n_random`` random parts of the same size in each space: a p-value, the share of parts,
    the own one among them, whose value is at least that of the part; and an effect, ``2 v / (v + r)`` with v
    the part's value and r the mean of the random ones: 1 is chance, 2 the most. Values that differ by no more
    than rounding are equal, and what changes by no more than rounding does not change.

    Attributes:
        clusters: int64, ``(p,)``: the cluster of each part.
        spaces: for each part its space, or None if it is the whole cluster.
        sizes: int64, ``(p,)``: the number of units that were ablated.
        tested: bool, ``(p,)``: the parts of at least 2 units and at most 99 % of the units in clusters of
            their spaces. Others differ little or not at all from random ones, and are left out of the
            combined p-values.
        classes: int64, ``(c,)``: the classes, ascending.
        class_drops: float64, ``(p, c)``: how much the mean metric of each class falls.
        random_class_drops: float64, ``(n_random, p, c)``.
        metric_before: the metric of the whole model, mean over classes.
        rounding: falls that differ by no more than this are equal, as in :func:`find_unit_circuit`.
        ablation: ``"zero"``, ``"mean"`` or ``"resample"``.
        num_examples: the number of examples.
        num_passes: how often these examples went through the model.
        seed: of the random parts.

    Source: "Quantifying Local Specialization in Deep Neural Networks" (arXiv 2110.08058) and its public code,
    for the accuracy of classes, and parts by layers. What differs: there a random part that is exactly as
    important does not count, so that a cluster that does nothing, as random ones do, gets the smallest
    p-value; here ties count, as in the source that the code names (North et al. 2002). There the effect is 0
    where the part or the random ones have no fall; here falls below 0 count as 0, so that the effect is 2
    where only the part has one, and NaN where neither has.
    """

    clusters: Tensor
    spaces: tuple[str | None, ...]
    sizes: Tensor
    tested: Tensor
    classes: Tensor
    class_drops: Tensor
    random_class_drops: Tensor
    metric_before: float
    rounding: float
    ablation: str
    num_examples: int
    num_passes: int
    seed: int

    def __repr__(self) -> str:
        lines = [
            f"ClusterLesions({len(self.clusters)} parts, {int(self.tested.sum())} tested, "
            f"{len(self.classes)} classes, {self.ablation} ablation)",
        ]
        for name, effect, combined in (
            ("importance", self.importance_effect, self.importance_combined_p),
            ("coherence", self.coherence_effect, self.coherence_combined_p),
        ):
            mean = float(effect[self.tested].nanmean())
            lines.append(f"  {name}: effect {mean:.2f} (1 is chance), combined p {combined:.2g}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        columns = [
            self.clusters.tolist(),
            ["(all)" if space is None else space for space in self.spaces],
            self.sizes.tolist(),
            self.importance.tolist(),
            self.importance_p.tolist(),
            self.coherence.tolist(),
            self.coherence_p.tolist(),
        ]
        headings = ("cluster", "space", "units", "importance", "p", "coherence", "p")
        return html_table(" ".join(repr(self).split()), headings, zip(*columns, strict=True))

    @property
    def importance(self) -> Tensor:
        """float64, ``(p,)``: how much the metric falls, mean over classes."""
        return self.class_drops.mean(-1)

    @property
    def random_importance(self) -> Tensor:
        """float64, ``(n_random, p)``."""
        return self.random_class_drops.mean(-1)

    @property
    def coherence(self) -> Tensor:
        """float64, ``(p,)``: the range of the classes' falls divided by their absolute mean.

        NaN for one class alone, or if no class changes; infinite if the changes cancel out.
        """
        return _unevenness(self.class_drops, self.rounding)

    @property
    def random_coherence(self) -> Tensor:
        """float64, ``(n_random, p)``."""
        return _unevenness(self.random_class_drops, self.rounding)

    @property
    def importance_p(self) -> Tensor:
        """float64, ``(p,)``: one-sided, ``(1 + n) / (1 + n_random)`` if n random parts are as important."""
        return _p_values(self.importance, self.random_importance, self.rounding)

    @property
    def coherence_p(self) -> Tensor:
        """float64, ``(p,)``: the same for coherence; random parts whose coherence is NaN are left out.

        NaN where the part's own is NaN.
        """
        # How far rounding of the falls moves their range divided by their mean.
        mean = self.importance.abs()
        return _p_values(self.coherence, self.random_coherence, self.rounding * (2 + self.coherence) / mean)

    @property
    def importance_effect(self) -> Tensor:
        """float64, ``(p,)``, in [0, 2]: 1 for a part as important as random ones; NaN if none has a fall."""
        return _effects(self.importance, self.random_importance, self.rounding)

    @property
    def coherence_effect(self) -> Tensor:
        """float64, ``(p,)``, in [0, 2]: 1 for a part as coherent as random ones; NaN if undefined."""
        return _effects(self.coherence, self.random_coherence, 0.0)

    @property
    def importance_combined_p(self) -> float:
        """One p-value for all tested parts, by Fisher's method; NaN if none was tested.

        As in the source, each p-value counts as the middle of the interval that it may lie in, ``p - 1 /
        (2 (1 + n_random))``. The method takes the parts as independent, which those of one space are not
        quite: read it as a summary.
        """
        return self._combined(self.importance_p)

    @property
    def coherence_combined_p(self) -> float:
        """As :attr:`importance_combined_p`; parts whose coherence is NaN are left out."""
        return self._combined(self.coherence_p)

    def _combined(self, p_values: Tensor) -> float:
        chosen = p_values[self.tested & ~p_values.isnan()]
        if not len(chosen):
            return math.nan
        middle = chosen - 0.5 / (1 + len(self.random_class_drops))
        # Minus twice the sum of logarithms is chi-squared, with two degrees of freedom for each.
        half = -middle.log().sum()
        return float(torch.special.gammaincc(half.new_tensor(float(len(chosen))), half))


def _unevenness(drops: Tensor, rounding: float) -> Tensor:
    if drops.shape[-1] < 2:
        return drops.new_full(drops.shape[:-1], torch.nan)
    spread, mean = drops.amax(-1) - drops.amin(-1), drops.mean(-1).abs()
    # Noise divided by noise would be a coherence of any size.
    spread, mean = (each.where(each > rounding, 0.0) for each in (spread, mean))
    return spread / mean


def _p_values(own: Tensor, others: Tensor, slack: Tensor | float) -> Tensor:
    known = ~others.isnan()
    # Without a limit an infinite value would have one of its own, and be compared with NaN.
    least = (own - slack).where(own.isfinite(), own)
    p_values = (1 + (others >= least).sum(0)).double() / (1 + known.sum(0))
    return p_values.where(~own.isnan(), torch.nan)


def _effects(own: Tensor, others: Tensor, rounding: float) -> Tensor:
    value, chance = (each.where((each > rounding) | each.isnan(), 0.0) for each in (own, others.nanmean(0)))
    # Two infinite values compare with nothing: NaN.
    return 2 / (1 + chance / value)


def cluster_lesions(
    model: nn.Module,
    batches: Batches,
    metric: Metric,
    network: Network,
    labels: Labels | int,
    *,
    classes: Tensor | Iterable[int] | None = None,
    by_space: bool = True,
    n_random: int = 19,
    seed: int = 0,
    spaces: Iterable[str] | str | None = None,
    ablation: str = "zero",
    reference: Batches = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClusterLesions:
    """Return how important and how coherent clusters of units are, beside random clusters of the same sizes.

    Choose it to ask whether a clustering means something for what the model does: important clusters do more
    than as many random units, coherent ones serve some classes more than others. :func:`cluster_ablation`
    is the plain metric without each cluster; :func:`cluster_dependence` looks at single answers.

    Args:
        model: as for :func:`cluster_ablation`.
        batches: as for :func:`cluster_ablation`.
        metric: returns one number per example, higher is better; :func:`modfast.accuracy` gives the
            published measures.
        network: the units.
        labels: as for :func:`cluster_ablation`.
        classes: ``(n,)`` integers, the class of each example, in the order of the batches. None takes the
            targets of the batches. With one class for all there is importance, but no coherence.
        by_space: True lesions the units of a cluster in one space at a time, as the source does: choose it to
            look at layers one by one. False lesions whole clusters; choose it for clusters that reach
            through layers. Parts without units are left out.
        n_random: the number of random clusterings, at least 1; each costs a pass over the examples for each
            part. No p-value is below ``1 / (1 + n_random)``.
        seed: seeds the random clusterings: in each space the labels of the units that may be ablated and are
            in a cluster are permuted.
        spaces: as for :func:`cluster_ablation`.
        ablation: as for :func:`ablate_units`; the source zeroes.
        reference: as for :func:`unit_scores`.
        progress: called with the number of passes over the examples so far, and of all. Many run at once.

    Returns:
        The :class:`ClusterLesions`.

    Raises:
        ValueError: the metric returns one number for several examples; classes are not one integer for each
            example, or None where the batches have no such targets; ``n_random`` is below 1 or ``seed``
            negative; or what :func:`cluster_ablation` raises.
        TypeError: as for :func:`cluster_ablation`.

    Warns:
        UserWarning: as :func:`faithfulness_curve`.

    Source: "Quantifying Local Specialization in Deep Neural Networks" (arXiv 2110.08058).

    Example:
        >>> from modfast import accuracy, read_network
        >>> model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False))
        >>> model[0].weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> model[1].weight.data = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> batch = torch.tensor([[1.0, 0.75], [0.75, 1.0]]), torch.tensor([0, 1])
        >>> lesions = cluster_lesions(model, batch, accuracy, network, 2)
        >>> lesions.importance, lesions.class_drops
        (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64))
    """
    check("n_random", n_random, Integer(1))
    check("seed", seed, Integer(0))
    check("by_space", by_space, Flag())
    check_callback("progress", progress)
    task = Evaluation(model, batches, metric, network, ablation=ablation, reference=reference, spaces=spaces)
    clusters = Clusters(task, labels)
    values, index = _classes(task, classes).unique(return_inverse=True)
    parts = _parts(clusters, network, by_space)
    total = len(parts) * (1 + n_random)

    def note(done: int) -> None:
        if progress is not None:
            progress(1 + done, 1 + total)

    def sets() -> Iterator[Tensor]:
        for of_units in clusters.draws(n_random, seed):
            yield from (part.members(of_units) for part in parts)

    def class_means(found: Tensor) -> Tensor:
        means: Tensor = index.bincount(found) / index.bincount()
        return means

    whole = task.per_example(torch.zeros_like(task.asked))
    if len(whole) != len(index):
        raise ValueError(f"classes must be {len(whole)}, one for each example, got {len(index)}")
    before = class_means(whole)
    note(0)
    falls = (before - class_means(found) for found in per_example_of(task, sets(), total, note))
    largest = float(before.abs().max())
    rounding = largest - least_metric(largest, 0.0, task.dtype)
    drops = [each.where(each.abs() > rounding, 0.0) for each in falls]
    own, others = drops[: len(parts)], torch.stack(drops[len(parts) :])
    sizes = torch.tensor([int(part.members(clusters.labels).sum()) for part in parts], device="cpu")
    pools = torch.tensor([part.pool(clusters.labels) for part in parts], device="cpu")
    return ClusterLesions(
        clusters=torch.tensor([part.cluster for part in parts], dtype=torch.int64, device="cpu"),
        spaces=tuple(part.space for part in parts),
        sizes=sizes,
        tested=(sizes >= _LEAST_UNITS) & (sizes <= _LARGEST_SHARE * pools),
        classes=values,
        class_drops=torch.stack(own),
        random_class_drops=others.reshape(n_random, len(parts), -1),
        metric_before=float(before.mean()),
        rounding=rounding,
        ablation=ablation,
        num_examples=task.num_examples,
        num_passes=task.num_passes,
        seed=int(seed),
    )


@dataclass(frozen=True)
class _Part:
    """The units of a cluster, in one space or in all."""

    cluster: int
    space: str | None
    ranges: tuple[slice, ...]

    def members(self, labels: Tensor) -> Tensor:
        chosen = torch.zeros_like(labels, dtype=torch.bool)
        for space in self.ranges:
            chosen[space] = labels[space] == self.cluster
        return chosen

    def pool(self, labels: Tensor) -> int:
        """The number of units that random parts are drawn from."""
        return sum(int((labels[space] >= 0).sum()) for space in self.ranges)


def _parts(clusters: Clusters, network: Network, by_space: bool) -> list[_Part]:
    parts = []
    for cluster in range(clusters.number):
        held = {
            name: space
            for name, space in network.spaces.items()
            if bool((clusters.labels[space] == cluster).any())
        }
        if by_space:
            parts += [_Part(cluster, name, (space,)) for name, space in held.items()]
        elif held:
            parts.append(_Part(cluster, None, tuple(held.values())))
    return parts


def _classes(task: Evaluation, classes: Any) -> Tensor:
    if classes is not None:
        return _integers("classes", as_tensor("classes", classes))
    found = []
    for batch, _ in task.examples():
        targets, size = targets_of(batch), num_examples(inputs_of(batch), "batches")
        if not isinstance(targets, Tensor) or targets.shape != (size,):
            got = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(
                f"classes must be given, or batches have targets, one integer for each of {size} examples, "
                f"got {got}"
            )
        found.append(_integers("batches: targets", targets))
    return torch.cat(found)


def _integers(name: str, values: Tensor) -> Tensor:
    require_numbers(name, values)
    if values.dim() != 1 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be 1-D integers, got shape {tuple(values.shape)}, {values.dtype}")
    return to_int64(name, values.detach().cpu())
