"""What is trained: the same residual network with and without the enmeshment loss on its channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn

from benchmarks.findings.arms import Arm
from modfast import Network, Partition, read_network
from modfast.data.dataset import Dataset
from modfast.train import TrainConfig

from .model import STEM
from .schedule import one_cycle

SEEDS = tuple(range(42, 52))
"""Each arm is trained with these; arms that share a seed start from the same weights."""

CLUSTERS = 4
EPOCHS = 4
WEIGHT = 3.0
"""The weight of the loss: the first that was tried, with the seed 1."""

LIGHT = 0.3
"""A tenth of it."""

_BATCH, _PEAK, _IMAGES = 128, 0.005, 50_000
HEAD = "head"
CONVOLUTIONS = (
    *(f"stage{stage}.conv{number}" for stage in (1, 2, 3) for number in (1, 2)),
    *(f"stage{stage}.shortcut.0" for stage in (2, 3)),
)
"""All but the first, whose columns are three colours: too few for four clusters."""


def channels(model: nn.Module, dataset: Dataset) -> Network:
    """Return the network's channels: which rows and columns of which weights are the same ones."""
    return read_network(model, dataset.normalize(dataset.train_images[:2]))


def shared_blocks(layers: tuple[str, ...]) -> Callable[[nn.Module, Dataset], dict[str, Partition]]:
    """Return a function that gives each of these layers its part of one clustering of all channels.

    Each space of channels is cut into equal contiguous blocks. What one layer writes and another one reads,
    over residual connections too, is so in the same cluster.
    """
    return partial(_blocks, layers)


def _blocks(layers: tuple[str, ...], model: nn.Module, dataset: Dataset) -> dict[str, Partition]:
    return channels(model, dataset).partitions(CLUSTERS, layers)


def _arm(name: str, title: str, weight: float, layers: tuple[str, ...], against: str | None) -> Arm:
    config = TrainConfig(
        enmeshment_weight=weight,
        layers=layers,
        num_clusters=CLUSTERS,
        epochs=EPOCHS,
        clusters_from="file",
        batch_size=_BATCH,
        learning_rate=_PEAK,
        precision="bfloat16",
    )
    return Arm(
        name,
        title,
        config,
        against,
        model="benchmarks.resnet.model:ResNet8",
        partitions=shared_blocks(layers),
        training=partial(one_cycle, steps=EPOCHS * math.ceil(_IMAGES / _BATCH), peak=_PEAK),
    )


_ALL = (*CONVOLUTIONS, HEAD)
ARMS = {
    arm.name: arm
    for arm in (
        _arm("plain", "plain", 0.0, _ALL, None),
        _arm("modular", "modular", WEIGHT, _ALL, "plain"),
        _arm("light", f"modular, weight {LIGHT:g}", LIGHT, _ALL, "plain"),
        _arm("convolutions", "modular, but for the head", WEIGHT, CONVOLUTIONS, "plain"),
    )
}
assert STEM not in _ALL
