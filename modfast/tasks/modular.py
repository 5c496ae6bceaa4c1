"""Modular addition: all pairs of numbers, some to train on, and what a network makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modfast.arguments import SEED, Integer, Number, OneOf, check
from modfast.energy.loss import EnmeshmentLoss
from modfast.layers.layer import find_layer
from modfast.layers.running import device_of, evaluating, logits_of, not_compiled

from .models import AdditionMLP, AdditionTransformer
from .seeded import seeded_model
from .settings import Settings
from .training import Batch, Record, digest_of_parts, train_task

KINDS = ("mlp", "transformer")


@dataclass(frozen=True, eq=False, repr=False)
class ModularAddition:
    """All pairs (a, b) of numbers below p with the class (a + b) mod p; made by :func:`modular_addition`.

    Attributes:
        p: the modulus.
        pairs: int64 ``(p * p, 2)``: the pair ``(a, b)`` is at ``a * p + b``.
        targets: int64 ``(p * p,)``: ``(a + b) mod p``.
        is_train: bool ``(p * p,)``: which of them are trained on; the others are held out.
    """

    p: int
    pairs: Tensor
    targets: Tensor
    is_train: Tensor

    def __repr__(self) -> str:
        trained = int(self.is_train.sum())
        held = len(self.pairs) - trained
        return f"ModularAddition(p={self.p}: {trained:,} pairs to train on, {held:,} held out)"

    @property
    def train_batches(self) -> list[Batch]:
        """The pairs that are trained on and their classes, as one batch."""
        return [(self.pairs[self.is_train], self.targets[self.is_train])]

    @property
    def test_batches(self) -> list[Batch]:
        """The held-out pairs and their classes, as one batch."""
        return [(self.pairs[~self.is_train], self.targets[~self.is_train])]

    @property
    def batches(self) -> list[Batch]:
        """All pairs and their classes, as one batch, the pair (a, b) at ``a * p + b``."""
        return [(self.pairs, self.targets)]

    @property
    def fingerprint(self) -> str:
        """A digest: tasks with the same one train the same model."""
        return digest_of_parts({"task": "modular addition", "p": self.p, "is_train": self.is_train})

    def draw(self, batch_size: int | None, generator: torch.Generator) -> Batch:
        """Draw so many different pairs to train on; None takes all of them.

        Raises:
            ValueError: there are fewer.
        """
        (batch,) = self.train_batches
        if batch_size is None:
            return batch
        inputs, targets = batch
        check("batch_size", batch_size, Integer(1, len(inputs)), " pairs to train on")
        chosen = torch.randperm(len(inputs), generator=generator, device="cpu")[:batch_size]
        return inputs[chosen], targets[chosen]

    def model(
        self, kind: str, *, seed: int = 0, device: str | torch.device = "cpu", **sizes: int
    ) -> AdditionMLP | AdditionTransformer:
        """Make a model that is not trained yet.

        Args:
            kind: ``"mlp"`` for :class:`AdditionMLP`, one hidden layer and seconds of training, where each
                neuron can be told by its frequency; ``"transformer"`` for :class:`AdditionTransformer`, the
                network of the literature, with heads and embeddings.
            seed: seeds the initial weights, whatever the state of PyTorch's generator, which stays as it is.
            device: where it is put.
            **sizes: of that class, such as ``hidden=128``.

        Raises:
            ValueError: ``kind`` is unknown, or an argument is out of its range.
            TypeError: the class has no such size.

        Example:
            >>> modular_addition(11).model("mlp", hidden=20).fc1.weight.shape
            torch.Size([20, 22])
        """
        check("kind", kind, OneOf(KINDS))
        makes = AdditionMLP if kind == "mlp" else AdditionTransformer
        return seeded_model(lambda: makes(self.p, **sizes), seed, device)

    def train(
        self,
        model: nn.Module,
        steps: int = 1500,
        *,
        learning_rate: float = 0.005,
        weight_decay: float = 1.0,
        batch_size: int | None = None,
        evaluate_every: int = 100,
        seed: int = 0,
        enmeshment: EnmeshmentLoss | None = None,
        enmeshment_weight: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Record]:
        """Train a model in place by AdamW until it generalises: to pairs that it was not trained on.

        The training loss is soon near zero; large weight decay then makes the model find the general
        solution ("grokking"). With the defaults ``"mlp"`` for ``p=113`` gets every held-out pair right after
        1,200 steps, and ``"transformer"`` for ``p=59`` after 600; both take a minute on one core.

        Args:
            model: maps int64 pairs ``(n, 2)`` to logits ``(n, p)``; it is trained on its own device.
            steps: how many in all.
            learning_rate: of AdamW. A larger one is faster, until the loss jumps.
            weight_decay: of AdamW. With little of it a model remembers the pairs and does not generalise.
            batch_size: how many pairs each step draws; None takes all.
            evaluate_every: the number of steps after which the held-out pairs are measured.
            seed: seeds what each step draws.
            enmeshment: a loss on the model's weights. Each step adds its gradient, by
                :class:`modfast.optim.AdamW`, also once the loss of the task is near zero.
            enmeshment_weight: its factor; given with it, never alone.
            checkpoint: a file with the state of the run, written every ten seconds and at the end. If it
                exists, the run goes on from there, bit for bit as if it had not stopped; the model must be as
                it was at the run's beginning, or as it is in the checkpoint. It is not removed.
            progress: called with the number of steps done and of all;
                :func:`modfast.progress.progress_bar` returns a function that shows the time left.

        Returns:
            For each ``evaluate_every`` steps, and for the last one: ``step``, ``loss`` (of its batch, in
            nats), ``test_loss`` and ``test_accuracy``; with a loss its value, ``enmeshment``.

        Raises:
            TypeError: ``model`` is no ``nn.Module`` or returns no logits; ``enmeshment`` is no loss.
            ValueError: an argument is out of its range, or nothing of the model learns; ``enmeshment`` has
                weights of another model, or only one of it and ``enmeshment_weight`` is given.
            TrainingError: the loss is not finite, or ``checkpoint`` is damaged, of another run or of more
                steps.
            OSError: ``checkpoint`` cannot be read or written.

        Source: "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217), section
        3, with a larger learning rate.

        Example:
            >>> task = modular_addition(11)
            >>> history = task.train(task.model("mlp", hidden=20), steps=3)
            >>> [record["step"] for record in history]
            [3]
        """
        settings = Settings(
            steps, learning_rate, weight_decay, batch_size, evaluate_every, seed, enmeshment_weight
        )
        return train_task(self, model, settings, checkpoint, progress, enmeshment)

    def logits(self, model: nn.Module) -> Tensor:
        """Return a model's answers for all pairs: float64 ``(p, p, classes)``, on the CPU.

        Args:
            model: maps int64 pairs ``(n, 2)`` to logits; it runs in evaluation mode and is left as it was.

        Raises:
            TypeError: the model returns no logits.
            ValueError: there is not one row of logits for each pair.

        Example:
            >>> task = modular_addition(5)
            >>> task.logits(task.model("mlp")).shape
            torch.Size([5, 5, 5])
        """
        with evaluating(model):
            logits = logits_of(model(self.pairs.to(device_of(model))))
        return self._on_a_grid("model", logits)

    def activations(self, model: nn.Module, layer: str) -> Tensor:
        """Return what a linear layer reads for all pairs: float64 ``(p, p, in)``, on the CPU.

        For neurons name the layer that reads them: ``"fc2"``, or ``"transformer.blocks.0.mlp_out"``. The unit
        of the i-th is ``read_network(...).layers[layer].col_units[i]``.

        Args:
            model: maps int64 pairs ``(n, 2)`` to logits; it runs in evaluation mode and is left as it was.
            layer: the name of a linear layer. Where it runs for several places of a sequence, as in a
                transformer, its values at the last place are taken, where the answer is given.

        Raises:
            ValueError: there is no such linear layer, or it does not run once and read ``(n, in)`` or
                ``(n, length, in)``.

        Example:
            >>> task = modular_addition(5)
            >>> task.activations(task.model("mlp", hidden=8), "fc2").shape
            torch.Size([5, 5, 8])
        """
        found = find_layer(model, layer, "layer")
        if not found.is_linear:
            raise ValueError(
                f"layer must name a linear layer, got {layer!r} of a {type(found.module).__name__}"
            )
        read: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read.append(inputs[0].detach().clone())

        hook = found.module.register_forward_pre_hook(keep)
        try:
            with evaluating(model), not_compiled():
                model(self.pairs.to(device_of(model)))
        finally:
            hook.remove()
        if len(read) != 1:
            raise ValueError(f"layer must run once, {layer!r} ran {len(read)} times")
        return self._on_a_grid(f"layer {layer!r}", read[0][:, -1] if read[0].dim() == 3 else read[0])

    def _on_a_grid(self, what: str, values: Tensor) -> Tensor:
        """Numbers for each pair, ``(p * p, n)``, as ``(p, p, n)``."""
        if values.dim() != 2 or len(values) != len(self.pairs):
            raise ValueError(
                f"{what} must have one row of numbers for each of {len(self.pairs)} pairs, "
                f"got shape {tuple(values.shape)}"
            )
        return values.cpu().to(torch.float64).reshape(self.p, self.p, -1)


def modular_addition(p: int = 113, train_share: float = 0.5, seed: int = 0) -> ModularAddition:
    """Make the task to add two numbers modulo p, the standard example of a network that is understood.

    Networks that generalise compute with waves: a neuron's activation is a wave of a few frequencies k in a
    and b, most often one, and the logit of c is a sum of ``cos(2 pi k (a + b - c) / p)`` over a few key
    frequencies. So one knows which neurons belong together (:func:`neuron_frequencies`), and what circuits
    and clusters must find.

    Args:
        p: the modulus, at least 3. Choose a prime, so that all frequencies are alike.
        train_share: the share of all pairs that is trained on; the rest is held out. The smaller p is, the
            more of it generalising takes: after 1,500 steps 0.5 is enough for 113 and for 59, whereas 31
            needs 0.8.
        seed: seeds which pairs these are.

    Raises:
        ValueError: an argument is out of its range, or no pair would be trained on or held out.

    Source: arXiv 2301.05217 (a one-layer transformer); arXiv 2301.02679 (one hidden layer).

    Example:
        >>> task = modular_addition(7, train_share=0.5)
        >>> inputs, targets = task.train_batches[0]
        >>> inputs.shape, bool((inputs.sum(1) % 7 == targets).all())
        (torch.Size([24, 2]), True)
    """
    check("p", p, Integer(3))
    check("train_share", train_share, Number(0, 1))
    check("seed", seed, SEED)
    p, count = int(p), round(train_share * int(p) ** 2)
    if not 0 < count < p * p:
        raise ValueError(
            f"train_share must leave pairs to train on and to hold out, of {p * p} it takes {count}, "
            f"got {train_share!r}"
        )
    numbers = torch.arange(p, device="cpu")
    pairs = torch.cartesian_prod(numbers, numbers)
    generator = torch.Generator("cpu").manual_seed(seed)
    is_train = torch.zeros(p * p, dtype=torch.bool, device="cpu")
    is_train[torch.randperm(p * p, generator=generator, device="cpu")[:count]] = True
    return ModularAddition(p, pairs, pairs.sum(1) % p, is_train)
