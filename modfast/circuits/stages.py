"""What happens to each channel of a layer after its sums: batch norms, activations, poolings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.layers.autograd_graph import Node, operation_name, parameter_of

from . import geometry

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.Identity(),
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""The activations, but for the leaky ReLU, which has a slope."""

# The activations, by PyTorch's names for the operations.
_RECORDED = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}


@dataclass(frozen=True)
class Stage:
    """An operation on each channel alone.

    Attributes:
        kind: the name of an activation, as for :class:`~modfast.circuits.linear_tail.TailLayer`; or
            ``"affine"``: times a number plus a number, for each channel two of its own; or ``"max"`` or
            ``"mean"``, a pooling.
        number: the slope of ``"leaky_relu"`` below zero; what the sums of ``"mean"`` are divided by; or 0.
        table: of ``"affine"`` float64 ``(2, channels)``, the factors and what is added; of poolings int32
            ``(places, width)``, the places that each place reads, -1 for none; otherwise None. Places outside
            of a channel count as zero in a mean, and not at all in a maximum.
        reads: unless it is an activation, the number of channels that it works on, and of their places.
    """

    kind: str
    number: float = 0.0
    table: Tensor | None = None
    reads: tuple[int, int] = (0, 0)

    @property
    def is_activation(self) -> bool:
        """Whether it works on each number alone."""
        return self.table is None

    def run(self, values: Tensor) -> Tensor:
        """Return what channels ``(n, channels, places)`` hold after the stage."""
        if self.kind == "leaky_relu":
            return functional.leaky_relu(values, self.number)
        if self.table is None:
            return ACTIVATIONS[self.kind](values)
        if self.kind == "affine":
            return values * self.table[0, :, None] + self.table[1, :, None]
        filler = -torch.inf if self.kind == "max" else 0.0
        padded = functional.pad(values, (0, 1), value=filler)  # -1 reads the last place
        windows = padded[:, :, self.table.long()]
        return windows.amax(3) if self.kind == "max" else windows.sum(3) / self.number

    def places(self, before: int) -> int:
        """Return how many places a channel of so many has after the stage."""
        return before if self.kind == "affine" or self.table is None else len(self.table)


def read_stage(node: Node) -> Stage | str | None:
    """Return the stage that an operation computes; a description of why it is none; None for no such kind."""
    operation = operation_name(node)
    if operation == "Gelu" and node._saved_approximate == "tanh":
        return Stage("gelu_tanh")
    if operation in _RECORDED:
        return Stage(_RECORDED[operation], float(getattr(node, "_saved_negative_slope", 0.0)))
    read = _READERS.get(operation)
    if read is None:
        return None
    parent, place = node.next_functions[0]
    if parent is None:
        return f"{operation} of what PyTorch does not record"
    shape = list(parent._input_metadata[place].shape)
    if len(shape) < 2:
        return f"{operation} of shape {tuple(shape)}, which has no channels"
    try:
        stage = read(node, shape)
    except RuntimeError:
        return f"{operation}, whose numbers are overwritten afterwards"
    if isinstance(stage, str):
        return f"{operation} {stage}"
    return replace(stage, reads=(shape[1], math.prod(shape[2:])))


def _after(node: Node) -> list[int]:
    """The size of a channel after an operation."""
    return list(node._input_metadata[0].shape[2:])


def _read_batch_norm(node: Node, shape: list[int]) -> Stage | str:
    if node._saved_training:
        return "that uses the statistics of the batch"
    mean, variance = node._saved_running_mean.detach(), node._saved_running_var.detach()
    weight, bias = node._saved_weight, parameter_of(node.next_functions[2][0])
    scale = (variance + node._saved_eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach()
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.detach()
    return Stage("affine", table=torch.stack([scale, shift]).double())


def _read_max_pool(node: Node, shape: list[int]) -> Stage | str:
    kernel = node._saved_kernel_size
    steps = (node._saved_stride or kernel, node._saved_padding, node._saved_dilation)
    return Stage("max", table=_windows(geometry.sources(shape[2:], _after(node), kernel, *steps)))


def _read_mean_pool(node: Node, shape: list[int]) -> Stage | str:
    kernel = node._saved_kernel_size
    steps = (node._saved_stride or kernel, node._saved_padding, [1] * len(kernel))
    table = geometry.sources(shape[2:], _after(node), kernel, *steps)
    divisor = node._saved_divisor_override
    is_regular = divisor is not None or (node._saved_count_include_pad and not node._saved_ceil_mode)
    if not is_regular and (table < 0).any():
        return _IRREGULAR
    return Stage("mean", float(math.prod(kernel) if divisor is None else divisor), _windows(table))


_IRREGULAR = "whose windows have several sizes"


def _read_adaptive_max_pool(node: Node, shape: list[int]) -> Stage | str:
    return Stage("max", table=_windows(geometry.adaptive_sources(shape[2:], _after(node))))


def _read_adaptive_mean_pool(node: Node, shape: list[int]) -> Stage | str:
    table = geometry.adaptive_sources(shape[2:], _after(node))
    return _IRREGULAR if (table < 0).any() else Stage("mean", float(len(table)), _windows(table))


def _windows(sources: Tensor) -> Tensor:
    return sources.T.contiguous()


def _read_mean(node: Node, shape: list[int]) -> Stage | str:
    """The mean over all places, as `x.mean((2, 3))` and adaptive pooling to one place compute it."""
    dimensions = len(shape)
    # Negative dimensions are recorded as unsigned numbers.
    recorded = getattr(node, "_saved_dim", None) or range(dimensions)
    over = {(d - 2**64 if d >= 2**63 else d) % dimensions for d in recorded}
    needed = {d for d in range(2, dimensions) if shape[d] > 1}
    if not needed <= over or over & {0, 1}:
        return "that is not over all places of a channel"
    places = math.prod(shape[2:])
    return Stage("mean", float(places), torch.arange(places, dtype=torch.int32, device="cpu")[None])


def _read_padding(node: Node, shape: list[int]) -> Stage | str:
    """Zeros around a channel. That they are zeros is not recorded; a run of the layers shows it."""
    pads = list(node._saved_pad)  # two numbers for each dimension, of the last dimension first
    dimensions = len(shape) - 2
    if any(pads[2 * dimensions :]):
        return "that adds channels"
    before = [pads[2 * d] if 2 * d < len(pads) else 0 for d in range(dimensions)][::-1]
    ones = [1] * dimensions
    return Stage("mean", 1.0, _windows(geometry.sources(shape[2:], _after(node), ones, ones, before, ones)))


_READERS: dict[str, Callable[[Node, list[int]], Stage | str]] = {
    "NativeBatchNorm": _read_batch_norm,
    "MaxPool2DWithIndices": _read_max_pool,
    "MaxPool3DWithIndices": _read_max_pool,
    "AvgPool2D": _read_mean_pool,
    "AvgPool3D": _read_mean_pool,
    "AdaptiveMaxPool2D": _read_adaptive_max_pool,
    "AdaptiveMaxPool3D": _read_adaptive_max_pool,
    "AdaptiveAvgPool2D": _read_adaptive_mean_pool,
    "AdaptiveAvgPool3D": _read_adaptive_mean_pool,
    "Mean": _read_mean,
    "ConstantPadNd": _read_padding,
}
