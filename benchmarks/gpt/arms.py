"""What is trained: every arm is one way to train the same small GPT, repeated for each seed."""

from __future__ import annotations

from dataclasses import dataclass

from modfast.network.units import Network

SEEDS = (42, 43, 44, 45, 46)
"""Networks of all arms that share a seed start from the same weights and see the same text."""

CLUSTERS = 4
MLPS = ("mlp_input", "mlp_output")
ATTENTION = ("attention_query", "attention_key", "attention_value", "attention_output")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: a short name, that of its file of results.
        title: what the page calls it.
        weight: of the enmeshment loss, 0 for plain training.
        roles: of the layers that the loss has.
        snapshots: whether circuits are also found at the steps of :attr:`Size.snapshots`.
    """

    name: str
    title: str
    weight: float = 0.0
    roles: tuple[str, ...] = ()
    snapshots: bool = False

    def layers(self, network: Network) -> list[str]:
        """Return the layers that the loss has in a network."""
        return network.select(*self.roles) if self.roles else []


@dataclass(frozen=True)
class Size:
    """How large the networks are, and how long they are trained; the same for all arms.

    Attributes:
        width: of the residual stream.
        heads: of each block.
        layers: the number of blocks.
        steps: of training.
        batch_size: windows of a step.
        repeated: how many of these are random letters that are repeated.
        learning_rate: the highest; it rises over the first steps and then falls along a cosine.
        weight_decay: of AdamW.
        snapshots: steps at which plain networks are kept, to compare at equal loss.
        examples: texts of each behaviour to find circuits by; as many others judge them.
        windows: of held-out text to measure with.
    """

    width: int = 64
    heads: int = 4
    layers: int = 2
    steps: int = 2000
    batch_size: int = 16
    repeated: int = 4
    learning_rate: float = 0.004
    weight_decay: float = 0.1
    snapshots: tuple[int, ...] = (1000, 1250, 1500)
    examples: int = 128
    windows: int = 768


SIZE = Size()

ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain", snapshots=True),
        Arm("mlps", "MLPs modular", 1.0, MLPS),
        Arm("all", "MLPs and attention modular", 1.0, (*MLPS, *ATTENTION)),
    )
}
