"""What is trained: every arm is one way to train one network, repeated for each seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
    """

    name: str
    title: str
    config: TrainConfig
    against: str | None = "plain"
    data: str = "cifar10"
    model: str = "cnn"
    hidden: int | None = None
    circuits_from: int | None = None


def _config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": _EPOCHS, **settings})


def _spectral(weight: float, **settings: Any) -> TrainConfig:
    return _config(enmeshment_weight=weight, warmup_epochs=3, clusters_from="spectral", **settings)


def _arms() -> list[Arm]:
    plain = _config(enmeshment_weight=0.0)
    twenty = _config(enmeshment_weight=20.0)
    after = "spectral clusters after 3 epochs"
    return [
        Arm("plain", "plain", plain, None, circuits_from=4),
        Arm("spectral-20", f"weight 20, {after}", _spectral(20.0), circuits_from=4),
        Arm("blocks-20", "weight 20, blocks", twenty),
        Arm("blocks-0.7", "weight 0.7, blocks", _config(enmeshment_weight=0.7)),
        Arm("spectral-0.7", f"weight 0.7, {after}", _spectral(0.7)),
        Arm("spectral-5", f"weight 5, {after}", _spectral(5.0)),
        Arm("spectral-80", f"weight 80, {after}", _spectral(80.0)),
        Arm(
            "recluster-20",
            f"weight 20, {after}, found anew after each epoch",
            _spectral(20.0, recluster_every=1),
        ),
        Arm(
            "gradients-20",
            "weight 20, spectral clusters of gradients after 3 epochs",
            _spectral(20.0, affinity="gradients"),
        ),
        Arm("blocks-20-all", "weight 20 on three layers, blocks", replace(twenty, layers=_ALL)),
        Arm(
            "chained-20-all",
            f"weight 20 on three layers, chained {after}",
            _spectral(20.0, layers=_ALL, chained=True),
        ),
        Arm("l1", "L1 penalty of 1e-4", replace(plain, l1_weight=1e-4)),
        Arm("plain-40", "plain, 40 instead of 64 hidden neurons", plain, hidden=40),
        Arm("blocks-5", "weight 5, blocks", _config(enmeshment_weight=5.0)),
        Arm("published-2024", "published 2024: weight 0.7, blocks, 21 epochs", _config(epochs=21)),
        Arm("plain4", "four linear layers: plain", plain, None, model="cnn4"),
        Arm(
            "plain4-20", "four linear layers: plain, 20 epochs", replace(plain, epochs=20), None, model="cnn4"
        ),
        Arm(
            "published-2025",
            "four linear layers, published 2025: 5 plain epochs, then 15 with weight 20, spectral clusters",
            replace(_spectral(20.0), epochs=20, warmup_epochs=5),
            "plain4",
            model="cnn4",
        ),
        Arm("plain-large", "larger CNN: plain", plain, None, model="cnn-large"),
        Arm(
            "published-large",
            "larger CNN, published 2025: weight 20 on three layers, blocks",
            replace(twenty, layers=_ALL),
            "plain-large",
            model="cnn-large",
        ),
        Arm("mnist-plain", "MNIST: plain", plain, None, "mnist", "mlp"),
        Arm(
            "mnist-blocks-0.7",
            "MNIST: weight 0.7, blocks",
            _config(enmeshment_weight=0.7),
            "mnist-plain",
            "mnist",
            "mlp",
        ),
        Arm(
            "mnist-spectral-20",
            f"MNIST: weight 20, {after}",
            _spectral(20.0),
            "mnist-plain",
            "mnist",
            "mlp",
        ),
    ]


ARMS = {arm.name: arm for arm in _arms()}
