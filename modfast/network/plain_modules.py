"""Whether a module keeps units in their places, by its class: only PyTorch's own forward passes are known."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules import (
    activation,
    batchnorm,
    dropout,
    instancenorm,
    module,
    normalization,
    padding,
    pooling,
    upsampling,
)
from torch.nn.utils import prune

from modfast.layers.layer import operation
from modfast.layers.names import forward_class, is_adapter, unwrapped

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

# Files of PyTorch whose modules keep units in their order, whether computed alone or from several.
_PASSING = (activation, batchnorm, dropout, instancenorm, normalization)
# Files whose modules work along the last axes: units along an earlier axis keep their places.
_ALONG_LAST_AXES = (padding, pooling, upsampling)
_MIXING = (nn.MultiheadAttention, nn.GLU)

_OWN_FORWARD = "has a forward pass of its own"


def is_plain_sequence(module: nn.Module) -> bool:
    """Whether a module runs its children one after the other and does nothing else."""
    return isinstance(module, nn.Sequential) and what_changes(module) is None


def what_changes(module: nn.Module) -> str | None:
    """Why a module, or one that wraps it, may do something else than its class does in PyTorch.

    Args:
        module: any module. Inside an adapter the layer is checked as well.

    Returns:
        Words that follow "it"; None if it does what its class does.
    """
    inner = unwrapped(module)
    around = set(module.modules()) - set(inner.modules())
    if any(_foreign_hooks(part) for part in {*around, inner}):
        return "has hooks, which may change what it reads or puts out"
    if is_adapter(inner):
        own = "forward" in vars(inner) or not type(inner).__module__.startswith("peft.")
        return _OWN_FORWARD if own else what_changes(operation(inner))
    kind = forward_class(inner)
    known = kind is not None and (
        kind.__module__.startswith("torch.nn.")
        or (kind.__module__.startswith("transformers.") and kind.__name__ == "Conv1D")
    )
    return None if known else _OWN_FORWARD


def _foreign_hooks(hooked: nn.Module) -> bool:
    """Whether hooks other than PyTorch's own run before or after a module's forward pass."""
    hooks = (
        hooked._forward_pre_hooks,
        hooked._forward_hooks,
        module._global_forward_pre_hooks,
        module._global_forward_hooks,
    )
    return any(not _moves_no_unit(hook) for of_kind in hooks for hook in of_kind.values())


def _moves_no_unit(hook: Any) -> bool:
    """Whether a hook is PyTorch's own, which moves no unit: of weight_norm, pruning or FSDP, for example."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__self__", hook)
    home: str = getattr(owner, "__module__", type(owner).__module__)
    return home.partition(".")[0] == "torch" or isinstance(owner, prune.BasePruningMethod)


def what_moves(module: nn.Module, axes_behind: int | None) -> str | None:
    """Why a module that is no layer may move units, or may read others than the module before puts out.

    Args:
        module: any module.
        axes_behind: how many axes follow that of the units in its input: after a convolution, those of the
            kernel. None before the first layer, where there are no units yet.

    Returns:
        Words that follow "it"; None if units keep their order.
    """
    inner = unwrapped(module)
    changed = what_changes(module)
    if isinstance(inner, nn.Flatten):
        whole = inner.start_dim == 1 and inner.end_dim == -1
        return changed if whole else "flattens other axes than all but the first"
    if isinstance(inner, nn.Identity):
        return changed
    known = not isinstance(inner, _MIXING)
    if known and _is_in(inner, _PASSING):
        if isinstance(inner, BatchNorm) and axes_behind is not None and not _fits(inner, axes_behind or 1):
            return changed or "normalises another axis than that of the units"
        return changed
    if known and _is_in(inner, _ALONG_LAST_AXES):
        if axes_behind is not None and (axes_behind == 0 or not _fits(inner, axes_behind)):
            return changed or "works along the axis of the units"
        return changed
    return changed or "is of a kind that may move units"


def _is_in(module: nn.Module, files: Iterable[Any]) -> bool:
    """Whether a module's class, or one that it is derived from, is defined in these files of PyTorch."""
    names = {file.__name__ for file in files}
    return any(kind.__module__ in names for kind in type(module).__mro__)


def _fits(module: nn.Module, dims: int) -> bool:
    """Whether a module's class, by its name, takes so many axes behind the units'; some take any number."""
    named = [re.search(r"(\d)d$", kind.__name__) for kind in type(module).__mro__]
    suffix = next((match for match in named if match), None)
    return suffix is None or int(suffix[1]) == dims
