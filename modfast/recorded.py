"""What PyTorch records for gradients: by which operations an output came about, down to the parameters.

Modules and functions, in place or not, are the same there, and whatever else touches the activations shows.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .layers import Layer

# An operation with its inputs: PyTorch gives its kinds no useful type.
_Node: TypeAlias = Any

# Operations by PyTorch's names for them.
_ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}
# These keep the order of the numbers. That they keep the rows as well is seen at the layers.
_RESHAPES = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone"})


class Activation(NamedTuple):
    """An elementwise function; ``slope`` is that of ``"leaky_relu"`` below zero, otherwise 0."""

    name: str = "identity"
    slope: float = 0.0


class Step(NamedTuple):
    """A linear layer as it was run.

    Attributes:
        layer: which one.
        bias: its bias, if any.
        activation: what follows it.
        values: what it read, ``(n, in)``.
    """

    layer: Layer
    bias: Tensor | None
    activation: Activation
    values: Tensor


class Unhidden(TorchFunctionMode):
    """Inside, PyTorch records also what a model hides by ``detach`` or ``no_grad``. No value changes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.detach:
            return args[0]
        if func is torch._C._set_grad_enabled:
            return func(True)
        return func(*args, **(kwargs or {}))


def linear_steps(logits: Tensor, layers: Mapping[object, Layer]) -> tuple[list[Step], str]:
    """The linear layers that logits come from, with one activation at most between two of them.

    Args:
        logits: ``(n, classes)``, with their record.
        layers: by their weight's identity.

    Returns:
        The layers, from the first to the last, as far back as there is nothing else; and, in words, what then
        comes, or "" if nothing does.
    """
    uses = _count_uses(logits.grad_fn)
    steps: list[Step] = []
    activation = Activation()
    node: _Node = logits.grad_fn
    while node is not None:
        operation = _operation(node)
        # Logits may be rounded to another dtype; what a layer reads may not.
        if operation in _RESHAPES or (operation == "ToCopy" and not steps):
            node = node.next_functions[0][0]
        elif operation in _ACTIVATIONS and steps and activation.name == "identity":
            activation = _activation(operation, node)
            node = node.next_functions[0][0]
        elif operation in ("Addmm", "Mm"):
            step = _linear_step(node, activation, layers, uses, len(logits))
            if isinstance(step, str):
                return steps, step
            steps.insert(0, step)
            activation = Activation()
            node = node.next_functions[-2][0]
        else:
            return steps, operation + _place(node, layers)
    return steps, ""


def _linear_step(
    node: _Node, activation: Activation, layers: Mapping[object, Layer], uses: Mapping[int, int], rows: int
) -> Step | str:
    """The linear layer that a matrix product is, or why it is none that counts."""
    *bias_node, _, weight_node = (parent for parent, _ in node.next_functions)
    turned = weight_node is not None and _operation(weight_node) == "T"
    weight = _parameter(weight_node.next_functions[0][0]) if turned else None
    layer = layers.get(id(weight))
    if weight is None or layer is None:
        return "a product with a matrix that is no layer's weight, or is computed from it"
    if uses[id(weight)] > 1:
        return f"layer {layer.name!r}, whose weight is used {uses[id(weight)]} times"
    bias = _parameter(bias_node[0]) if bias_node else None
    if bias_node and (
        bias is None or bias.shape != weight.shape[:1] or (node._saved_alpha, node._saved_beta) != (1, 1)
    ):
        return f"layer {layer.name!r}, whose bias is no parameter of shape ({len(weight)},)"
    try:
        values: Tensor = node._saved_mat1 if bias_node else node._saved_self
    except RuntimeError:
        return f"layer {layer.name!r}, whose input is overwritten afterwards"
    if len(values) != rows:
        return f"layer {layer.name!r}, which reads shape {tuple(values.shape)} for {rows} inputs"
    return Step(layer, bias, activation, values.detach())


def _operation(node: _Node) -> str:
    """An operation's name, such as ``"Relu"``."""
    return re.sub(r"Backward\d+$", "", node.name()).removeprefix("torch::autograd::")


def _activation(operation: str, node: _Node) -> Activation:
    if operation == "Gelu" and node._saved_approximate == "tanh":
        return Activation("gelu_tanh")
    return Activation(_ACTIVATIONS[operation], float(getattr(node, "_saved_negative_slope", 0.0)))


def _parameter(node: _Node) -> Tensor | None:
    """The parameter, if it is one that a node stands for."""
    return node.variable if node is not None and _operation(node) == "AccumulateGrad" else None


def _nodes(start: _Node) -> Iterator[_Node]:
    """An operation and all that lead to it, the nearest first."""
    waiting = deque([] if start is None else [start])
    seen = set(waiting)
    while waiting:
        node = waiting.popleft()
        yield node
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def _count_uses(start: _Node) -> Counter[int]:
    """How many operations read each parameter, by its ``id``."""
    parents = (parent for node in _nodes(start) for parent, _ in node.next_functions)
    return Counter(id(parameter) for parameter in map(_parameter, parents) if parameter is not None)


def _place(node: _Node, layers: Mapping[object, Layer]) -> str:
    """Where an operation is, in words: the layer whose weight is nearest to it."""
    found = (layers.get(id(_parameter(each))) for each in _nodes(node))
    return next((f" at or after layer {layer.name!r}" for layer in found if layer is not None), "")
