"""The order in which a model runs its layers, read from the autograd graph of one run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from modfast.arrays import require_whole
from modfast.layers.autograd_graph import (
    Node,
    Unhidden,
    count_uses,
    nodes_before,
    operation_name,
    parameter_of,
    source_of_matrix,
)
from modfast.layers.layer import Layer, find_layers, layer_names
from modfast.layers.readable import require_shape
from modfast.layers.replaced import replaced_parameters, replaced_weights, require_own_parameters
from modfast.layers.running import (
    call_model,
    device_of,
    logits_of,
    moved,
    not_compiled,
    preserved,
    with_leaves,
)
from modfast.layers.source import in_evaluation_mode

from .layer_order import OrderedLayer, following_norm, joins_units
from .plain_modules import BatchNorm

# Names of PyTorch's operations in an autograd graph. These keep each unit in its place.
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
# Those of them that read or write neighbouring positions, along as many last axes as the name says.
_NEIGHBOURS = re.compile(r"(?:Pool|Pad|Upsample\w*?)(\d)D")
_RESHAPING = frozenset({"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"})
_PRODUCTS = frozenset({"Addmm", "Mm", "Convolution"})
_FOLLOWED = _PASSING | _RESHAPING | {"Mean"}

ADVICE = "layers=, the names of layers in the order in which they run, leaves out what lies beside them"


class _Record(NamedTuple):
    """A run of a model, as autograd recorded it.

    Attributes:
        output: the model's logits.
        layers: the layers, by the ``id`` of the tensor that stood for the layer's weight.
        parameters: the ``id`` of every tensor that stood for a parameter.
        norms: the batch norms, by their operations in the graph.
    """

    output: Tensor
    layers: dict[int, Layer]
    parameters: set[int]
    norms: dict[Node, BatchNorm]

    def weight_of(self, node: Node) -> Tensor | None:
        """The layer's weight that an operation multiplies by, in the layer's own orientation; else None."""
        operation = operation_name(node)
        if operation not in _PRODUCTS:
            return None
        is_convolution = operation == "Convolution"
        source, around = source_of_matrix(node.next_functions[1 if is_convolution else -1][0])
        turns = sum(map(_is_turn, around))
        layer = self.layers.get(id(weight := parameter_of(source)))
        if layer is None or layer.is_convolution != is_convolution:
            return None
        if is_convolution:
            fits = turns == 0 and not node._saved_transposed
        else:
            # The tensor that stands for a computed weight is (out, in), however the layer stores it.
            kept_as_read = layer.stored_transposed and not layer.is_computed
            fits = turns % 2 == (0 if kept_as_read else 1)
        return weight if fits else None

    def layer_of(self, node: Node) -> Layer | None:
        """The layer whose product an operation is."""
        weight = self.weight_of(node)
        return None if weight is None else self.layers[id(weight)]

    def data_edges(self, node: Node) -> list[tuple[Node, int]]:
        """The inputs of an operation that are no parameters, so that they may hold units."""
        edges = list(node.next_functions)
        if operation_name(node) in _PRODUCTS:
            # Drop the weight. A bias is dropped below as a parameter, but an addend that holds units is not.
            edges.pop(1 if operation_name(node) == "Convolution" else -1)
        return [edge for edge in edges if not self._is_parameter(*edge)]

    def data_edge(self, node: Node) -> tuple[Node, int] | None:
        """The one input of an operation that is no parameter, so that it holds the units; else None."""
        edges = self.data_edges(node)
        return edges[0] if len(edges) == 1 else None

    def _is_parameter(self, node: Node, index: int) -> bool:
        """Whether an input is a parameter in any shape, or a vector computed from parameters alone."""
        if node is None:
            return True
        if not node.next_functions:
            return id(parameter_of(node)) in self.parameters
        if operation_name(node) in _RESHAPING:
            return self._is_parameter(*node.next_functions[0])
        leaves = (ancestor for ancestor in nodes_before(node) if not ancestor.next_functions)
        return len(_shape(node, index)) == 1 and all(self._is_parameter(leaf, 0) for leaf in leaves)


def seen_order(model: nn.Module, example_inputs: Any) -> list[OrderedLayer]:
    """Return the layers of a model that runs them one after the other, without anything beside them.

    Args:
        model: is run once, in evaluation mode, and left as it was.
        example_inputs: what it is called with: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments.

    Raises:
        ValueError: the model is no such chain; the message names the operation or layer that prevents it.
        TypeError: the model returns no tensor.
    """
    with _recorded(model, example_inputs, find_layers(model)) as record:
        path = _path(record)
        _check_units(path, record)
        uses = count_uses(record.output.grad_fn)
        chain: list[tuple[Layer, list[BatchNorm]]] = []
        for node in path:
            weight = record.weight_of(node)
            if weight is not None:
                layer = record.layers[id(weight)]
                if uses[id(weight)] > 1:
                    raise ValueError(f"model: layer {layer.name!r} is used more than once; {ADVICE}")
                chain.append((layer, []))
            elif node in record.norms:
                chain[-1][1].append(record.norms[node])
    seen = [layer for layer, _ in chain]
    beside = [layer for layer in record.layers.values() if layer not in seen]
    if beside:
        raise ValueError(
            f"model: the layers {layer_names(beside)} are not among those that lead from the inputs to the "
            f"output one after the other, {layer_names(seen)}, or their weights are not read as such a layer "
            f"reads its own (transposed, for example); {ADVICE}"
        )
    return [OrderedLayer(layer, following_norm(layer, norms)) for layer, norms in chain]


def seen_norms(model: nn.Module, example_inputs: Any, layers: Sequence[Layer]) -> list[OrderedLayer]:
    """The given layers, each with the batch norm that follows it directly in a run, if there is one.

    Raises:
        ValueError: several batch norms follow a layer.
        TypeError: as :func:`seen_order`.
    """
    norms_of: dict[Layer, list[BatchNorm]] = {layer: [] for layer in layers}
    with _recorded(model, example_inputs, layers) as record:
        for node, norm in record.norms.items():
            path, edge = [node], record.data_edge(node)
            while edge is not None and operation_name(edge[0]) in _PASSING | _RESHAPING:
                path.append(edge[0])
                edge = None if edge[0] in record.norms else record.data_edge(edge[0])
            layer = None if edge is None else record.layer_of(edge[0])
            if edge is not None and layer in norms_of:
                place: _Place | None = _AS_PUT_OUT
                for before, after in pairwise([edge[0], *reversed(path)]):
                    place = None if place is None else _moved(place, before, after)
                if place is not None and _is_normalised(place):
                    norms_of[layer].append(norm)
    return [OrderedLayer(layer, following_norm(layer, norms)) for layer, norms in norms_of.items()]


@contextmanager
def _recorded(model: nn.Module, example_inputs: Any, layers: Sequence[Layer]) -> Iterator[_Record]:
    """Run a model such that autograd records all its parameters, frozen ones too, and the inputs.

    Args:
        model: as for :func:`seen_order`.
        example_inputs: as for :func:`seen_order`.
        layers: those that the record shows, as far as they are linear or convolutions. No other is read.

    Raises:
        UnsupportedWeightError: the weight of one of these layers cannot be read.
    """
    require_own_parameters(model)
    for name, parameter in model.named_parameters():
        require_whole(f"model: {name!r}", parameter)
        require_shape(f"model: {name!r}", parameter)
    known = [layer for layer in layers if joins_units(layer)]
    for layer in known:
        _ = layer.source  # raises if the weight cannot be read
    with torch.inference_mode(False):
        stand_ins: dict[str, Tensor] = {
            name: parameter.detach().requires_grad_()
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
        }
        computed = {layer: layer.weight().detach().requires_grad_() for layer in known if layer.is_computed}
    norms: dict[Node, BatchNorm] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        norms[output.grad_fn] = module  # type: ignore[assignment]

    hooks = [norm.register_forward_hook(note) for norm in model.modules() if isinstance(norm, BatchNorm)]
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            preserved(model),
            in_evaluation_mode(model),
            not_compiled(),
            replaced_parameters(model, stand_ins, "model"),
            replaced_weights(model, computed),
        ):
            weights = {
                id(computed[layer] if layer in computed else layer.stored()): layer
                for layer in reversed(known)
            }
            inputs = with_leaves(moved(example_inputs, device_of(model)), _recording)
            with Unhidden():
                output = logits_of(call_model(model, inputs))
            yield _Record(output, weights, {*weights, *map(id, stand_ins.values())}, norms)
    finally:
        for hook in hooks:
            hook.remove()


def _recording(value: Any) -> Any:
    """A copy of an input, recorded by autograd, which the model may write to."""
    if isinstance(value, PackedSequence):
        return PackedSequence(_recording(value.data), *value[1:])
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _path(record: _Record) -> list[Node]:
    """The operations from the first layer to the output, each of which reads the one before and no other."""
    path: list[Node] = []
    node = record.output.grad_fn
    while node is not None and any(record.layer_of(ancestor) is not None for ancestor in nodes_before(node)):
        edges = record.data_edges(node)
        layer = record.layer_of(node)
        if not edges and layer is not None:
            raise ValueError(
                f"model: what layer {layer.name!r} reads comes from no input that PyTorch records: give "
                "floating-point example_inputs, as tensors or in tuples, lists and mappings"
            )
        if len(edges) != 1 or not (layer is not None or operation_name(node) in _FOLLOWED):
            raise ValueError(_what_is_met(node, len(edges) != 1, record))
        path.insert(0, node)
        node = edges[0][0]
    if not path:
        raise ValueError(f"model: its output does not depend on a linear layer or a convolution; {ADVICE}")
    return path


def _what_is_met(node: Node, joins: bool, record: _Record) -> str:
    places = (record.layer_of(ancestor) for ancestor in nodes_before(node))
    place = next((f" after layer {layer.name!r}" for layer in places if layer is not None), "")
    reason = "joins several paths" if joins else "may put units in other places"
    return (
        f"model: its layers are no chain: the operation {operation_name(node)!r}{place} {reason}, so that it "
        f"is not known which layer feeds which; {ADVICE}"
    )


class _Place(NamedTuple):
    """Where units lie in a tensor: along which axis, and how many adjacent positions each has there."""

    axis: int
    positions: int


# Linear layers and convolutions read and write units along the second axis.
_AS_PUT_OUT = _Place(1, 1)


def _check_units(path: Sequence[Node], record: _Record) -> None:
    """Raises unless every layer reads the units of the one before, in their order."""
    place = _AS_PUT_OUT
    for before, node in pairwise(path):
        moved_to = _moved(place, before, node)
        if moved_to is None or (node in record.norms and not _is_normalised(place)):
            raise ValueError(_what_is_met(node, False, record))
        place = moved_to


def _is_normalised(place: _Place) -> bool:
    """Whether units lie along the second axis, which a batch norm scales."""
    return place.axis == _AS_PUT_OUT.axis


def _moved(place: _Place, before: Node, node: Node) -> _Place | None:
    """Where units lie after ``node``, which reads the output of ``before``; None if their order is lost."""
    shape, after = _shape(before), _shape(node)
    operation = operation_name(node)
    if operation in _PRODUCTS:
        # A linear layer, unlike a convolution, may read several positions of a channel.
        fits = place.axis == _AS_PUT_OUT.axis and (place.positions == 1 or operation != "Convolution")
        return _AS_PUT_OUT if fits else None
    if operation in _RESHAPING:
        return _reshaped(place, shape, after)
    if operation == "Mean":
        return _averaged(place, node, len(shape))
    if place.axis >= len(shape) - _last_axes_used(node) or len(after) != len(shape):
        return None
    return place if after[place.axis] == shape[place.axis] else None


def _last_axes_used(node: Node) -> int:
    """Along how many of the last axes an operation combines or moves numbers."""
    operation = operation_name(node)
    if operation == "ConstantPadNd":
        used = [place // 2 + 1 for place, size in enumerate(node._saved_pad) if size != 0]
        return max(used, default=0)
    match = _NEIGHBOURS.search(operation)
    return int(match[1]) if match else 0


def _is_turn(node: Node) -> bool:
    """Whether an operation on the axes of a matrix swaps them, rather than leaving them as they are."""
    operation = operation_name(node)
    if operation == "ToCopy":
        return False
    if operation == "Permute":
        return _axis(node._saved_dims[0], 2) == 1
    return operation == "T" or _axis(node._saved_dim0, 2) != _axis(node._saved_dim1, 2)


def _axis(axis: int, dims: int) -> int:
    """An axis as a number from 0 on: PyTorch stores a negative axis as an unsigned number."""
    signed = axis - 2**64 if axis >= 2**63 else axis
    return signed % dims


def _shape(node: Node, index: int = 0) -> tuple[int, ...]:
    """The shape of an operation's output."""
    return tuple(node._input_metadata[index].shape)


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
    axes = {_axis(axis, dims) for axis in node._saved_dim or range(dims)}
    if place.axis in axes:
        return None
    return (
        place
        if node._saved_keepdim
        else place._replace(axis=place.axis - sum(axis < place.axis for axis in axes))
    )
