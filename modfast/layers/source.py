"""Where a module's tensor comes from: the module stores it, or computes it from other tensors.

Each kind of source can read the tensor without changing the module, put another one in its place for a while,
and turn it into a parameter.
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
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from typing_extensions import override

from modfast.arrays import is_sharded

from .autograd_graph import nodes_before, operation_name
from .readable import UnsupportedWeightError, check_readable, has_no_shape


@dataclass(frozen=True)
class Source(ABC):
    """Where a module's tensor comes from.

    Attributes:
        module: the module whose forward pass uses the tensor.
        attribute: the tensor's name in the module, such as ``"weight"``.
    """

    module: Any
    attribute: str

    def tensor(self) -> Tensor:
        """The tensor that the forward pass uses, with its autograd graph.

        It is what evaluation mode would compute from the buffers as they are. The module does not change,
        whereas its forward pass in training mode may run a power iteration, for example.

        Raises:
            UnsupportedWeightError: it cannot be computed, or is not made of plain numbers.
        """
        try:
            tensor = self._tensor()
        except (UnsupportedWeightError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedWeightError(self.module, self._why_not_computed(error)) from error
        check_readable(self.module, self.attribute, tensor)
        if is_sharded(tensor) and tensor.requires_grad:
            self._check_differentiable(tensor)
        return tensor

    @abstractmethod
    def _tensor(self) -> Tensor:
        """What :meth:`tensor` returns, before it is checked."""

    def _why_not_computed(self, error: Exception) -> str:
        reason = f"{type(error).__name__}: {error}"
        if any(map(is_sharded, self.leaves())):
            return f"is computed from parameters spread over processes (DTensor), which fails: {reason}"
        return f"cannot be computed: {reason}"

    def _check_differentiable(self, tensor: Tensor) -> None:
        """Raises for a weight under FSDP2 or tensor parallelism whose ``backward()`` would fail."""
        if any(operation_name(node) == "WeightNormInterface" for node in nodes_before(tensor.grad_fn)):
            raise UnsupportedWeightError(
                self.module,
                "is computed by weight_norm from parameters spread over processes (DTensor), for "
                "which PyTorch has no gradient",
            )

    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """The parameters that the tensor is computed from; the tensor itself if it is stored."""

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
        """Change the module: a computed tensor becomes a parameter that depends on no other."""


class Stored(Source):
    """A parameter, or a buffer."""

    @property
    def _home(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self.module._parameters
        buffers: dict[str, Any] = self.module._buffers
        return parameters if self.attribute in parameters else buffers

    @override
    def _tensor(self) -> Tensor:
        stored: Tensor = self._home[self.attribute]
        return stored

    @override
    def leaves(self) -> list[Tensor]:
        return [self._tensor()]

    @override
    @contextmanager
    def replaced(self, tensor: Tensor) -> Iterator[None]:
        before = self._tensor()
        self._put(tensor)
        try:
            yield
        finally:
            self._put(before)

    def _put(self, tensor: Tensor) -> None:
        self._home[self.attribute] = tensor
        if isinstance(self.module, nn.RNNBase):  # it computes with a list of its own
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
    def _tensor(self) -> Tensor:
        computes = self._lists[self.attribute]
        buffers = {name: buffer.clone() for name, buffer in computes.named_buffers()}
        with in_evaluation_mode(computes):
            # spectral_norm writes to its buffers in training mode; others may do so at any time.
            tensor: Tensor = functional_call(computes, buffers) if buffers else computes()
        return tensor

    @override
    def leaves(self) -> list[Tensor]:
        return list(self._lists[self.attribute].parameters())

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
        # the class stays as it is, and the module gets its original class back, for all tensors at once.
        module = self.module
        tensors = {name: Parametrized(module, name).tensor().detach() for name in self._lists}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        for name, tensor in tensors.items():
            module.register_parameter(name, nn.Parameter(tensor.clone()))


class _Constant(nn.Module):
    """Stands in for the module that computes a parametrised tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.__dict__["tensor"] = tensor  # not registered here, even if it is a parameter

    def forward(self) -> Tensor:
        tensor: Tensor = self.__dict__["tensor"]
        return tensor


@dataclass(frozen=True)
class _ConstantHook:
    """Stands in for a hook that computes a tensor."""

    name: str
    tensor: Tensor

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        module.__dict__[self.name] = self.tensor  # setattr would register a parameter


@dataclass(frozen=True)
class Hooked(Source):
    """Computed before each forward pass by a hook of ``torch.nn.utils``.

    Attributes:
        key: the hook's key among the module's forward pre-hooks.
        hook: the hook.
    """

    key: int
    hook: WeightNorm | SpectralNorm | prune.BasePruningMethod | _ConstantHook

    @override
    def _tensor(self) -> Tensor:
        tensor: Tensor
        if isinstance(self.hook, SpectralNorm):
            # The next forward pass writes to the two vectors in place; the autograd graph of this one
            # needs their present values.
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
    def leaves(self) -> list[Tensor]:
        return [self.module._parameters[name] for name in pieces_of(self.hook)]

    @property
    @override
    def shape(self) -> torch.Size:
        # The last piece has the tensor's shape, so nothing is computed.
        return self.hook.tensor.shape if isinstance(self.hook, _ConstantHook) else self.leaves()[-1].shape

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


def computed_by(hook: object) -> str | None:
    """The name of the tensor that a hook computes."""
    if isinstance(hook, (WeightNorm, SpectralNorm, _ConstantHook)):
        return hook.name
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else None


def pieces_of(hook: object) -> list[str]:
    """The names of the parameters from which a hook computes a tensor."""
    name = computed_by(hook)
    if isinstance(hook, _ConstantHook):
        return []
    return [f"{name}_g", f"{name}_v"] if isinstance(hook, WeightNorm) else [f"{name}_orig"]


def computed_tensors(module: nn.Module) -> dict[str, list[str]]:
    """The tensors that a module computes, each with those of its parameters from which a hook computes it."""
    pieces: dict[str, list[str]] = {name: [] for name in parametrized_tensors(module)}
    for hook in module._forward_pre_hooks.values():
        name = computed_by(hook)
        if name is not None:
            pieces[name] = pieces_of(hook)
    return pieces


def parametrized_tensors(module: nn.Module) -> list[str]:
    """The names of the tensors that ``torch.nn.utils.parametrize`` computes."""
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside; afterwards it is as it was.

    Example:
        >>> model = nn.Dropout()
        >>> with in_evaluation_mode(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    with in_mode(module, training=False):
        yield


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module into training or evaluation mode inside; afterwards each submodule has its own mode again.

    A class may do more in ``train`` and ``eval`` than set the mode: it may add an adapter to its weight in
    evaluation mode and take it out in training mode. Its own ``train`` takes it back, and its parameters are
    then put back, since adding and taking out leaves rounding errors.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    switching = [(submodule, mode) for submodule, mode in modes if _switches_itself(submodule)]
    parameters = [
        (part._parameters, dict(part._parameters))
        for part in {part: None for submodule, _ in switching for part in submodule.modules()}
        if isinstance(part._parameters, dict)  # TorchScript has no dict
    ]
    values = {
        id(parameter): (parameter, parameter.detach().clone())
        for _, held in parameters
        for parameter in held.values()
        if parameter is not None and not has_no_shape(parameter) and not parameter.is_meta
    }
    try:
        module.train(training) if training else module.eval()
        yield
    finally:
        try:
            for submodule, mode in switching:  # the outermost first: it switches those within it as well
                submodule.train(mode)
        finally:
            for home, held in parameters:
                home.clear()
                home.update(held)
            for parameter, value in values.values():
                if not torch.equal(parameter, value):
                    # Through .data, as such modules do it themselves, since autograd allows no other way.
                    parameter.data.copy_(value)
            for submodule, mode in modes:
                submodule.training = mode


def _switches_itself(module: nn.Module) -> bool:
    """Whether a module has a ``train`` or ``eval`` of its own, which may do more than set the mode."""
    return any(
        name in vars(module) or getattr(type(module), name) is not getattr(nn.Module, name)
        for name in ("train", "eval")
    )
