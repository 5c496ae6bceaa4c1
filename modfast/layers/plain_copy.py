"""A copy of a model in its plainest form: the same function of plain parameters, without wrappers."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from modfast.arrays import require_whole

from .layer import operation
from .names import is_adapter, unwrapped
from .readable import UnsupportedWeightError, require_shape
from .replaced import require_own_parameters
from .source import computed_tensors
from .weight import source_of


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model without wrappers, whose weights are parameters wherever they can be read.

    Parametrised and pruned weights and those with LoRA adapters become parameters, with the values that the
    forward pass in evaluation mode multiplies by. So its modules have their canonical names, and an autograd
    graph shows its weights. The model itself is not changed.

    Raises:
        TypeError: a parameter or buffer is spread over processes (``DTensor``), or FSDP keeps it.
        ValueError: a parameter or buffer has no shape yet.

    Example:
        >>> model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> [name for name, _ in plain_copy(nn.DataParallel(model)).named_parameters()]
        ['bias', 'weight']
    """
    require_own_parameters(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        require_whole(f"model: {name!r}", tensor)
        require_shape(f"model: {name!r}", tensor)
    inner = unwrapped(model)
    # PyTorch refuses to copy tensors with an autograd graph; those that modules keep are copied without it.
    attributes = (value for module in inner.modules() for value in vars(module).values())
    computed = [value for value in attributes if isinstance(value, Tensor) and not value.is_leaf]
    copied = copy.deepcopy(inner, {id(tensor): tensor.detach().clone() for tensor in computed})
    return _plain(copied, {})


def _plain(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module without wrappers, with plain parameters; changed in place."""
    inner = unwrapped(module)
    if inner in done:
        return done[inner]
    if is_adapter(inner):
        try:
            weight = source_of(inner, "weight").tensor().detach().clone()
        except UnsupportedWeightError:
            done[inner] = inner  # left as it is; reading its weight raises with the reason
            return inner
        layer: nn.Module = operation(inner)
        _make_plain(layer)
        layer.weight = nn.Parameter(weight)
        done[inner] = layer
        return layer
    _make_plain(inner)
    done[inner] = inner
    for name, child in inner._modules.items():
        if child is not None:
            inner._modules[name] = _plain(child, done)
    return inner


def _make_plain(module: nn.Module) -> None:
    """Make parameters of the tensors that a module computes itself."""
    for name in computed_tensors(module):
        try:
            source_of(module, name).make_plain()
        except UnsupportedWeightError:
            continue  # as above
