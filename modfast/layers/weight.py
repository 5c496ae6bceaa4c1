"""The tensors that a module computes with: read, and put others in their place, without changing the module.

A weight is a parameter, or it is computed from parameters: by a parametrization, by the hooks of
``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune``, by a LoRA adapter of peft. This module is the
one place that knows the difference. :func:`source_of` finds where a module's tensor comes from, and raises
where it cannot tell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import Linear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from typing_extensions import override

from modfast.arrays import is_sharded

from .names import is_adapter, is_of

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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


@dataclass(frozen=True)
class Source(ABC):
    """Where a module's tensor comes from.

    Attributes:
        module: whose forward pass uses it.
        attribute: its name there, such as ``"weight"``.
    """

    module: Any
    attribute: str

    @abstractmethod
    def tensor(self) -> Tensor:
        """The tensor that the forward pass uses, with its record for gradients.

        It is what evaluation mode would compute from the buffers as they are. Nothing of the module changes,
        where the forward pass in training mode would go on with a power iteration, for example.
        """

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        with torch.no_grad():
            return self.tensor().shape

    @abstractmethod
    def replaced(self, tensor: Tensor) -> Any:
        """A context in which the forward pass uses ``tensor`` instead."""

    @abstractmethod
    def make_plain(self) -> None:
        """Change the module: the tensor becomes a parameter of its own, whatever it was computed from."""


class Stored(Source):
    """A parameter, or a buffer."""

    @property
    def _home(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self.module._parameters
        buffers: dict[str, Any] = self.module._buffers
        return parameters if self.attribute in parameters else buffers

    @override
    def tensor(self) -> Tensor:
        stored: Tensor = self._home[self.attribute]
        return stored

    @override
    @contextmanager
    def replaced(self, tensor: Tensor) -> Iterator[None]:
        before = self.tensor()
        self._put(tensor)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, tensor: Tensor) -> None:
        self._home[self.attribute] = tensor
        if isinstance(self.module, nn.RNNBase):  # which computes with a list of its own
            self.module._flat_weights = [
                getattr(self.module, name) for name in self.module._flat_weights_names
            ]

    @override
    def make_plain(self) -> None:
        pass


class Parametrized(Source):
    """Computed by ``torch.nn.utils.parametrize``."""

    @property
    def _lists(self) -> nn.ModuleDict:
        lists: nn.ModuleDict = self.module.parametrizations
        return lists

    @override
    def tensor(self) -> Tensor:
        computes = self._lists[self.attribute]
        buffers = {name: buffer.clone() for name, buffer in computes.named_buffers()}
        with in_evaluation_mode(computes):
            # Buffers of spectral_norm are written to in training mode; those of others may be at any time.
            tensor: Tensor = functional_call(computes, buffers) if buffers else computes()
        return tensor

    @override
    @contextmanager
    def replaced(self, tensor: Tensor) -> Iterator[None]:
        if parametrize._cache_enabled:
            raise RuntimeError(
                "weights cannot be replaced inside torch.nn.utils.parametrize.cached(), which keeps old ones"
            )
        lists: dict[str, Any] = self._lists._modules
        before = lists[self.attribute]
        lists[self.attribute] = _Constant(tensor)
        try:
            yield
        finally:
            lists[self.attribute] = before

    @override
    def make_plain(self) -> None:
        # parametrize.remove_parametrizations changes the class, which a copy of a module shares with it. So
        # the class stays as it is, and the module no longer belongs to it, with all that it computes.
        module = self.module
        tensors = {name: Parametrized(module, name).tensor().detach() for name in self._lists}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        for name, tensor in tensors.items():
            module.register_parameter(name, nn.Parameter(tensor.clone()))


class _Constant(nn.Module):
    """Stands in for what computes a parametrised tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.__dict__["tensor"] = tensor  # whether it is a parameter or not, it is none of this module

    def forward(self) -> Tensor:
        tensor: Tensor = self.__dict__["tensor"]
        return tensor


@dataclass(frozen=True)
class _ConstantHook:
    """Stands in for a hook that computes a tensor."""

    name: str
    tensor: Tensor

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        module.__dict__[self.name] = self.tensor  # setattr would make a parameter of one


@dataclass(frozen=True)
class Hooked(Source):
    """Computed before each forward pass by a hook of ``torch.nn.utils``.

    Attributes:
        key: the hook's among the module's hooks.
        hook: the hook.
    """

    key: int
    hook: WeightNorm | SpectralNorm | prune.BasePruningMethod | _ConstantHook

    @override
    def tensor(self) -> Tensor:
        tensor: Tensor
        if isinstance(self.hook, SpectralNorm):
            # The next forward pass writes to the two vectors, which this one's record for gradients must not
            # notice.
            u, v = (getattr(self.module, f"{self.attribute}_{side}").clone() for side in "uv")
            original = getattr(self.module, f"{self.attribute}_orig")
            tensor = original / torch.dot(u, torch.mv(self.hook.reshape_weight_to_matrix(original), v))
        elif isinstance(self.hook, WeightNorm):
            tensor = self.hook.compute_weight(self.module)
        elif isinstance(self.hook, _ConstantHook):
            tensor = self.hook.tensor
        else:
            tensor = self.hook.apply_mask(self.module)
        return tensor

    @override
    @contextmanager
    def replaced(self, tensor: Tensor) -> Iterator[None]:
        hooks, attributes = self.module._forward_pre_hooks, self.module.__dict__
        before = attributes[self.attribute]
        hooks[self.key] = _ConstantHook(self.attribute, tensor)
        attributes[self.attribute] = tensor
        try:
            yield
        finally:
            hooks[self.key] = self.hook
            attributes[self.attribute] = before

    @override
    def make_plain(self) -> None:
        value = self.tensor().detach()
        if isinstance(self.hook, WeightNorm):
            remove_weight_norm(self.module, self.attribute)
        elif isinstance(self.hook, SpectralNorm):
            remove_spectral_norm(self.module, self.attribute)
        else:
            prune.remove(self.module, self.attribute)
        setattr(self.module, self.attribute, nn.Parameter(value.clone()))


class Adapted(Source):
    """A layer's own tensor and what peft's LoRA adapters add to it."""

    @property
    def base(self) -> Source:
        """The layer's own."""
        return source_of(self.module.base_layer, self.attribute)

    @property
    @override
    def shape(self) -> torch.Size:
        return self.base.shape

    @override
    def tensor(self) -> Tensor:
        tensor = self.base.tensor()
        # The factors are multiplied in their own dtype, where autocast would take another.
        with torch.autocast(tensor.device.type, enabled=False):
            for name in _active(self.module):
                tensor = tensor + self._change(name).to(tensor.device)
        return tensor

    def _change(self, name: str) -> Tensor:
        """What an adapter adds, laid out as the layer's own tensor is."""
        module = self.module
        down, up = (getattr(module, side)[name].weight for side in ("lora_A", "lora_B"))
        if down.dim() > 2:
            # The first convolution has the layer's kernel, the second one of size 1.
            change = torch.tensordot(up.flatten(1), down, dims=1)
        else:
            change = up @ down
            change = change.T if module.fan_in_fan_out else change
        scaled: Tensor = change * module.scaling[name]
        return scaled

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
        raise NotImplementedError("a layer takes the place of its adapter; see modfast.plain_model")


def source_of(module: nn.Module, attribute: str) -> Source:
    """Where a module's tensor comes from.

    Raises:
        UnsupportedWeightError: it is packed or quantised, or computed in a way that is not known.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedWeightError(module, "belongs to TorchScript, which does not show it")
    for home in (module._parameters, module._buffers):
        stored = home.get(attribute)
        if stored is not None:
            _check_readable(module, attribute, stored)
            return Stored(module, attribute)
    if attribute in _parametrized(module):
        return Parametrized(module, attribute)
    for key, hook in module._forward_pre_hooks.items():
        if _computed_by(hook) == attribute:
            computed = [name for name in _pieces_of(hook) if name not in module._parameters]
            if computed:
                raise UnsupportedWeightError(module, f"is computed from a computed tensor ({computed[0]})")
            return Hooked(module, attribute, key, hook)  # type: ignore[arg-type]
    if is_adapter(module):
        return _source_of_adapted(module, attribute)
    raise UnsupportedWeightError(module, "is no parameter, and nothing that is known computes it")


def _check_readable(module: nn.Module, attribute: str, stored: Tensor) -> None:
    if is_lazy(stored):
        raise UnsupportedWeightError(module, "has no shape yet: call the model once")
    if stored.dtype not in _FLOATS:
        raise UnsupportedWeightError(module, f"is packed or quantised ({stored.dtype})")
    if stored.layout != torch.strided:
        raise UnsupportedWeightError(module, f"is not dense ({stored.layout})")
    # A subclass may hold anything behind the shape and dtype that it shows. DTensor is known.
    if type(stored).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not is_sharded(stored):
        raise UnsupportedWeightError(
            module, f"is a {type(stored).__name__}, which may keep its numbers in any form"
        )
    if attribute == "weight" and isinstance(module, (Linear, _ConvNd)) and stored.dim() < 2:
        raise UnsupportedWeightError(
            module,
            f"has shape {tuple(stored.shape)}, a flat piece such as FullyShardedDataParallel leaves: read it "
            "within FullyShardedDataParallel.summon_full_params, or use fully_shard",
        )


def _computed_by(hook: object) -> str | None:
    """The name of the tensor that a hook computes."""
    if isinstance(hook, (WeightNorm, SpectralNorm, _ConstantHook)):
        return hook.name
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else None


def _pieces_of(hook: object) -> list[str]:
    """The names of the parameters from which a hook computes a tensor."""
    name = _computed_by(hook)
    if isinstance(hook, _ConstantHook):
        return []
    return [f"{name}_g", f"{name}_v"] if isinstance(hook, WeightNorm) else [f"{name}_orig"]


def computed_tensors(module: nn.Module) -> dict[str, list[str]]:
    """The tensors that a module computes, and from which of its own parameters hooks compute them."""
    found: dict[str, list[str]] = {name: [] for name in _parametrized(module)}
    for hook in module._forward_pre_hooks.values():
        name = _computed_by(hook)
        if name is not None:
            found[name] = _pieces_of(hook)
    return found


def _parametrized(module: nn.Module) -> list[str]:
    """The names of the tensors that ``torch.nn.utils.parametrize`` computes."""
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]


def _active(module: Any) -> list[str]:
    """The adapters that a forward pass adds to a layer."""
    if module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]


def _source_of_adapted(module: Any, attribute: str) -> Source:
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
    if any(name in module.lora_variant for name in active):
        raise UnsupportedWeightError(
            module, "has an adapter of another kind than plain LoRA (DoRA, for example)"
        )
    if any(module.lora_bias[name] for name in active):
        raise UnsupportedWeightError(module, "has an adapter with a bias (lora_bias=True)")
    if getattr(base.module, "groups", 1) > 1:
        raise UnsupportedWeightError(module, "belongs to a grouped convolution with an adapter")
    return Adapted(module, attribute) if attribute == "weight" else base


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each submodule's own mode again afterwards.

    Example:
        >>> model = nn.Dropout()
        >>> with in_evaluation_mode(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training
