"""The enmeshment loss in the ``Trainer`` of transformers, as a callback."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modfast.layers.layer import Choices
from modfast.network.units import Network
from modfast.partition import Partition, load_partitions, pack_partitions, save_partitions

from .steps import EnmeshmentSteps, PartitionsOrPath, Schedule, as_text, from_text

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ImportError(
        f"modfast.integrations.transformers needs transformers ({error}); run: "
        'pip install "modfast[transformers]"'
    ) from error

__all__ = ["EnmeshmentCallback"]

PARTITIONS_FILE = "partitions.npz"
"""The file in each checkpoint's folder."""

# The name in trainer_state.json. Not the class's: Trainer would make a callback of that name from the entry,
# which cannot hold functions.
_ENTRY = "modfast_partitions"


class EnmeshmentCallback(TrainerCallback):
    """Adds ``weight`` times the enmeshment loss to what a ``Trainer`` of transformers minimises.

    ``Trainer(..., callbacks=[EnmeshmentCallback(4, 20.0, layers="*.mlp.c_fc")])`` is all. The gradient is
    added once in each optimiser step, before the first of its batches: so it is the same for any number of
    accumulated batches, on any number of processes and in mixed precision, and clipping (``max_grad_norm``)
    clips the gradient of the sum, as it would if the loss were part of the model's.

    The layers are found in the model that the ``Trainer`` has when training begins; compilation, DDP and peft
    may wrap it. The weight of a layer with LoRA adapters is ``W`` with the active adapters added, and the
    gradient goes into these. ``enmeshment``, ``clusterability`` and ``clusterability/<layer>``, of the
    weights that the last step began with, are in the log entries that have the training loss, and in
    ``trainer.state.log_history``.

    Each checkpoint's folder holds ``partitions.npz`` (:func:`modfast.load_partitions` reads it), and its
    ``trainer_state.json`` the same partitions, which ``train(resume_from_checkpoint=...)`` restores whatever
    was given here. After ``load_best_model_at_end`` the partitions are those of the best checkpoint;
    a warning says so if it has none.

    Args:
        partitions: the number of clusters; or :class:`modfast.Partition` by name of layer; or the path of a
            file of :func:`modfast.save_partitions`. A number means contiguous blocks: of each layer, or with
            ``network`` of each of its spaces. Take it for a model that is trained from scratch; for a trained
            one find clusters in its weights, or give ``recluster_at=0``.
        weight: the factor of the loss, lambda in the paper.
        layers: the layers, chosen as for :class:`modfast.EnmeshmentLoss`. By default those of the partitions,
            or with a number of clusters every linear layer whose weight is no embedding's.
        schedule: a function from the number of optimiser steps done to a factor of ``weight``; None keeps it
            constant. :mod:`modfast.integrations.schedules` has some. Where it is 0, no gradient changes.
        recluster_at: the number of optimiser steps, or several, after which clusters are found anew, by
            spectral clustering of the weights as they are then, as many as there were; 0 is before the first.
            The first process finds them for all.
        exclude: layers to leave out, chosen in the same ways.
        network: the model as units joined by weights. Then clusters that are found anew are clusters of
            units: what one layer writes and another reads stays in the same cluster, as in
            ``network.partitions(labels)``. Without it each layer is clustered alone.
        seed: of the clustering.

    Raises:
        ValueError, TypeError: an argument is not allowed. When training begins: the layers are not in the
            model, none of their parameters is trained, or the training cannot take a gradient that is added
            (DeepSpeed, and optimisers that step within the backward pass).
        OSError: the file of partitions cannot be read.

    Source: arXiv 2409.15747.

    Example:
        >>> callback = EnmeshmentCallback(4, 20.0, layers="*.mlp.c_fc", recluster_at=0)
    """

    def __init__(
        self,
        partitions: PartitionsOrPath,
        weight: float,
        layers: Choices | None = None,
        schedule: Schedule | None = None,
        recluster_at: int | Iterable[int] | None = None,
        *,
        exclude: Choices | None = None,
        network: Network | None = None,
        seed: int = 0,
    ) -> None:
        self._steps = EnmeshmentSteps(
            partitions, weight, layers, exclude, schedule, recluster_at, network, seed
        )
        self._is_first = False
        self._is_added = False

    def __repr__(self) -> str:
        return f"EnmeshmentCallback({self._steps.described()})"

    @property
    def partitions(self) -> dict[str, Partition]:
        """The present partitions by name of layer.

        Raises:
            RuntimeError: training has not begun.
        """
        return self._steps.loss.partitions

    def add_to(self, trainer: Any) -> None:
        """Add the callback to a ``Trainer`` before all others, or move it there.

        Reporters (``report_to="wandb"``, ``"tensorboard"`` ...) come before the callbacks that ``Trainer``
        is given, so that those can add nothing to what is reported. Use this instead of ``callbacks=[...]``
        to have enmeshment and clusterability reported.
        """
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(each for each in callbacks if each is not self)]
        self._is_first = True

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Find the layers, and restore a checkpoint's partitions."""
        _refuse(args)
        # A new state belongs to each training; two callbacks would overwrite each other's entry.
        if vars(state).setdefault("_enmeshment_callback", self) is not self:
            raise ValueError(
                "callbacks must hold one EnmeshmentCallback, got two: one takes any number of layers"
            )
        if args.report_to and not self._is_first:
            warnings.warn(
                f"enmeshment and clusterability will not be reported to {', '.join(args.report_to)}, which "
                "come before this callback: use callback.add_to(trainer)",
                stacklevel=2,
            )
        self._is_added = False
        self._steps.begin(model, [optimizer])
        saved = state.stateful_callbacks.get(_ENTRY)
        if saved is not None:
            self._steps.restore(from_text(saved))
        elif any(step < state.global_step for step in self._steps.recluster_at):
            raise ValueError(
                f"recluster_at must be at least {state.global_step}, the step of a checkpoint that was saved "
                f"without an EnmeshmentCallback, got {sorted(self._steps.recluster_at)}"
            )
        state.stateful_callbacks[_ENTRY] = as_text(self._steps.packed())

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Add the gradient.

        Here, because no event lies between the last batch and clipping. Gradients are None or zero now, all
        batches add to what is there, and DDP averages that sum over processes: equal parts stay as they are.
        A ``GradScaler`` changes its scale only in its ``update``, so this gradient is unscaled like the rest.
        """
        if self._is_added:  # the last step was given up between its batches, and its gradients are kept
            return
        # Trainer does the same before each batch: a schedule-free optimiser then shows the weights it trains.
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        if self._steps.add_gradient(state.global_step, getattr(optimizer, "scaler", None)):
            state.stateful_callbacks[_ENTRY] = as_text(self._steps.packed())
        self._is_added = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step is made."""
        self._is_added = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add loss and clusterability to an entry that has the training loss."""
        if not logs or "loss" not in logs:
            return
        values = self._steps.logs()
        logs.update(values)
        # Trainer has appended a copy already.
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1].update(values)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the partitions into the checkpoint's folder."""
        if not args.should_save:
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"output_dir must hold the checkpoint, but there is no {folder} for its partitions; "
                "hyperparameter_search saves elsewhere and needs save_strategy='no'"
            )
        save_partitions(folder / PARTITIONS_FILE, self.partitions)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the partitions of the checkpoint whose weights the model now has."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            path = Path(state.best_model_checkpoint) / PARTITIONS_FILE
            if not path.exists():  # to raise now would cost the whole training
                warnings.warn(
                    f"the best checkpoint has no {path}, since it was saved without an EnmeshmentCallback: "
                    "the partitions are those of the last step, not those of the model's weights",
                    stacklevel=2,
                )
                return
            self._steps.restore(pack_partitions(load_partitions(path)))


def _refuse(args: Any) -> None:
    """Raise for trainings that would ignore, or count twice, a gradient that is added to ``.grad``."""
    if getattr(args, "deepspeed", None):
        raise ValueError(
            "deepspeed must be None: DeepSpeed keeps gradients where no callback can add to them; use FSDP"
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optimizer or optimizer.endswith("_layerwise"):
        raise ValueError(
            f"optim must be an optimiser that steps after the backward pass, got {optimizer!r}, which steps "
            "within it"
        )
