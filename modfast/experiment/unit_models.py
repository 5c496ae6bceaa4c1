"""The trained models whose unit circuits are to be found: their units, and the clusters of these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modfast.circuits.checkpoint import fingerprint
from modfast.circuits.units.folder import UnitCircuitFolder
from modfast.data.dataset import Dataset
from modfast.machine import choose_device
from modfast.network.reading import read_network
from modfast.network.units import Network
from modfast.partition import Partition

from .settings import UnitCircuitConfig as UnitCircuitConfig
from .trained_models import OpenedModel, each_model

_FEW_IMAGES = 16  # enough to follow the model's computation


class UnitRun(NamedTuple):
    """A trained model, its units and their clusters, and the folder of its circuits."""

    opened: OpenedModel
    network: Network
    clusters: Tensor | None
    kept: UnitCircuitFolder


def open_unit_runs(
    folder: str | os.PathLike[str], dataset: Dataset, config: UnitCircuitConfig, process: int
) -> list[UnitRun]:
    """Open every model of a folder, and read its units.

    Args:
        folder: the folder that ``modfast train`` or ``modfast reproduce`` wrote.
        dataset: the images that the models were trained on.
        config: how their circuits are to be found.
        process: the number of this process among those that find circuits.

    Raises:
        FileNotFoundError, ValueError, TrainingError: as for
            :func:`modfast.experiment.trained_models.open_models`.
        CannotFollowError: (a ``ValueError``) a model's computation cannot be followed.
    """
    runs = []
    device = choose_device(config.device)
    images = dataset.normalize(dataset.test_images[:_FEW_IMAGES]).to(device)
    for opened in each_model(folder, dataset, config.device):
        network = read_network(opened.model, images)
        settings = {
            "weights": fingerprint(opened.model, {}, {})[:16],
            "data_fingerprint": dataset.fingerprint(),
            **{name: getattr(config, name) for name in ("images", "method", "ablation", "tolerance")},
        }
        clusters = unit_clusters(network, opened.partitions, opened.results["config"]["regularised_layers"])
        kept = UnitCircuitFolder(opened.folder, settings, tuple(dataset.classes), process)
        runs.append(UnitRun(opened, network, clusters, kept))
    return runs


def unit_clusters(
    network: Network, partitions: Mapping[str, Partition], first: Sequence[str]
) -> Tensor | None:
    """Return the cluster of each unit, from the clusters of layers.

    Args:
        network: the units.
        partitions: layer name to the clusters of its rows and columns.
        first: the layers that decide; the others are asked where these say nothing of a unit.

    Returns:
        int64, ``(num_units,)``: -1 for units of which no layer says a cluster, and where layers disagree.
        None if no unit has a cluster.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2))
        >>> network = read_network(model, torch.zeros(1, 2))
        >>> unit_clusters(network, {"0": Partition([0, 0, 1, 1], [0, 1], 2)}, [])
        tensor([ 0,  1,  0,  0,  1,  1, -1, -1])
    """
    labels = torch.full((network.num_units,), -1, dtype=torch.int64, device="cpu")
    is_decided = torch.zeros_like(labels, dtype=torch.bool)
    for names in (first, [name for name in partitions if name not in first]):
        lowest = torch.full_like(labels, torch.iinfo(torch.int64).max)
        highest = torch.full_like(labels, -1)
        for name in names:
            layer, partition = network.layers.get(name), partitions.get(name)
            if layer is None or partition is None:
                continue
            sides = ((layer.row_units, partition.row_labels), (layer.col_units, partition.col_labels))
            for units, given in sides:
                # A convolution in groups reads other channels with each group of rows.
                of_side = given.cpu().expand(units.shape).reshape(-1)
                lowest.scatter_reduce_(0, units.reshape(-1), of_side, "amin")
                highest.scatter_reduce_(0, units.reshape(-1), of_side, "amax")
        agreed = torch.where(lowest == highest, lowest, -1)
        labels = torch.where(is_decided, labels, agreed)
        # Also where the layers that decide disagree: it is not for others to say which of them is right.
        is_decided |= highest >= 0
    return labels if bool((labels >= 0).any()) else None
