"""Replace tensors of a model within a context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .layer import Layer
from .names import ADAPTED_PART, spellings
from .readable import is_managed_by_fsdp
from .source import Stored
from .weight import source_of


@contextmanager
def replaced_weights(model: nn.Module, weights: Mapping[Layer, Tensor]) -> Iterator[None]:
    """Inside, the model multiplies by other weights; afterwards it is as it was.

    Args:
        model: the model that has these layers. Another thread must not use it meanwhile.
        weights: for each layer a tensor of its weight's shape, ``(out, in, *kernel)``.

    Raises:
        TypeError: FSDP keeps the model's parameters; nothing was touched.
    """
    if weights:
        require_own_parameters(model)
    whole: dict[tuple[nn.Module, str], Tensor] = {}
    for layer, weight in weights.items():
        key = (layer.module, layer.attribute)
        # A view of the given tensor, laid out as the layer stores it: gradients flow into the given tensor.
        laid_out = weight.transpose(0, 1) if layer.stored_transposed else weight
        if layer.place is None:
            whole[key] = laid_out
        else:
            if key not in whole:
                whole[key] = layer.stored().detach().clone()
            whole[key] = torch.index_copy(
                whole[key], 0, torch.tensor([layer.place], device=weight.device), laid_out[None]
            )
    with ExitStack() as stack:
        for (module, attribute), tensor in whole.items():
            parameter = Layer("", module, attribute, False).parameter
            if parameter is None:
                stack.enter_context(source_of(module, attribute).replaced(tensor))
            else:
                _replace(stack, model, parameter, tensor)
        yield


@contextmanager
def replaced_parameters(model: nn.Module, tensors: Mapping[str, Tensor], argument: str) -> Iterator[None]:
    """Inside, the model uses other tensors for its parameters or buffers of these names, and for tied ones.

    Args:
        model: as for :func:`replaced_weights`.
        tensors: by their names in the model as it is wrapped, or by their canonical names.
        argument: the name of the argument that holds ``tensors``, for messages.

    Raises:
        ValueError: a name is unknown, or the names of one tensor get two values; the message names
            ``argument``.
        TypeError: FSDP keeps the model's parameters; nothing was touched.
    """
    if tensors:
        require_own_parameters(model)
    held = _held_tensors(model, tensors)
    name_of: dict[int, str] = {}
    for name in tensors:
        if name not in held:
            raise ValueError(f"{argument}: {name!r} is no parameter or buffer of the model")
        other = name_of.setdefault(id(held[name]), name)
        if other != name and not _are_same(tensors[other], tensors[name]):
            raise ValueError(f"{argument}: {other!r} and {name!r} are one tensor of the model, but given two")
    with ExitStack() as stack:
        for name in name_of.values():
            _replace(stack, model, held[name], tensors[name])
        yield


def _held_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The model's parameters and buffers that some names stand for."""
    own: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    own.update(model.named_parameters(remove_duplicate=False))
    if all(name in own for name in names):
        return own
    # Names without wrappers. A tensor that an adapter wraps is left out: the layer of that name multiplies by
    # another one.
    spelled = [spellings(name) for name in own if ADAPTED_PART not in name.split(".")]
    plain = dict(own)
    for depth in range(max(map(len, spelled), default=0)):
        for forms in spelled:
            if depth < len(forms):
                plain.setdefault(forms[depth], own[forms[0]])
    spelling_of = {name: next((s for s in spellings(name) if s in plain), None) for name in names}
    return {name: plain[spelling] for name, spelling in spelling_of.items() if spelling is not None}


def _are_same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    return (one.shape == other.shape and one.data_ptr() == other.data_ptr()) or torch.equal(one, other)


def require_own_parameters(model: nn.Module) -> None:
    """Raises where FSDP keeps the parameters of a model, or of a part of it.

    FSDP copies between the parameters and a tensor of its own, before and after it runs the model: tensors in
    their place would overwrite the weights, or be lost.

    Raises:
        TypeError: FSDP keeps them; the message says how to get a plain model.
    """
    for name, module in model.named_modules():
        if is_managed_by_fsdp(module):
            which = f"{name!r} ({type(module).__name__})" if name else f"a {type(module).__name__}"
            raise TypeError(
                f"model must keep its parameters itself, got {which}, whose parameters FSDP keeps: load the "
                "full state into a plain model, as FullyShardedDataParallel.summon_full_params(model) shows "
                "it, or get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
                "torch.distributed.checkpoint.state_dict returns it"
            )


def _replace(stack: ExitStack, model: nn.Module, before: Tensor, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer wherever the model holds it."""
    for module in model.modules():
        for home in (module._parameters, module._buffers):
            for attribute, held in home.items():
                if held is before:
                    stack.enter_context(Stored(module, attribute).replaced(tensor))
