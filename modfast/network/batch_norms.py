"""Batch norms that multiply the rows of the weight before them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm in evaluation mode, which multiplies the rows of the weight before it.

    Attributes:
        weight: the name of the parameter that it multiplies by; None if it has none.
        variance: the name of the buffer with its running variance; None if it keeps none.
        eps: what is added to the variance.
    """

    weight: str | None
    variance: str | None
    eps: float

    def scale(self, model: nn.Module, like: Tensor) -> Tensor:
        """Return the magnitude of the factor of each row of ``like``, a matrix, as the model has it now."""

        def value(name: str) -> Tensor:
            module, _, attribute = name.rpartition(".")
            tensor: Tensor = getattr(model.get_submodule(module), attribute)
            return tensor.detach().to(like)

        scale = like.new_ones(len(like)) if self.weight is None else value(self.weight).abs()
        return scale if self.variance is None else scale / (value(self.variance) + self.eps).sqrt()


# Batch norms, and the places of their weight, their running variance and ``eps`` among the arguments.
BATCH_NORMS: dict[str, tuple[int, int | None, int]] = {
    "batch_norm.default": (1, 4, 7),
    "_native_batch_norm_legit_no_training.default": (1, 4, 6),
    "_native_batch_norm_legit.default": (1, 4, 7),
    "_native_batch_norm_legit.no_stats": (1, None, 5),
}
