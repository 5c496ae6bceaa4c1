"""Reading the convolutions and linear layers that a model ends in from PyTorch's autograd graph.

The graph holds every operation between the parameters and an output. Modules, functions and in-place
operations look alike in it, and any other operation on the activations is visible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from modfast.layers.autograd_graph import Node, count_uses, nodes_before, operation_name, parameter_of
from modfast.layers.layer import Layer

from . import geometry
from .stages import Stage, read_stage

# Operations that keep the order of the numbers. Whether they also keep the rows is checked at the layers.
_RESHAPES = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone"})


class Convolution(NamedTuple):
    """Where a convolution reads.

    Attributes:
        groups: the number of groups of channels.
        sources: int32 ``(taps, places)``, the place of an input channel that each tap of the kernel reads for
            each place of an output channel; -1 for zeros around the channel.
        in_places: the number of places of an input channel.
    """

    groups: int
    sources: Tensor
    in_places: int


class Step(NamedTuple):
    """A layer in a forward pass.

    Attributes:
        layer: the layer.
        bias: its bias, or None.
        convolution: where it reads, if it is a convolution.
        stages: the operations after it, in their order.
        beyond: a description of what makes it more than a linear layer with at most one activation after it;
            "" for nothing.
        values: its input, ``(n, ...)``.
    """

    layer: Layer
    bias: Tensor | None
    convolution: Convolution | None
    stages: tuple[Stage, ...]
    beyond: str
    values: Tensor


def recorded_steps(logits: Tensor, layers: Mapping[object, Layer]) -> tuple[list[Step], str]:
    """Return the layers that logits come from, with stages (:class:`Stage`) alone between two of them.

    Args:
        logits: ``(n, classes)``, with their autograd graph.
        layers: the model's layers, by their weight's identity.

    Returns:
        The layers, from the first to the last, back to the first other operation; and a description of that
        operation, or "" if there is none.
    """
    uses = count_uses(logits.grad_fn)
    steps: list[Step] = []
    stages: list[Stage] = []
    beyond = ""
    node: Node = logits.grad_fn
    while node is not None:
        operation = operation_name(node)
        # Logits may be cast to another dtype; a layer's input may not.
        if operation in _RESHAPES or (operation == "ToCopy" and not steps and not stages):
            node = node.next_functions[0][0]
        elif operation in ("Addmm", "Mm", "Convolution"):
            if operation == "Convolution":
                step = _convolution_step(node, layers, uses, len(logits))
                beyond = beyond or operation + _place(node, layers)
            else:
                step = _linear_step(node, layers, uses, len(logits))
            if not isinstance(step, str):
                step = _joined(step._replace(stages=tuple(stages), beyond=beyond), steps)
            if isinstance(step, str):
                return steps, step
            steps.insert(0, step)
            stages, beyond = [], ""
            node = node.next_functions[0 if operation == "Convolution" else -2][0]
        else:
            stage = read_stage(node)
            is_end = not steps and not stages  # an activation of the logits would be none of the layers'
            if stage is None or (isinstance(stage, Stage) and stage.is_activation and is_end):
                return steps, operation + _place(node, layers)
            if isinstance(stage, str):
                return steps, stage + _place(node, layers)
            if stages or not stage.is_activation:
                beyond = beyond or operation + _place(node, layers)
            stages.insert(0, stage)
            node = node.next_functions[0][0]
    return steps, ""


def _joined(step: Step, later: Sequence[Step]) -> Step | str:
    """Return a step that leads to the first of the later ones, or a description of why it does not."""
    name, channels = step.layer.name, len(step.layer.stored())
    places = 1 if step.convolution is None else step.convolution.sources.shape[1]
    for stage in step.stages:
        if not stage.is_activation and stage.reads != (channels, places):
            return f"an operation on other channels than those of layer {name!r}"
        places = stage.places(places)
    if not later:
        return step if places == 1 else f"layer {name!r}, which gives {places} numbers for each class"
    reader = later[0].convolution
    if math.prod(later[0].values.shape[1:]) != channels * places:
        return f"layer {name!r}, whose outputs are not what layer {later[0].layer.name!r} reads"
    if places % (1 if reader is None else reader.in_places):
        return f"layer {name!r}, whose outputs layer {later[0].layer.name!r} reads as other channels"
    return step


def _convolution_step(
    node: Node, layers: Mapping[object, Layer], uses: Mapping[int, int], rows: int
) -> Step | str:
    """Return the layer that a convolution computes, or a description of why it is none."""
    weight, bias = (parameter_of(parent) for parent, _ in node.next_functions[1:3])
    layer = layers.get((id(weight), None))
    if weight is None or layer is None:
        return "a convolution with a kernel that is no layer's weight, or is computed from it"
    name = layer.name
    if node._saved_transposed:
        return f"layer {name!r}, a transposed convolution"
    if uses[id(weight)] > 1:
        return f"layer {name!r}, whose weight is used {uses[id(weight)]} times"
    is_biased = math.prod(node._saved_bias_sym_sizes_opt or (0,)) > 0  # without a bias the shape is (0,)
    if is_biased and (bias is None or bias.shape != weight.shape[:1]):
        return f"layer {name!r}, whose bias is no parameter of shape ({len(weight)},)"
    try:
        values: Tensor = node._saved_input
    except RuntimeError:
        return f"layer {name!r}, whose input is overwritten afterwards"
    if len(values) != rows or values.dim() != weight.dim():
        return f"layer {name!r}, which reads shape {tuple(values.shape)} for {rows} inputs"
    shape, outputs = values.shape[2:], node._input_metadata[0].shape[2:]
    steps = (node._saved_stride, node._saved_padding, node._saved_dilation)
    sources = geometry.sources(shape, outputs, weight.shape[2:], *steps)
    convolution = Convolution(node._saved_groups, sources, math.prod(shape))
    return Step(layer, bias, convolution, (), "", values.detach())


def _linear_step(
    node: Node, layers: Mapping[object, Layer], uses: Mapping[int, int], rows: int
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
    return Step(layer, bias, None, (), "", values.detach())


def _place(node: Node, layers: Mapping[object, Layer]) -> str:
    """Describe where an operation is, by the nearest layer before it."""
    before = (layers.get((id(parameter_of(earlier)), None)) for earlier in nodes_before(node))
    return next((f" at or after layer {layer.name!r}" for layer in before if layer is not None), "")
