"""Read the autograd graph that PyTorch records: its operations, and the parameters that they read."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# An operation in the graph. PyTorch gives the kinds of operations no useful type.
Node: TypeAlias = Any


def operation_name(node: Node) -> str:
    """An operation's name, such as ``"Relu"``."""
    return re.sub(r"Backward\d+$", "", node.name()).removeprefix("torch::autograd::")


def parameter_of(node: Node) -> Tensor | None:
    """The parameter that a node stands for; None if it stands for none."""
    return node.variable if node is not None and operation_name(node) == "AccumulateGrad" else None


def nodes_before(start: Node) -> Iterator[Node]:
    """An operation and all operations that lead to it, the nearest first."""
    waiting = deque([] if start is None else [start])
    seen = set(waiting)
    while waiting:
        node = waiting.popleft()
        yield node
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def source_of_matrix(node: Node) -> tuple[Node, list[Node]]:
    """What a matrix is read from, and the casts and changes of its axes that lie between."""
    around = []
    while node is not None and operation_name(node) in _LAID_OUT:
        around.append(node)
        node = node.next_functions[0][0]
    return node, around


# Operations that only cast a matrix or change its axes; one of them may serve several uses, as in autocast.
_LAID_OUT = frozenset({"T", "Transpose", "Permute", "ToCopy"})


def count_uses(start: Node) -> Counter[int]:
    """How many operations read each parameter, as it is or laid out otherwise, by its ``id``."""
    sources = (
        source_of_matrix(parent)[0]
        for node in nodes_before(start)
        if operation_name(node) not in _LAID_OUT
        for parent, _ in node.next_functions
    )
    return Counter(id(parameter) for parameter in map(parameter_of, sources) if parameter is not None)


def leaves_of(tensor: Tensor) -> list[Tensor]:
    """The parameters that a tensor is computed from and that require a gradient."""
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    parameters = map(parameter_of, nodes_before(tensor.grad_fn))
    return [parameter for parameter in parameters if parameter is not None]


class Unhidden(TorchFunctionMode):
    """Inside, autograd ignores a model's ``detach`` and ``no_grad`` and records all. No value changes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.detach:
            return args[0]
        if func is torch._C._set_grad_enabled:
            return func(True)
        return func(*args, **(kwargs or {}))
