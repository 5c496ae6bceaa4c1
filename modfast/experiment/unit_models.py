"""The trained models whose unit circuits are to be found: their units, and the clusters of these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modfast.arguments import Distinct, Integer, NoneOr, Number, OneOf, check_fields
from modfast.circuits.checkpoint import fingerprint
from modfast.circuits.units.folder import UnitCircuitFolder
from modfast.circuits.units.unit_circuit import METHODS
from modfast.data.dataset import Dataset
from modfast.machine import choose_device
from modfast.network.reading import read_network
from modfast.network.units import Network
from modfast.partition import Partition

from .trained_models import OpenedModel, each_model

RUN_ABLATIONS = ("zero", "mean")
"""What units of a run may be replaced by. For another example's values it would have to say which example."""

_FEW_IMAGES = 16  # enough to follow the model's computation


@dataclass(frozen=True)
class UnitCircuitConfig:
    """The settings for finding unit circuits.

    Attributes:
        method: ``"attribution"`` keeps the units of highest score and is fast; ``"greedy"`` decides unit by
            unit and mostly keeps fewer. See :func:`modfast.circuits.units.find.find_unit_circuit`.
        ablation: what units outside a circuit are replaced by: ``"zero"``, or ``"mean"``, their mean over the
            test images of all classes.
        tolerance: by how much the mean log-likelihood of the class may fall, in nats.
        labels: the classes whose circuits are found; None takes every class that has a test image.
        images: at most this many test images of each class are used, the first ones; None takes all.
        seed: the seed of random circuits of the same sizes.
        device: where to compute.
        threads: on the CPU; None leaves PyTorch's choice.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> UnitCircuitConfig(labels=(0, 1)).method
        'attribution'
    """

    method: str = "attribution"
    ablation: str = "zero"
    tolerance: float = 0.0
    labels: tuple[int, ...] | None = None
    images: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "method": OneOf(METHODS),
                "ablation": OneOf(RUN_ABLATIONS),
                "tolerance": Number(0, included=True),
                "labels": NoneOr(Distinct(Integer(0))),
                "images": NoneOr(Integer(1)),
                "seed": Integer(0, 2**31 - 1),
                "threads": NoneOr(Integer(1)),
            },
        )


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
