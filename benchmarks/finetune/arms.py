"""What is trained: every arm is one way to fine-tune the same model, repeated for its seeds."""

from __future__ import annotations

from dataclasses import dataclass

KS = (2, 4, 8, 12, 20)
"""Numbers of clusters."""

MANY = (4, 12)
"""Those with as many seeds as plain fine-tuning."""

RANDOM_SETS = {2: 4, 4: 4, 8: 1, 12: 1, 20: 1}
"""How many sets of random clusters stand beside those of an arm: each costs a pass for each cluster."""


@dataclass(frozen=True)
class Settings:
    """How the model is fine-tuned, alike in all arms.

    Attributes:
        length: tokens of a passage, special ones included.
        pairs: pairs of a batch.
        steps: of the optimiser.
        learning_rate: the largest; it rises to this evenly, and then falls evenly to 0.
        warmup: steps during which it rises.
        temperature: cosines are divided by it.
        measured_pairs: held-out pairs of a batch.
        measured_batches: held-out batches for loss and accuracy.
        answers_batches: the first of them, for dependence.
        every: so many steps lie between two measurements of the held-out loss.
    """

    length: int = 24
    pairs: int = 16
    steps: int = 64
    learning_rate: float = 3e-4
    warmup: int = 4
    temperature: float = 0.05
    measured_pairs: int = 32
    measured_batches: int = 6
    answers_batches: int = 2
    every: int = 32

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 1 on."""
        rising, falling = step / self.warmup, (self.steps + 1 - step) / (self.steps + 1 - self.warmup)
        return self.learning_rate * min(1.0, rising, falling)


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        name: that of its file of results.
        title: what the page calls it.
        k: the number of clusters; None trains without the loss.
        clusters: "blocks", contiguous ones of each space, or "spectral", of the graph of the MLPs.
        weight: of the loss.
        seeds: of the order of the pairs.
        trained: False leaves the model as it is.
        slower: the learning rate is divided by it.
    """

    name: str
    title: str
    k: int | None = None
    clusters: str = "blocks"
    weight: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)
    trained: bool = True
    slower: float = 1.0

    @property
    def dependence(self) -> tuple[int, ...]:
        """Return the numbers of clusters for which dependence is measured."""
        if self.k is not None:
            return (self.k,)
        return MANY if self.slower == 1.0 else ()


WEIGHT = 1000.0
"""Of the loss. In so few steps clusterability hardly moves with the authors' 40."""


def _arms() -> list[Arm]:
    blocks = {
        k: Arm(f"blocks-{k}", f"{k} blocks", k, weight=WEIGHT, seeds=(0, 1, 2) if k in MANY else (0,))
        for k in KS
    }
    return [
        Arm("plain", "plain"),
        blocks[4],
        Arm("untouched", "untouched", seeds=(0,), trained=False),
        blocks[12],
        blocks[20],
        blocks[2],
        Arm("plain-slow", "plain, a fifth of the rate", seeds=(0,), slower=5.0),
        Arm("spectral-4", "4 spectral clusters", 4, "spectral", WEIGHT, seeds=(0,)),
        blocks[8],
    ]


ARMS = {arm.name: arm for arm in _arms()}
"""In the order in which they are run."""
