"""What PyTorch records for gradients: by which operations an output came about, down to the parameters.

Modules and functions, in place or not, are the same there, and whatever else touches the activations shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from modfast.layers.autograd_graph import Node, count_uses, nodes_before, operation_name, parameter_of
from modfast.layers.layer import Layer

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


def linear_steps(logits: Tensor, layers: Mapping[object, Layer]) -> tuple[list[Step], str]:
    """The linear layers that logits come from, with one activation at most between two of them.

    Args:
        logits: ``(n, classes)``, with their record.
        layers: by their weight's identity.

    Returns:
        The layers, from the first to the last, as far back as there is nothing else; and, in words, what then
        comes, or "" if nothing does.
    """
    uses = count_uses(logits.grad_fn)
    steps: list[Step] = []
    activation = Activation()
    node: Node = logits.grad_fn
    while node is not None:
        operation = operation_name(node)
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
    node: Node, activation: Activation, layers: Mapping[object, Layer], uses: Mapping[int, int], rows: int
) -> Step | str:
    """The linear layer that a matrix product is, or why it is none that counts."""
    *bias_node, _, weight_node = (parent for parent, _ in node.next_functions)
    turned = weight_node is not None and operation_name(weight_node) == "T"
    weight = parameter_of(weight_node.next_functions[0][0]) if turned else None
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
    """Where an operation is, in words: the layer whose weight is nearest to it."""
    found = (layers.get((id(parameter_of(each)), None)) for each in nodes_before(node))
    return next((f" at or after layer {layer.name!r}" for layer in found if layer is not None), "")
