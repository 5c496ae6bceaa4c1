"""In which order a model runs its layers, seen in what PyTorch records for gradients while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modfast.arrays import require_whole
from modfast.layers.autograd_graph import (
    Node,
    Unhidden,
    count_uses,
    nodes_before,
    operation_name,
    parameter_of,
)
from modfast.layers.layer import Layer, find_layers, layer_names, replaced_parameters, replaced_weights
from modfast.layers.running import call_model, device_of, logits_of, moved, preserved
from modfast.layers.weight import in_evaluation_mode

from .layer_order import OrderedLayer, following_norm, joins_units
from .plain_modules import BatchNorm

# Operations by PyTorch's names, and which of their inputs holds the units: these keep each unit in its place.
_PASSING = frozenset(
    [
        "Relu",
        "Relu6",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "Gelu",
        "Silu",
        "Mish",
        "Tanh",
        "Sigmoid",
        "Hardtanh",
        "Hardswish",
        "Hardsigmoid",
        "LogSigmoid",
        "Softplus",
        "Softshrink",
        "Hardshrink",
        "Threshold",
        "Prelu",
        "PreluKernel",
        "RreluWithNoise",
        "Softmax",
        "LogSoftmax",
        "Abs",
        "Neg",
        "Sin",
        "Cos",
        "Exp",
        "Log",
        "Sqrt",
        "Rsqrt",
        "Pow",
        "Clamp",
        "ClampMin",
        "ClampMax",
        "Mul",
        "Div",
        "Add",
        "Sub",
        "Square",
        "ToCopy",
        "Clone",
        "Alias",
        "Dropout",
        "NativeDropout",
        "NativeBatchNorm",
        "CudnnBatchNorm",
        "MiopenBatchNorm",
        "BatchNormWithUpdate",
        "NativeLayerNorm",
        "NativeGroupNorm",
        "FusedRmsNorm",
        "MaxPool2DWithIndices",
        "MaxPool3DWithIndices",
        "AvgPool2D",
        "AvgPool3D",
        "AdaptiveAvgPool2D",
        "AdaptiveAvgPool3D",
        "AdaptiveMaxPool2D",
        "AdaptiveMaxPool3D",
        "MkldnnAdaptiveAvgPool2D",
        "MaxPool2D",
        "UpsampleNearest1D",
        "UpsampleNearest2D",
        "UpsampleNearest3D",
        "UpsampleBilinear2D",
        "ConstantPadNd",
        "ReflectionPad1D",
        "ReflectionPad2D",
        "ReplicationPad1D",
        "ReplicationPad2D",
    ]
)
_RESHAPING = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"})
_PRODUCTS = frozenset({"Addmm", "Mm", "Convolution"})
_FOLLOWED = _PASSING | _RESHAPING | {"Mean"}

_ADVICE = "layers=, the names of layers in the order in which they run, leaves out what lies beside them"


class _Record(NamedTuple):
    """A run of a model, as PyTorch recorded it.

    Attributes:
        output: the model's.
        layers: by the ``id`` of the tensor that stood for the layer's weight.
        parameters: the ``id`` of every tensor that stood for a parameter.
        norms: the batch norms, by the operation that each is.
    """

    output: Tensor
    layers: dict[int, Layer]
    parameters: set[int]
    norms: dict[Node, BatchNorm]

    def weight_of(self, node: Node) -> Tensor | None:
        """The weight that an operation multiplies by, if it is a layer's."""
        if operation_name(node) not in _PRODUCTS:
            return None
        place = 1 if operation_name(node) == "Convolution" else -1
        source = node.next_functions[place][0]
        while source is not None and operation_name(source) in ("T", "Transpose"):
            source = source.next_functions[0][0]
        weight = parameter_of(source)
        return weight if weight is not None and id(weight) in self.layers else None

    def layer_of(self, node: Node) -> Layer | None:
        """The layer whose product an operation is."""
        weight = self.weight_of(node)
        return None if weight is None else self.layers[id(weight)]

    def data_edge(self, node: Node) -> tuple[Node, int] | None:
        """From where an operation has its units, if that is one place; the other inputs are parameters."""
        operation = operation_name(node)
        if operation in ("Addmm", "Mm"):
            return node.next_functions[-2]  # type: ignore[no-any-return]
        if operation == "Convolution":
            return node.next_functions[0]  # type: ignore[no-any-return]
        edges = [
            (parent, index)
            for parent, index in node.next_functions
            if parent is not None and id(parameter_of(parent)) not in self.parameters
        ]
        return edges[0] if len(edges) == 1 else None


def seen_order(model: nn.Module, example_inputs: Any) -> list[OrderedLayer]:
    """The layers of a model that runs them one after the other and nothing beside them.

    Args:
        model: is run once, in evaluation mode, and left as it was.
        example_inputs: what it is called with: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments.

    Raises:
        ValueError: its computation is no such chain; the message names what it meets, and where.
        TypeError: it returns no tensor.
    """
    with _recorded(model, example_inputs) as record:
        path = _path(record)
        _check_units(path, record)
        uses = count_uses(record.output.grad_fn)
        chain: list[tuple[Layer, list[BatchNorm]]] = []
        for node in path:
            weight = record.weight_of(node)
            if weight is not None:
                layer = record.layers[id(weight)]
                if uses[id(weight)] > 1:
                    raise ValueError(f"model: layer {layer.name!r} is used more than once; {_ADVICE}")
                chain.append((layer, []))
            elif node in record.norms:
                chain[-1][1].append(record.norms[node])
    seen = [layer for layer, _ in chain]
    beside = [layer for layer in record.layers.values() if layer not in seen]
    if beside:
        raise ValueError(
            f"model: the layers {layer_names(beside)} are not among those that lead from the inputs to the "
            f"output one after the other, {layer_names(seen)}; {_ADVICE}"
        )
    return [OrderedLayer(layer, following_norm(layer, norms)) for layer, norms in chain]


def seen_norms(model: nn.Module, example_inputs: Any, layers: Sequence[Layer]) -> list[OrderedLayer]:
    """The given layers, each with the batch norm that follows it directly in a run, if there is one.

    Raises:
        ValueError: several follow a layer.
        TypeError: as :func:`seen_order`.
    """
    found: dict[Layer, list[BatchNorm]] = {layer: [] for layer in layers}
    with _recorded(model, example_inputs) as record:
        for node, norm in record.norms.items():
            edge = record.data_edge(node)
            while edge is not None and operation_name(edge[0]) in _PASSING | _RESHAPING:
                edge = None if edge[0] in record.norms else record.data_edge(edge[0])
            layer = None if edge is None else record.layer_of(edge[0])
            if layer in found:
                found[layer].append(norm)
    return [OrderedLayer(layer, following_norm(layer, norms)) for layer, norms in found.items()]


@contextmanager
def _recorded(model: nn.Module, example_inputs: Any) -> Iterator[_Record]:
    """Run a model, all of whose numbers are recorded: also frozen ones, and the inputs."""
    for name, parameter in model.named_parameters():
        require_whole(f"model: {name!r}", parameter)
    stand_ins: dict[str, Tensor] = {
        name: parameter.detach().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }
    known = [layer for layer in find_layers(model) if joins_units(layer)]
    computed = {layer: layer.weight().detach().requires_grad_() for layer in known if layer.is_computed}
    norms: dict[Node, BatchNorm] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        norms[output.grad_fn] = module  # type: ignore[assignment]

    hooks = [each.register_forward_hook(note) for each in model.modules() if isinstance(each, BatchNorm)]
    try:
        with (
            preserved(model),
            in_evaluation_mode(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            replaced_parameters(model, stand_ins, "model"),
            replaced_weights(model, computed),
        ):
            weights = {
                id(computed[layer] if layer in computed else layer.stored()): layer
                for layer in reversed(known)
            }
            inputs = _recording(moved(example_inputs, device_of(model)))
            with Unhidden():
                output = logits_of(call_model(model, inputs))
            yield _Record(output, weights, {*weights, *map(id, stand_ins.values())}, norms)
    finally:
        for hook in hooks:
            hook.remove()


def _recording(inputs: Any) -> Any:
    """The inputs, recorded as well. The model gets copies, since it may write to them."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone().requires_grad_() if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: _recording(value) for name, value in inputs.items()}
    return [_recording(value) for value in inputs] if isinstance(inputs, (tuple, list)) else inputs


def _path(record: _Record) -> list[Node]:
    """The operations from the first layer to the output, each of which reads the one before and no other."""
    path: list[Node] = []
    node = record.output.grad_fn
    while node is not None and any(record.layer_of(each) is not None for each in nodes_before(node)):
        edge = record.data_edge(node)
        product = operation_name(node) in _PRODUCTS and record.layer_of(node) is not None
        if edge is None or not (product or operation_name(node) in _FOLLOWED):
            raise ValueError(_what_is_met(node, edge is None, record))
        path.insert(0, node)
        node = edge[0]
    if not path:
        raise ValueError(f"model: its output does not depend on a linear layer or a convolution; {_ADVICE}")
    return path


def _what_is_met(node: Node, joins: bool, record: _Record) -> str:
    places = (record.layer_of(each) for each in nodes_before(node))
    place = next((f" after layer {layer.name!r}" for layer in places if layer is not None), "")
    reason = "joins several paths" if joins else "may put units in other places"
    return (
        f"model: its layers are no chain: the operation {operation_name(node)!r}{place} {reason}, so that it "
        f"is not known which layer feeds which; {_ADVICE}"
    )


class _Place(NamedTuple):
    """Where in a tensor units lie: along which axis, and how many positions in a row each has there."""

    axis: int
    positions: int


def _check_units(path: Sequence[Node], record: _Record) -> None:
    """Raises unless every layer reads the units of the one before, in their order."""
    place = _Place(1, 1)
    for before, node in pairwise(path):
        shape, after = _shape(before), _shape(node)
        operation = operation_name(node)
        moved_to: _Place | None = place
        if operation in _PRODUCTS:
            # Both read and write units along the second axis; a linear layer also several positions of a
            # channel.
            fits = place.axis == 1 and (place.positions == 1 or operation != "Convolution")
            moved_to = _Place(1, 1) if fits else None
        elif operation in _RESHAPING:
            moved_to = _reshaped(place, shape, after)
        elif operation == "Mean":
            moved_to = _averaged(place, node, len(shape))
        elif len(after) != len(shape) or after[place.axis] != shape[place.axis]:
            moved_to = None
        if moved_to is None:
            raise ValueError(_what_is_met(node, False, record))
        place = moved_to


def _shape(node: Node) -> tuple[int, ...]:
    """Of what an operation gives."""
    return tuple(node._input_metadata[0].shape)


def _reshaped(place: _Place, shape: tuple[int, ...], after: tuple[int, ...]) -> _Place | None:
    """Where units lie after a change of shape that keeps the order of the numbers in memory."""
    before, size, behind = (
        math.prod(part)
        for part in (shape[: place.axis], shape[place.axis : place.axis + 1], shape[place.axis + 1 :])
    )
    for axis, length in enumerate(after):
        if math.prod(after[:axis]) == before:
            if length == size:
                return _Place(axis, place.positions)
            if length == size * behind:
                return _Place(axis, place.positions * behind)
    return None


def _averaged(place: _Place, node: Node, dims: int) -> _Place | None:
    # PyTorch keeps a negative axis as an unsigned number.
    axes = {axis - 2**64 + dims if axis >= 2**63 else axis for axis in node._saved_dim or range(dims)}
    if place.axis in axes:
        return None
    return (
        place
        if node._saved_keepdim
        else place._replace(axis=place.axis - sum(axis < place.axis for axis in axes))
    )
