"""The enmeshment loss in the ``Trainer`` of Lightning, as a callback."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import ref

from modfast.layers.layer import Choices
from modfast.network.units import Network
from modfast.partition import Partition

from .steps import EnmeshmentSteps, PartitionsOrPath, Schedule

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.strategies import DeepSpeedStrategy
except ImportError as error:
    raise ImportError(
        f'modfast.integrations.lightning needs lightning ({error}); run: pip install "modfast[lightning]"'
    ) from error

__all__ = ["EnmeshmentCallback"]


class EnmeshmentCallback(Callback):
    """Adds ``weight`` times the enmeshment loss to what a ``Trainer`` of Lightning minimises.

    ``Trainer(..., callbacks=[EnmeshmentCallback(4, 20.0, layers="fc2")])`` is all. The gradient is added once
    in each optimiser step, after the last of its batches, after gradients are averaged over processes and
    unscaled, and before they are clipped: so it is the same for any number of accumulated batches, on any
    number of processes and in mixed precision, and clipping (``gradient_clip_val``) clips the gradient of the
    sum. Manual optimisation works too.

    ``enmeshment``, ``clusterability`` and ``clusterability/<layer>``, of the weights that a step begins with,
    are logged through ``LightningModule.log`` at the steps at which the ``Trainer`` logs
    (``log_every_n_steps``). Each checkpoint holds the partitions as the callback's state, and
    ``fit(ckpt_path=...)`` restores them whatever was given here, and a second ``fit`` of the same ``Trainer``
    and module goes on with those of the first;
    ``modfast.partition.unpack_partitions(torch.load(path)["callbacks"]["EnmeshmentCallback"]["partitions"])``
    reads them.

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
        module: the part of the ``LightningModule`` whose layers are meant, such as ``"model"``: names of
            layers, and the network, are then those of ``lightning_module.model``.

    Raises:
        ValueError, TypeError: an argument is not allowed. When training begins: the layers are not in the
            model, none of their parameters is trained, several optimisers share them, or the strategy is
            DeepSpeed's.
        OSError: the file of partitions cannot be read.

    Steps are those of the optimiser that holds the layers. If manual optimisation makes several of them in
    one batch, they count as one for ``schedule`` and ``recluster_at``.

    Source: arXiv 2409.15747.

    Example:
        >>> callback = EnmeshmentCallback(4, 20.0, layers="fc2")
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
        module: str = "",
    ) -> None:
        if not isinstance(module, str):
            raise TypeError(f"module must be a name, got {type(module).__name__}")
        self._steps = EnmeshmentSteps(
            partitions, weight, layers, exclude, schedule, recluster_at, network, seed
        )
        self._module = module
        self._restored: dict[str, Any] | None = None
        self._done = 0
        self._is_stepping = False
        self._optimizer: Any = None
        self._trained: tuple[ref[Any], ref[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the weak references, which cannot be copied or sent to another process."""
        return {**self.__dict__, "_trained": None}

    def __repr__(self) -> str:
        return f"EnmeshmentCallback({self._steps.described()})"

    @property
    def partitions(self) -> dict[str, Partition]:
        """The present partitions by name of layer.

        Raises:
            RuntimeError: training has not begun.
        """
        return self._steps.loss.partitions

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget what was restored for an earlier run; comes before this run's checkpoint is read."""
        self._restored = None
        if stage == "fit" and trainer.global_step > 0 and self._trained == (ref(trainer), ref(pl_module)):
            # The Trainer goes on where its last fit ended, and so do partitions and steps.
            self._restored = self.state_dict()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the layers, and restore a checkpoint's partitions."""
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ValueError(
                "strategy must not be DeepSpeed's, which keeps gradients where no callback can add to them"
            )
        try:
            model = pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise ValueError(f"module: {self._module!r} is no part of {type(pl_module).__name__}") from error
        holders = self._steps.begin(model, trainer.optimizers)
        if len(holders) > 1:
            raise ValueError(f"layers must belong to one optimiser, got parameters of {len(holders)} of them")
        self._optimizer = trainer.optimizers[holders[0]]
        self._trained = ref(trainer), ref(pl_module)
        self._done, self._is_stepping = 0, False
        if self._restored is not None:
            self._steps.restore(self._restored["partitions"])
            self._done = self._restored["steps"]
        elif any(step < trainer.global_step for step in self._steps.recluster_at):
            raise ValueError(
                f"recluster_at must be at least {trainer.global_step}, the step of a checkpoint or of an "
                "earlier fit that knew no partitions of this module, got "
                f"{sorted(self._steps.recluster_at)}"
            )
        else:
            self._done = trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add the gradient: after unscaling, before clipping."""
        if optimizer is not self._optimizer:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # Lightning leaves unscaling to the optimisers that can do it, such as fused ones.
        still_scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
        self._steps.add_gradient(self._done, scaler if still_scaled else None)
        self._is_stepping = True
        # As Lightning's own LearningRateMonitor asks: there is no public name for it.
        if trainer._logger_connector.should_update_logs:
            pl_module.log_dict(self._steps.logs(), on_step=True, on_epoch=False)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Count the step; checkpoints are written after this."""
        self._done += self._is_stepping
        self._is_stepping = False

    def state_dict(self) -> dict[str, Any]:
        """The partitions and the number of steps done, for a checkpoint."""
        if not self._steps.has_begun:
            return {}
        return {"partitions": self._steps.packed(), "steps": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until training begins."""
        self._restored = state_dict
