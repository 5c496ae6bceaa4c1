"""What is trained: every arm is one way to train one network, repeated for each seed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from modfast import Partition
from modfast.data.dataset import Dataset
from modfast.train import TrainConfig

SEEDS = tuple(range(42, 52))
"""Each arm is trained with these; arms of one network that share a seed start from the same weights."""

_EPOCHS = 10
_ALL = ("fc1", "fc2", "fc3")


@dataclass(frozen=True)
class Arm:
    """One way to train a network.

    Attributes:
        name: a short name, that of its file of results.
        title: what the page calls it.
        config: how it is trained; the seed and the machine are set for each run.
        against: the arm that it is compared with, seed by seed; None for those that others are compared with.
        data: "cifar10" or "mnist".
        model: a name for :func:`modfast.models.build_model`.
        hidden: neurons of each hidden linear layer, if not the model's own number.
        circuits_from: the first epoch after which circuits are found, too; None finds them at the end.
        partitions: returns the clusters for a model and its images; None takes those of ``config``.
        training: what else changes while a model is trained: a context to train it in.
    """

    name: str
    title: str
    config: TrainConfig
    against: str | None = "plain"
    data: str = "cifar10"
    model: str = "cnn"
    hidden: int | None = None
    circuits_from: int | None = None
    partitions: Callable[[nn.Module, Dataset], dict[str, Partition]] | None = None
    training: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext


def _config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": _EPOCHS, **settings})


def _spectral(weight: float, **settings: Any) -> TrainConfig:
    return _config(enmeshment_weight=weight, warmup_epochs=3, clusters_from="spectral", **settings)


def _arms() -> list[Arm]:
    plain = _config(enmeshment_weight=0.0)
    twenty = _config(enmeshment_weight=20.0)
    mnist = {"against": "mnist-plain", "data": "mnist", "model": "mlp"}
    return [
        Arm("plain", "plain", plain, None, circuits_from=4),
        Arm("blocks-20", "`fc2`: weight 20, blocks", twenty),
        Arm("spectral-20", "`fc2`: weight 20, spectral clusters", _spectral(20.0), circuits_from=4),
        Arm("blocks-0.7", "`fc2`: weight 0.7, blocks", _config(enmeshment_weight=0.7)),
        Arm("blocks-5", "`fc2`: weight 5, blocks", _config(enmeshment_weight=5.0)),
        Arm("recluster-20", "`fc2`: weight 20, reclustered", _spectral(20.0, recluster_every=1)),
        Arm("gradients-20", "`fc2`: weight 20, clusters of gradients", _spectral(20.0, affinity="gradients")),
        Arm("blocks-20-all", "three layers: weight 20, blocks", replace(twenty, layers=_ALL)),
        Arm(
            "chained-20-all",
            "three layers: weight 20, chained clusters",
            _spectral(20.0, layers=_ALL, chained=True),
        ),
        Arm("l1", "L1 penalty of 1e-4", replace(plain, l1_weight=1e-4)),
        Arm("plain-40", "plain, 40 hidden neurons", plain, hidden=40),
        Arm("published-2024", "published 2024", _config(epochs=21)),
        Arm("plain4", "plain, four linear layers", plain, None, model="cnn4"),
        Arm(
            "published-2025",
            "published 2025",
            replace(_spectral(20.0), epochs=20, warmup_epochs=5),
            "plain4",
            model="cnn4",
        ),
        Arm("plain-large", "plain, larger CNN", plain, None, model="cnn-large"),
        Arm(
            "published-large",
            "published 2025, larger CNN",
            replace(twenty, layers=_ALL),
            "plain-large",
            model="cnn-large",
        ),
        Arm("mnist-plain", "MNIST: plain", plain, None, "mnist", "mlp"),
        Arm("mnist-blocks-20", "MNIST, `fc2`: weight 20, blocks", twenty, **mnist),
        Arm("mnist-spectral-20", "MNIST, `fc2`: weight 20, spectral clusters", _spectral(20.0), **mnist),
        Arm("mnist-blocks-0.7", "MNIST, `fc2`: weight 0.7, blocks", _config(enmeshment_weight=0.7), **mnist),
    ]


ARMS = {arm.name: arm for arm in _arms()}
