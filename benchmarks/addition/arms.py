"""What is trained: two networks for modular addition, each plain and with the enmeshment loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modfast.network.units import Network

SEEDS = tuple(range(10))
"""Arms of one network that share a seed start from the same weights and train on the same pairs."""

CLUSTERS = 4

_BLOCK = "transformer.blocks.0"
_ATTENTION = tuple(f"{_BLOCK}.attention.{name}" for name in ("query", "key", "value", "output"))
_MLP = (f"{_BLOCK}.mlp_in", f"{_BLOCK}.mlp_out")


@dataclass(frozen=True)
class Kind:
    """A network and how it is trained.

    Attributes:
        name: as :meth:`modfast.tasks.ModularAddition.model` takes it.
        title: what the page calls it.
        p: the modulus.
        train_share: the share of the pairs that is trained on.
        steps: of training.
        sizes: of the network.
        neurons: the layer that reads the neurons.
        writes: the layer that writes them, after which their space is named.
        inside: the layers that a loss may be on, and of which the graph of spectral clusters is made.
    """

    name: str
    title: str
    p: int
    train_share: float
    steps: int
    sizes: dict[str, int]
    neurons: str
    writes: str
    inside: tuple[str, ...]


MLP = Kind("mlp", "the MLP", 41, 0.7, 800, {"hidden": 256}, "fc2", "fc1", ("fc1", "fc2"))
TRANSFORMER = Kind(
    "transformer",
    "the transformer",
    41,
    0.7,
    750,
    {"width": 64, "heads": 4, "hidden": 128},
    _MLP[1],
    _MLP[0],
    (*_ATTENTION, *_MLP),
)


@dataclass(frozen=True)
class Arm:
    """One way to train a network.

    Attributes:
        name: a short name, that of its file of results.
        title: what the page calls it.
        kind: the network.
        layers: those of the enmeshment loss; none for plain training.
        weight: the loss's factor.
        against: the arm that it is compared with, seed by seed.
        settings: what else :meth:`modfast.tasks.ModularAddition.train` is given.
    """

    name: str
    title: str
    kind: Kind
    layers: tuple[str, ...] = ()
    weight: float | None = None
    against: str | None = None
    settings: dict[str, Any] = field(default_factory=lambda: {"evaluate_every": 25})


def blocks(network: Network, kind: Kind) -> Tensor:
    """Return the cluster of each unit: contiguous blocks of each space.

    The MLP reads two numbers side by side: that one is in a block means the same for both, and for answers.
    """
    labels, _ = network.unit_labels(CLUSTERS)
    if kind.name == "mlp":
        answers = labels[network.spaces["fc2"]]
        labels[network.spaces[".input"]] = torch.cat([answers, answers])
    return labels


def _arms() -> list[Arm]:
    plain = "transformer-plain"
    mlp = "mlp-plain"
    return [
        Arm(plain, "plain", TRANSFORMER),
        Arm("transformer-mlp", "loss on the MLP's matrices", TRANSFORMER, _MLP, 1.0, plain),
        Arm(
            "transformer-inside",
            "loss on attention's and the MLP's matrices",
            TRANSFORMER,
            TRANSFORMER.inside,
            1.0,
            plain,
        ),
        Arm(mlp, "plain", MLP),
        Arm("mlp-both-0.01", "loss on both matrices, weight 0.01", MLP, MLP.inside, 0.01, mlp),
        Arm("mlp-both-0.1", "loss on both matrices, weight 0.1", MLP, MLP.inside, 0.1, mlp),
        Arm("mlp-both-1", "loss on both matrices, weight 1", MLP, MLP.inside, 1.0, mlp),
    ]


ARMS = {arm.name: arm for arm in _arms()}
