"""The rivals: each arm is one way to train the paper's CNN, repeated for each seed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from benchmarks.findings.arms import SEEDS, Arm
from modfast import Partition, read_network
from modfast.data.dataset import Dataset
from modfast.train import TrainConfig

from .changes import Penalty, distance_cost, eigenvalue_loss, masked, penalised

LAYERS = ("fc1", "fc2", "fc3")
LAST = ("fc2", "fc3")
CLUSTERS = 4

__all__ = ["ARMS", "CLUSTERS", "LAYERS", "SEEDS"]


def _config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 10, "enmeshment_weight": 0.0, "num_clusters": CLUSTERS, **settings})


def shared(layers: tuple[str, ...], k: int, model: nn.Module, dataset: Dataset) -> dict[str, Partition]:
    """Return ``k`` blocks that layers share: what one writes and the next one reads is in one cluster."""
    network = read_network(model, dataset.normalize(dataset.train_images[:2]))
    return network.partitions(k, layers=layers)


def _penalised(penalty: Penalty, model: nn.Module) -> AbstractContextManager[None]:
    return penalised(model, penalty)


def _masked(layers: tuple[str, ...], model: nn.Module) -> AbstractContextManager[None]:
    # The same blocks as those of `shared`: all spaces are cut into blocks in their order.
    shapes = {name: model.get_submodule(name).weight.shape for name in layers}
    return masked(model, {name: Partition.blocks(shape, CLUSTERS) for name, shape in shapes.items()})


def _arms() -> list[Arm]:
    plain = _config()
    last = _config(layers=LAST)
    everywhere = _config(layers=LAYERS)
    twenty = _config(enmeshment_weight=20.0)
    last_twenty = replace(twenty, layers=LAST)
    all_twenty = replace(twenty, layers=LAYERS)
    return [
        Arm("plain", "plain", plain, None, circuits_from=4),
        Arm("l1", "L1 penalty of 1e-4", replace(plain, l1_weight=1e-4)),
        Arm("keep-30", "keep 30 % of three layers", replace(everywhere, keep=0.3, ramp_epochs=5)),
        Arm("keep-10", "keep 10 % of three layers", replace(everywhere, keep=0.1, ramp_epochs=5)),
        Arm("keep-3", "keep 3 % of three layers", replace(everywhere, keep=0.03, ramp_epochs=5)),
        Arm("blocks", "`fc2`: weight 20, blocks", twenty),
        Arm(
            "spectral",
            "`fc2`: weight 20, spectral clusters",
            replace(twenty, warmup_epochs=3, clusters_from="spectral"),
        ),
        Arm(
            "last-two",
            "`fc2`, `fc3`: weight 20, shared blocks",
            last_twenty,
            partitions=partial(shared, LAST, CLUSTERS),
        ),
        Arm(
            "last-two-five",
            "`fc2`, `fc3`: weight 20, five shared blocks",
            replace(last_twenty, num_clusters=5),
            partitions=partial(shared, LAST, 5),
        ),
        Arm(
            "last-two-five-5",
            "`fc2`, `fc3`: weight 5, five shared blocks",
            replace(last_twenty, num_clusters=5, enmeshment_weight=5.0),
            partitions=partial(shared, LAST, 5),
        ),
        Arm(
            "shared-5",
            "three layers: weight 5, shared blocks",
            replace(all_twenty, enmeshment_weight=5.0),
            partitions=partial(shared, LAYERS, CLUSTERS),
        ),
        Arm(
            "shared",
            "three layers: weight 20, shared blocks",
            all_twenty,
            partitions=partial(shared, LAYERS, CLUSTERS),
        ),
        Arm("hard", "`fc2`: hard blocks", plain, training=partial(_masked, ("fc2",))),
        Arm("hard-last-two", "`fc2`, `fc3`: hard blocks", last, training=partial(_masked, LAST)),
        Arm("hard-shared", "three layers: hard blocks", everywhere, training=partial(_masked, LAYERS)),
        Arm(
            "eigenvalues",
            "three layers: eigenvalue loss, weight 0.3",
            plain,
            training=partial(_penalised, eigenvalue_loss(0.3, CLUSTERS, LAYERS)),
        ),
        Arm(
            "distance",
            "three layers: distance cost, weight 1",
            plain,
            training=partial(_penalised, distance_cost(1.0, LAYERS)),
        ),
        Arm(
            "shared-keep-30",
            "three layers: weight 20, shared blocks, keep 30 %",
            replace(all_twenty, keep=0.3, ramp_epochs=5),
            partitions=partial(shared, LAYERS, CLUSTERS),
        ),
    ]


ARMS = {arm.name: arm for arm in _arms()}
