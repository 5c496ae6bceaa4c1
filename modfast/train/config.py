"""What a run trains, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import modfast.settings as settings
from modfast.display import listed
from modfast.partition import Partition
from modfast.settings import TrainConfig as TrainConfig

PRECISIONS = {name: getattr(torch, name) for name in settings.PRECISIONS}

Record: TypeAlias = dict[str, Any]


@dataclass(repr=False)
class Run:
    """A model in training, with all that is needed to continue.

    Attributes:
        model: the network, on its device.
        optimizer: Adam over its parameters.
        config: what was asked for.
        partitions: the clusters of the regularised layers; contiguous blocks until spectral ones are found.
        measured: the clusters of every layer whose clusterability is recorded: the regularised layers, and
            other linear layers with at least ``num_clusters`` rows and columns.
        clustered: whether ``partitions`` are those of the loss: False in a warm-up to spectral clusters.
        initial: the weights of the measured layers before training.
        history: one record for each finished epoch; see :func:`train`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    partitions: dict[str, Partition]
    measured: dict[str, Partition]
    initial: dict[str, Tensor]
    clustered: bool = True
    history: list[Record] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"Run({type(self.model).__name__}, {len(self.history)} of {self.config.epochs} epochs, "
            f"regularised: {listed(list(self.partitions)) or 'none'})"
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device
