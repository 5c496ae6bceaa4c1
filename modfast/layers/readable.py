"""Check that a tensor holds the numbers that a layer multiplies by, and say why others cannot be read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import Linear
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from modfast.arrays import is_sharded

from .names import is_of

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# The attributes in which torch.ao and torchao keep the fake quantiser of a weight.
_QUANTISERS = ("weight_fake_quant", "weight_fake_quantizer")

SUMMON = "read it within FullyShardedDataParallel.summon_full_params"


class UnsupportedWeightError(ValueError):
    """A layer's weight is kept in a form that modfast cannot read.

    Args:
        module: the layer.
        reason: why, in words that follow "its weight".
        name: the layer's name.
    """

    def __init__(self, module: nn.Module, reason: str, name: str | None = None) -> None:
        which = "a layer" if name is None else f"layer {name!r}"
        super().__init__(f"{which} ({type(module).__name__}) cannot be read: its weight {reason}")
        self.module, self.reason = module, reason

    def of(self, name: str) -> UnsupportedWeightError:
        """The same error with the layer's name in its message."""
        named = UnsupportedWeightError(self.module, self.reason, name)
        named.__cause__ = self.__cause__
        return named


def has_no_shape(tensor: object) -> bool:
    """Whether a tensor belongs to a lazy module that was not called yet."""
    # torch.compile cannot trace PyTorch's is_lazy.
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


def check_readable(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Raises unless a tensor holds its numbers in plain form.

    Args:
        module: the module whose forward pass uses the tensor.
        attribute: the tensor's name in the module.
        tensor: a parameter, a buffer, or a tensor computed from some.

    Raises:
        UnsupportedWeightError: it is packed, quantised, sparse, a flat piece, or has no shape yet.
    """
    # The usual types first: this runs at every look-up of a weight.
    unusual = type(tensor) not in (nn.Parameter, Tensor)
    if unusual and has_no_shape(tensor):
        raise UnsupportedWeightError(module, "has no shape yet: call the model once")
    if tensor.dtype not in _FLOATS:
        raise UnsupportedWeightError(module, f"is packed or quantised ({tensor.dtype})")
    if tensor.layout != torch.strided:
        raise UnsupportedWeightError(module, f"is not dense ({tensor.layout})")
    # A subclass may store its numbers in any form behind its shape and dtype. DTensor is supported.
    dispatches = unusual and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if dispatches and not is_sharded(tensor):
        raise UnsupportedWeightError(
            module, f"is a {type(tensor).__name__}, which may keep its numbers in any form"
        )
    if attribute == "weight" and isinstance(module, (Linear, _ConvNd)) and tensor.dim() < 2:
        raise UnsupportedWeightError(
            module,
            f"has shape {tuple(tensor.shape)}, a flat piece such as FullyShardedDataParallel leaves: "
            f"{SUMMON}, or use fully_shard",
        )


def require_shape(name: str, tensor: Tensor) -> None:
    """Raises for a parameter or buffer of a lazy module that was not called yet.

    Args:
        name: the tensor's name, for the message.
        tensor: any tensor.

    Raises:
        ValueError: the tensor has no shape.
    """
    if has_no_shape(tensor):
        raise ValueError(f"{name} has no shape yet: call the model once")


def check_used_as_stored(module: nn.Module) -> None:
    """Raises where a module's forward pass rounds its weight before it multiplies by it.

    Raises:
        UnsupportedWeightError: the module multiplies by another weight than the stored one.
    """
    rounds = any(getattr(module, name, None) is not None for name in _QUANTISERS)
    if rounds or is_of(module, "transformers", "AutoBitLinear"):
        raise UnsupportedWeightError(module, "is quantised in each forward pass, which uses other numbers")


def is_managed_by_fsdp(module: nn.Module) -> bool:
    """Whether FSDP (``FullyShardedDataParallel`` or ``fully_shard``) wraps a module or has its parameters."""
    managed = getattr(module, "_is_fsdp_managed_module", False) is True
    return managed or is_of(module, "torch.distributed", "FullyShardedDataParallel", "FSDPModule")
