"""What a model does with clusters of units on or off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import OneOf, check, check_callback
from modfast.batches import Batches
from modfast.metrics import Metric
from modfast.network.units import Network
from modfast.partition import Labels

from .evaluation import Evaluation
from .several import metrics_of

MODES = ("without", "only")


def cluster_ablation(
    model: nn.Module,
    batches: Batches,
    metric: Metric,
    network: Network,
    labels: Labels | int,
    mode: str = "without",
    *,
    spaces: Iterable[str] | str | None = None,
    ablation: str = "zero",
    reference: Batches = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the metric with each cluster of units ablated, or with all but one ablated.

    Units outside ``spaces`` are never ablated, whatever their label. For classes and the layers' own clusters
    see :func:`cluster_accuracy`.

    Args:
        model: as for :func:`unit_scores`; it runs in evaluation mode and is not changed.
        batches: as for :func:`unit_scores`; iterated once for each cluster: each time they must be the same.
        metric: as for :func:`unit_scores`, but it need not have a gradient.
        network: the units.
        labels: ``(num_units,)`` integers, the cluster of each unit, -1 for "in no cluster": the labels of
            :func:`spectral_cluster` of :meth:`Network.graph`, for example. Or a number of clusters, of which
            each is a contiguous block of each space, as for :meth:`Network.partitions`.
        mode: ``"without"`` ablates one cluster: choose it to see what the model needs. ``"only"`` ablates
            all other units of ``spaces``, those in no cluster too: choose it to see what a cluster can do
            alone.
        spaces: names or globs of the spaces whose units may be ablated, as for :func:`unit_scores`; None
            takes neurons, heads and channels.
        ablation: as for :func:`ablate_units`.
        reference: as for :func:`unit_scores`.
        progress: called with the number of clusters done so far, and of all. Many run at once.

    Returns:
        float64, ``(k,)``, with k the largest label + 1. Without an empty cluster the metric is that of the
        whole model; with an empty cluster only, that of all units ablated.

    Raises:
        ValueError: labels are not one integer, -1 or above, for each unit, or no unit of ``spaces`` is in a
            cluster; the mode is unknown; or what :func:`unit_scores` raises.
        TypeError: as for :func:`unit_scores`.

    Warns:
        UserWarning: as :func:`faithfulness_curve`.

    Example:
        >>> from modfast import read_network
        >>> model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False))
        >>> model[0].weight.data = torch.ones(4, 2)
        >>> model[1].weight.data = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> metric = lambda output, batch: output.mean()
        >>> cluster_ablation(model, torch.ones(1, 2), metric, network, 2)
        tensor([12.,  4.], dtype=torch.float64)
        >>> cluster_ablation(model, torch.ones(1, 2), metric, network, 2, "only")
        tensor([ 4., 12.], dtype=torch.float64)
    """
    check("mode", mode, OneOf(MODES))
    check_callback("progress", progress)
    task = Evaluation(model, batches, metric, network, ablation=ablation, reference=reference, spaces=spaces)
    clusters = Clusters(task, labels)

    def sets() -> Iterator[Tensor]:
        for cluster in range(clusters.number):
            members = clusters.labels == cluster
            yield members if mode == "without" else task.asked & ~members

    def note(done: int) -> None:
        if progress is not None:
            progress(done, clusters.number)

    return metrics_of(task, sets(), clusters.number, note)


class Clusters:
    """Clusters of the units that may be ablated.

    Args:
        task: says which units these are.
        labels: as for :func:`cluster_ablation`.

    Attributes:
        labels: int64, ``(num_units,)``; -1 for units in no cluster, and for those that may not be ablated.
        number: the number of clusters.

    Raises:
        ValueError: as for :func:`cluster_ablation`.
    """

    def __init__(self, task: Evaluation, labels: Labels | int) -> None:
        given, self.number = task.network.unit_labels(labels)
        if self.number > len(given):
            # Each cluster costs a pass, empty ones too: such a label is a slip.
            raise ValueError(
                f"labels must make at most as many clusters as there are units, {len(given)}, got "
                f"{self.number} (the largest label + 1)"
            )
        self.labels = given.where(task.asked, -1)
        self.spaces = task.network.spaces
        if not bool((self.labels >= 0).any()):
            raise ValueError(
                f"labels must put at least one of the {int(task.asked.sum())} units that may be ablated into "
                "a cluster, all are -1"
            )

    def draws(self, n_random: int, seed: int) -> Iterator[Tensor]:
        """Yield the labels of the clusters themselves, then of random ones of the same sizes."""
        generator = np.random.default_rng(seed)
        yield self.labels
        for _ in range(n_random):
            yield self.shuffled(generator)

    def shuffled(self, generator: np.random.Generator) -> Tensor:
        """Return random clusters of the same sizes in each space, as labels.

        The labels of a space's units are permuted; units in no cluster stay in none.
        """
        labels = self.labels.clone()
        for space in self.spaces.values():
            members = (labels[space] >= 0).nonzero().flatten() + space.start
            labels[members] = labels[members[torch.from_numpy(generator.permutation(len(members)))]]
        return labels
