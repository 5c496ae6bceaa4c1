"""What a run trains, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from modfast.arguments import SEED, Integer, NoneOr, Number, OneOf, check_fields
from modfast.partition import Partition

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. The defaults are the paper's (arXiv 2409.15747).

    Attributes:
        enmeshment_weight: lambda; 0 trains a plain model.
        layers: names or globs of the layers to regularise. The default is the hidden layer that the paper
            regularises; name the layers of your own model that are to become modular, or give None for every
            ``nn.Linear``.
        num_clusters: the number of contiguous blocks in each layer for which no partition is given.
        epochs: passes over the training images.
        batch_size: images for each step; the last step of an epoch may have fewer.
        learning_rate: Adam's learning rate.
        seed: the seed of the image order and of all random numbers that training draws. (The caller seeds
            the model's initial weights.)
        device: "auto" takes a CUDA device that this build has kernels for, if there is one, else the CPU.
        threads: PyTorch's number of threads on the CPU; None leaves it unchanged. A run with the same number
            repeats bit for bit.
        precision: the dtype of the forward pass: "float32", or "bfloat16" by autocast, in which the weights
            stay float32.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> TrainConfig(epochs=3).enmeshment_weight
        0.7
    """

    enmeshment_weight: float = 0.7
    layers: tuple[str, ...] | None = ("fc2",)
    num_clusters: int = 4
    epochs: int = 21
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 42
    device: str = "auto"
    threads: int | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "num_clusters": Integer(1),
                "epochs": Integer(1),
                "batch_size": Integer(1),
                "seed": SEED,
                "threads": NoneOr(Integer(1)),
                "enmeshment_weight": Number(0, included=True),
                "learning_rate": Number(0),
                "precision": OneOf(tuple(PRECISIONS)),
            },
        )
        if self.layers is not None and not self.layers:
            raise ValueError(f"layers must be None or at least one name, got {self.layers!r}")


@dataclass
class Run:
    """A model in training, with all that is needed to continue.

    Attributes:
        model: the network, on its device.
        optimizer: Adam over its parameters.
        config: what was asked for.
        partitions: the clusters of the regularised layers.
        measured: the clusters of every layer whose clusterability is recorded: the regularised layers, and
            other linear layers with at least ``num_clusters`` rows and columns.
        initial: the weights of the measured layers before training.
        history: one record for each finished epoch; see :func:`train`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    partitions: dict[str, Partition]
    measured: dict[str, Partition]
    initial: dict[str, Tensor]
    history: list[Record] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device
