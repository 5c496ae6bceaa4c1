"""Reading a model's last linear layers from PyTorch's autograd graph.

The graph holds every operation between the parameters and an output. Modules, functions and in-place
operations look alike in it, and any other operation on the activations is visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from modfast.layers.autograd_graph import Node, count_uses, nodes_before, operation_name, parameter_of
from modfast.layers.layer import Layer

# The activations, by PyTorch's names for the operations.
_ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}
# Operations that keep the order of the numbers. Whether they also keep the rows is checked at the layers.
_RESHAPES = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone"})


class Activation(NamedTuple):
    """An elementwise function; ``slope`` is the slope of ``"leaky_relu"`` below zero, otherwise 0."""

    name: str = "identity"
    slope: float = 0.0


class Step(NamedTuple):
    """A linear layer in a forward pass.

    Attributes:
        layer: the layer.
        bias: its bias, or None.
        activation: the activation after it.
        values: its input, ``(n, in)``.
    """

    layer: Layer
    bias: Tensor | None
    activation: Activation
    values: Tensor


def linear_steps(logits: Tensor, layers: Mapping[object, Layer]) -> tuple[list[Step], str]:
    """Return the linear layers that logits come from, with at most one activation between two of them.

    Args:
        logits: ``(n, classes)``, with their autograd graph.
        layers: the model's layers, by their weight's identity.

    Returns:
        The layers, from the first to the last, back to the first other operation; and a description of that
        operation, or "" if there is none.
    """
    uses = count_uses(logits.grad_fn)
    steps: list[Step] = []
    activation = Activation()
    node: Node = logits.grad_fn
    while node is not None:
        operation = operation_name(node)
        # Logits may be cast to another dtype; a layer's input may not.
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
    node: Node, activation: Activation, layers: Mapping[object, Layer], uses: Mapping[int, int], rows: int
) -> Step | str:
    """Return the linear layer that a matrix product computes, or a description of why it is none."""
    *bias_node, _, weight_node = (parent for parent, _ in node.next_functions)
    is_transposed = weight_node is not None and operation_name(weight_node) == "T"
    weight = parameter_of(weight_node.next_functions[0][0]) if is_transposed else None
    layer = layers.get((id(weight), None))
    if weight is None or layer is None:
        return "a product with a matrix that is no layer's weight, or is computed from it"
    if uses[id(weight)] > 1:
        return f"layer {layer.name!r}, whose weight is used {uses[id(weight)]} times"
    bias = parameter_of(bias_node[0]) if bias_node else None
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


def _activation(operation: str, node: Node) -> Activation:
    if operation == "Gelu" and node._saved_approximate == "tanh":
        return Activation("gelu_tanh")
    return Activation(_ACTIVATIONS[operation], float(getattr(node, "_saved_negative_slope", 0.0)))


def _place(node: Node, layers: Mapping[object, Layer]) -> str:
    """Describe where an operation is, by the nearest layer before it."""
    before = (layers.get((id(parameter_of(earlier)), None)) for earlier in nodes_before(node))
    return next((f" at or after layer {layer.name!r}" for layer in before if layer is not None), "")
