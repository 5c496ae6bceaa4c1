"""Find where a module's tensor comes from, to read or replace it without changing the module.

A weight is a parameter, or it is computed from parameters: by a parametrization, by the hooks of
``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune``, by a LoRA adapter of peft. This module is the
one place that knows the difference. :func:`source_of` returns the source of a module's tensor, and raises
if it is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import Linear, NonDynamicallyQuantizableLinear
from typing_extensions import override

from .names import forward_class, is_adapter, is_of
from .readable import SUMMON, UnsupportedWeightError, check_readable, check_used_as_stored, is_managed_by_fsdp
from .source import (
    Hooked,
    Parametrized,
    Source,
    Stored,
    computed_by,
    computed_tensors,
    parametrized_tensors,
    pieces_of,
)

# Classes of transformers with other parameters than the weight, which they do not combine with it.
_MULTIPLY_BY_WEIGHT = ("IdeficsDecoupledLinear",)

# The factors of a LoRA adapter, in the order in which a forward pass applies them.
_FACTORS = ("lora_A", "lora_B")


class Adapted(Source):
    """A layer's own tensor plus what peft's LoRA adapters add to it."""

    @property
    def base(self) -> Source:
        """The source of the layer's own tensor."""
        return source_of(self.module.base_layer, self.attribute)

    @property
    @override
    def shape(self) -> torch.Size:
        return self.base.shape

    @override
    def _tensor(self) -> Tensor:
        tensor = self.base.tensor()
        # Without autocast the factors are multiplied in their own dtype.
        with torch.autocast(tensor.device.type, enabled=False):
            for name in _active(self.module):
                tensor = tensor + self._change(name).to(tensor.device)
        return tensor

    def _change(self, name: str) -> Tensor:
        """What an adapter adds, laid out as the layer's own tensor is."""
        module = self.module
        down, up = (getattr(module, side)[name].weight for side in _FACTORS)
        if down.dim() > 2:
            # The first factor is a convolution with the layer's kernel, the second one a kernel of size 1.
            change = torch.tensordot(up.flatten(1), down, dims=1)
        else:
            change = up @ down
            change = change.T if module.fan_in_fan_out else change
        scaled: Tensor = change * module.scaling[name]
        return scaled

    @override
    def leaves(self) -> list[Tensor]:
        factors = (getattr(self.module, side)[name] for name in _active(self.module) for side in _FACTORS)
        return self.base.leaves() + [parameter for factor in factors for parameter in factor.parameters()]

    @override
    @contextmanager
    def replaced(self, tensor: Tensor) -> Iterator[None]:
        before = self.module._active_adapter
        self.module._active_adapter = []
        try:
            with self.base.replaced(tensor):
                yield
        finally:
            self.module._active_adapter = before

    @override
    def make_plain(self) -> None:
        raise NotImplementedError("a layer takes the place of its adapter; see modfast.layers.plain_copy")


def source_of(module: nn.Module, attribute: str) -> Source:
    """Return the source of a module's tensor.

    Raises:
        UnsupportedWeightError: the tensor is packed or quantised, or computed in a way that is not known.
    """
    source = _found_source(module, attribute)
    if attribute == "weight" and isinstance(module, (Linear, _ConvNd)):
        _check_multiplied_by(module)
    return source


def _check_multiplied_by(module: nn.Module) -> None:
    """Raises for a subclass whose own forward pass may combine the weight with other tensors of the module.

    Raises:
        UnsupportedWeightError: the module has such tensors: a mask, factors of an adapter, a gain.
    """
    kind = forward_class(module)
    if kind is not None and kind.__module__.startswith("torch."):
        return
    if is_of(module, "transformers", *_MULTIPLY_BY_WEIGHT):
        return
    # The hooks of torch.nn.utils keep what they compute a tensor from: weight_orig, weight_mask, weight_u.
    kept = tuple(f"{name}_" for name in computed_tensors(module))
    if parametrized_tensors(module):
        kept += ("parametrizations.",)
    tensors = (*module.named_parameters(), *module.named_buffers())
    others = [name for name, _ in tensors if name not in ("weight", "bias") and not name.startswith(kept)]
    if others:
        raise UnsupportedWeightError(
            module,
            "may not be what the layer multiplies by: it has a forward pass of its own, and besides weight "
            f"and bias {', '.join(map(repr, others))}",
        )


def _found_source(module: nn.Module, attribute: str) -> Source:
    """The source of a module's tensor, by how the module keeps it."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedWeightError(module, "belongs to TorchScript, which does not show it")
    check_used_as_stored(module)
    for home in (module._parameters, module._buffers):
        stored = home.get(attribute)
        if stored is not None:
            check_readable(module, attribute, stored)
            return Stored(module, attribute)
    if attribute in parametrized_tensors(module):
        return Parametrized(module, attribute)
    for key, hook in module._forward_pre_hooks.items():
        if computed_by(hook) == attribute:
            computed = [name for name in pieces_of(hook) if name not in module._parameters]
            if computed:
                raise UnsupportedWeightError(module, f"is computed from a computed tensor ({computed[0]})")
            return Hooked(module, attribute, key, hook)  # type: ignore[arg-type]
    if is_adapter(module):
        return _source_of_adapted(module, attribute)
    hint = f" but FullyShardedDataParallel, which keeps it in pieces: {SUMMON}"
    hint = hint if is_managed_by_fsdp(module) else ""
    raise UnsupportedWeightError(module, f"is no parameter, and nothing that is known computes it{hint}")


def _active(module: Any) -> list[str]:
    """The adapters that a forward pass adds to a layer."""
    if module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]


def _source_of_adapted(module: Any, attribute: str) -> Source:
    if is_of(module, "peft", "ParamWrapper") and attribute != module.parameter_name:
        return source_of(module.base_layer, attribute)
    if module.disable_adapters and module.merged:
        raise UnsupportedWeightError(module, "still contains adapters that are disabled: unmerge them first")
    base = source_of(module.base_layer, attribute)
    if module.disable_adapters or module.merged:
        return base
    if not is_of(module, "peft.tuners.lora.layer", "Linear", "Conv1d", "Conv2d", "Conv3d"):
        raise UnsupportedWeightError(
            module, "has an adapter of peft other than LoRA for linear layers and convolutions"
        )
    active = _active(module)
    if not active:
        return base
    if isinstance(base.module, NonDynamicallyQuantizableLinear):
        raise UnsupportedWeightError(
            module, "belongs to an nn.MultiheadAttention, which does not call it, with or without its adapter"
        )
    if any(name in module.lora_variant for name in active):
        raise UnsupportedWeightError(
            module, "has an adapter of another kind than plain LoRA (DoRA, for example)"
        )
    if any(module.lora_bias[name] for name in active):
        raise UnsupportedWeightError(module, "has an adapter with a bias (lora_bias=True)")
    if getattr(base.module, "groups", 1) > 1:
        raise UnsupportedWeightError(module, "belongs to a grouped convolution with an adapter")
    return Adapted(module, attribute) if attribute == "weight" else base
