"""Clusters that training finds in its own network, after the plain epochs at the beginning."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from modfast.data.dataset import Dataset
from modfast.layers.layer import Layer, find_layer
from modfast.layers.running import evaluating
from modfast.network.affinity import gradient_affinity
from modfast.network.following import CannotFollowError
from modfast.network.reading import read_network
from modfast.network.units import Network
from modfast.partition import Partition
from modfast.spectral.clustering import spectral_cluster, spectral_cocluster

from .checkpoint import TrainingError
from .config import Run
from .distributed import Ranks

_FEW_IMAGES = 2


def check_clusters(run: Run, dataset: Dataset) -> None:
    """Raise if spectral clusters of these layers could not be found after the warm-up.

    Raises:
        ValueError: there are more clusters than rows or columns; or the layers are to be chained and have no
            units in common, or one is a convolution in groups; or the loss does not depend on a layer whose
            gradients are to be clustered.
    """
    for name, partition in run.partitions.items():
        if run.config.num_clusters > min(partition.shape):
            raise ValueError(
                f"num_clusters must be at most {min(partition.shape)} for layer {name!r}, "
                f"got {run.config.num_clusters}"
            )
    if run.config.chained:
        for layer in _network(run, dataset).layers.values():
            if layer.col_units.dim() > 1:  # they stand for other channels in each group of rows
                raise ValueError(
                    f"chained must be False for layer {layer.name!r}, a convolution in groups, got True"
                )
    if run.config.affinity == "gradients":
        few = replace(
            dataset,
            train_images=dataset.train_images[:_FEW_IMAGES],
            train_labels=dataset.train_labels[:_FEW_IMAGES],
        )
        with evaluating(run.model):
            for name in run.partitions:
                _similarity(run, few, find_layer(run.model, name, "layers"))


def find_clusters(run: Run, dataset: Dataset, ranks: Ranks) -> None:
    """Put spectral clusters of the weights as they are now in the place of the regularised layers' clusters.

    All processes have the same weights; the first one finds the clusters for all.

    Raises:
        TrainingError: nothing of a layer is in a cluster, since all that its clusters are found in is zero.
    """

    def labels() -> dict[str, list[list[int]]]:
        with evaluating(run.model):
            found = _chained(run, dataset) if run.config.chained else _layer_by_layer(run, dataset)
        for name, part in found.items():
            if bool((part.row_labels < 0).all()) or bool((part.col_labels < 0).all()):
                # The loss would be a constant, and the layer's clusterability a number about nothing.
                raise TrainingError(
                    f"layer {name!r} has no clusters after epoch {len(run.history)}: all its "
                    f"{run.config.affinity} are zero; fewer warmup_epochs (now {run.config.warmup_epochs}), "
                    f"another seed, or a smaller l1_weight (now {run.config.l1_weight}) may help"
                )
        return {name: [part.row_labels.tolist(), part.col_labels.tolist()] for name, part in found.items()}

    for name, (rows, cols) in ranks.first(labels).items():
        run.partitions[name] = Partition(rows, cols, run.config.num_clusters).to(run.device)
    run.measured |= run.partitions
    run.clustered = True


def _layer_by_layer(run: Run, dataset: Dataset) -> dict[str, Partition]:
    found = {}
    for name in run.partitions:
        similarity, affinity = _similarity(run, dataset, find_layer(run.model, name, "layers"))
        found[name] = spectral_cocluster(
            similarity, run.config.num_clusters, affinity=affinity, seed=run.config.seed
        )
    return found


def _chained(run: Run, dataset: Dataset) -> dict[str, Partition]:
    network = _network(run, dataset)
    graph = network.changed_graph(lambda layer, weight: _similarity(run, dataset, layer)[0].to(weight.device))
    return network.partitions(spectral_cluster(graph, run.config.num_clusters, seed=run.config.seed))


def _similarity(run: Run, dataset: Dataset, layer: Layer) -> tuple[Tensor, str]:
    """Return what a layer's clusters are found in, and the affinity that :func:`spectral_cocluster` needs."""
    if run.config.affinity == "weights":
        return layer.weight().detach(), "abs"
    # A sum over images: with means, those of a smaller last batch would count more than the others.
    summed = functools.partial(cross_entropy, reduction="sum")
    return gradient_affinity(run.model, layer.name, _batches(run, dataset), summed), "given"


def _batches(run: Run, dataset: Dataset) -> Iterator[Any]:
    size = run.config.batch_size
    for images, labels in zip(
        dataset.train_images.split(size), dataset.train_labels.split(size), strict=True
    ):
        yield dataset.normalize(images.to(run.device)), labels.to(run.device)


def _network(run: Run, dataset: Dataset) -> Network:
    """Return the network that the regularised layers make: each has units that another one has as well."""
    images = dataset.normalize(dataset.train_images[:_FEW_IMAGES].to(run.device))
    try:
        network = read_network(run.model, images)
    except CannotFollowError as error:
        raise ValueError(f"chained must be False for this model, got True ({error})") from error
    beside = sorted(run.partitions.keys() - network.layers.keys())
    if beside:
        raise ValueError(f"layers must be among {list(network.layers)} to be chained, got {beside} as well")
    chosen = network.part(run.partitions)
    apart = chosen.apart()
    if len(apart) > 1:
        raise ValueError(f"layers must have units in common to be chained, got {apart}, which have none")
    return chosen
