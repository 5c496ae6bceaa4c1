"""Run a model without changing it: copy its inputs, read its outputs, and protect its buffers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from modfast.arrays import require_numbers

from .readable import require_shape
from .source import computed_tensors, in_evaluation_mode


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Inside, the model writes to copies of its buffers, such as running statistics; its own stay the same.

    What a module registers inside, such as a buffer made in the first forward pass, is gone afterwards.

    Raises:
        ValueError: a parameter or buffer has no shape yet, so that a run would give the model one for good.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with preserved(model):
        ...     _ = model(torch.randn(8, 2))
        >>> int(model.num_batches_tracked)
        0
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        require_shape(f"model: {name!r}", tensor)
    before = [_Contents(module) for module in model.modules()]
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.detach().clone()
                module._buffers[name] = copies[id(buffer)]
    try:
        yield
    finally:
        for contents in before:
            contents.put_back()


class _Contents:
    """What a module holds, to put it back."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        homes: tuple[Any, ...] = (module._buffers, module._parameters, module._modules)
        self._homes = [(home, dict(home.items())) for home in homes]  # TorchScript has no plain dicts
        self._not_saved = set(self._names_not_saved())
        self._attributes = dict(vars(module))

    def _names_not_saved(self) -> set[str]:
        return getattr(self._module, "_non_persistent_buffers_set", set())

    def _has_registered(self) -> bool:
        """Whether the module registered something meanwhile, or dropped it."""
        held = any([name for name, _ in home.items()] != list(before) for home, before in self._homes)
        return held or self._names_not_saved() != self._not_saved

    def put_back(self) -> None:
        """Put the buffers back; where something was registered meanwhile, all the module holds."""
        attributes = vars(self._module)
        # The hooks of torch.nn.utils store as attributes what they compute before each forward pass.
        for name in computed_tensors(self._module):
            if name in self._attributes:
                attributes[name] = self._attributes[name]
        if self._has_registered():
            for home, before in self._homes:
                home.clear()
                home.update(before)
            not_saved = self._names_not_saved()
            not_saved.clear()
            not_saved.update(self._not_saved)
            # An attribute may say that it is registered; the next run has to register it again.
            attributes.clear()
            attributes.update(self._attributes)
        buffers, before = self._homes[0]
        for name, buffer in before.items():
            buffers[name] = buffer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the model is left as it was.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    with preserved(model), in_evaluation_mode(model), torch.no_grad():
        yield


def not_compiled() -> AbstractContextManager[object]:
    """Inside, compiled models run as they were written, so that hooks of this moment are called.

    Code that ``torch.compile`` made before a hook was registered does not call it, nor does it look again.

    Example:
        >>> with not_compiled():
        ...     nn.Linear(2, 1)(torch.zeros(1, 2)).shape
        torch.Size([1, 1])
    """
    # The compiler takes seconds to import, and where nobody has imported it nothing is compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model with a tensor, a tuple of positional arguments or a mapping of keyword arguments.

    The model gets copies: many models write to their inputs, which the caller owns and may use again.

    Raises:
        TypeError: the inputs cannot be copied.
    """
    arguments = copied(inputs)
    if isinstance(arguments, Mapping):
        return model(**arguments)
    if is_several(arguments):
        return model(*arguments)
    return model(arguments)


def copied(inputs: Any) -> Any:
    """A copy of inputs of any form, whose tensors keep their autograd graph.

    Raises:
        TypeError: the inputs cannot be copied.
    """
    try:
        with _CopiesAreClones():
            return copy.deepcopy(inputs)
    except Exception as error:  # an object may raise anything
        raise TypeError(
            f"inputs must be such as can be copied, since a model may write to them: {error}"
        ) from error


class _CopiesAreClones(TorchFunctionMode):
    """Inside, a deep copy of a tensor is a clone, so that computed (non-leaf) tensors can be copied too."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0].clone() if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


def moved(inputs: Any, device: torch.device) -> Any:
    """Inputs of any form on a device: tensors, those in tuples, lists and mappings, and objects with ``.to``.

    Raises:
        TypeError: an object cannot be moved, or a container cannot hold other tensors.
        ValueError: a tensor is on the meta device, which has no numbers to move.
    """

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            if device.type != "meta":
                require_numbers("inputs", value)
            return value.to(device)
        if isinstance(value, PackedSequence):
            return value.to(device=device)  # type: ignore[call-arg]
        if isinstance(value, (type, nn.Module)) or not callable(getattr(value, "to", None)):
            return value
        own = copied(value)  # many an object moves itself rather than a copy
        try:
            return own.to(device)
        except Exception as error:  # an object may raise anything
            raise TypeError(
                f"inputs: a {type(value).__name__} cannot be moved to {device}: {error}"
            ) from error

    return with_leaves(inputs, move)


def with_leaves(inputs: Any, change: Callable[[Any], Any]) -> Any:
    """Inputs of the same form, of which each value that is no tuple, list or mapping is changed.

    A ``PackedSequence`` is one value, though it is a tuple. Inputs in which nothing changes are returned
    themselves. Tuples, named ones too, lists and mappings keep
    their type, as a model may tell them apart.

    Raises:
        TypeError: a container's class does not allow it.

    Example:
        >>> with_leaves((1, {"a": [2, 3]}), lambda value: value + 1)
        (2, {'a': [3, 4]})
    """
    if isinstance(inputs, Mapping):
        values: dict[Any, Any] = {name: with_leaves(value, change) for name, value in inputs.items()}
    elif is_several(inputs):
        values = {place: with_leaves(value, change) for place, value in enumerate(inputs)}
    else:
        return change(inputs)
    if all(value is inputs[key] for key, value in values.items()):
        return inputs
    try:
        return _refilled(inputs, values)
    except Exception as error:  # a class may raise anything
        raise TypeError(
            f"inputs: a {type(inputs).__name__} cannot be made again with other tensors: {error}"
        ) from error


def _refilled(container: Any, values: Mapping[Any, Any]) -> Any:
    """A container of the same type with other values for its keys or places."""
    if isinstance(container, tuple):
        named = hasattr(container, "_fields")
        return type(container)(*values.values()) if named else type(container)(values.values())
    own = copy.copy(container)
    for key, value in values.items():
        own[key] = value
    return own


def is_several(inputs: Any) -> bool:
    """Whether inputs are several positional arguments: a tuple or list, but no ``PackedSequence``."""
    return isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence)


def split_batch(batch: Any, argument: str) -> tuple[Any, Any]:
    """Split a batch, which is a pair or a mapping with the key ``"labels"``, into inputs and labels.

    Raises:
        TypeError: the batch is neither; the message names ``argument``.
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"a mapping with {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
    raise TypeError(
        f"{argument} must hold pairs (inputs, labels) or mappings with the key 'labels', got {got}"
    )


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, or an object or mapping with ``logits`` (transformers).

    Raises:
        TypeError: the output is neither.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return a tensor of logits, got {type(output).__name__} without .logits")
    return logits
