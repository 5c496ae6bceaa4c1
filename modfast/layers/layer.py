"""Find the weight matrices of a model, and select some by name, glob, module or function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import Linear

from modfast.arrays import require_whole

from .names import find_named, is_adapter, is_of, join, known_names, match_names, named_modules
from .readable import UnsupportedWeightError, check_readable, has_no_shape
from .source import Source, computed_tensors
from .weight import source_of

Choice: TypeAlias = str | nn.Module | Callable[[str, tuple[int, ...]], bool]
"""How a layer is chosen: by a name or glob, by its module, or by a function of its name and shape."""

Choices: TypeAlias = Iterable[Choice] | Choice
"""One choice, or several of them."""

# Classes of transformers that store stacks as (in, out), for versions without ``is_transposed``.
_TRANSPOSED_STACKS = ("GptOssExperts", "Llama4TextExperts", "Qwen3VLMoeTextExperts", "CsmCodebooksHead")


class Layer(NamedTuple):
    """A matrix that a module multiplies by, and how the module stores it.

    The weight is looked up each time, since FSDP, parametrisations and ``.to`` may replace it.

    Attributes:
        name: the canonical name of the module; or of the parameter, if that is not called ``weight``. A
            matrix of a stack has the parameter's name and its place there: ``"experts.up_proj[3]"``.
        module: the module that multiplies by the weight; for a layer with an adapter, peft's module.
        attribute: the weight's name in the module.
        stored_transposed: whether the weight is stored as (in, out, ...).
        place: the index of the matrix in its stack; None if the parameter is no stack.
    """

    name: str
    module: nn.Module
    attribute: str
    stored_transposed: bool
    place: int | None = None

    @property
    def source(self) -> Source:
        """The source of the tensor that holds the weight.

        Raises:
            UnsupportedWeightError: it cannot be read; the message names the layer and its type.
        """
        try:
            return source_of(self.module, self.attribute)
        except UnsupportedWeightError as error:
            raise error.of(self.name) from None

    @property
    def parameter(self) -> Tensor | None:
        """The parameter that holds the weight; None where it is computed, or cannot be read."""
        own = self.module._parameters
        return own.get(self.attribute) if isinstance(own, dict) else None  # TorchScript has no dict

    def stored(self) -> Tensor:
        """The tensor that holds the weight, as the forward pass would use it now, with its autograd graph.

        Raises:
            UnsupportedWeightError: it cannot be read; the message names the layer and its type.
        """
        # The usual case first: finding the source takes longer.
        parameter = self.parameter
        try:
            if parameter is None:
                return source_of(self.module, self.attribute).tensor()
            check_readable(self.module, self.attribute, parameter)
        except UnsupportedWeightError as error:
            raise error.of(self.name) from error.__cause__
        return parameter

    def whole(self) -> Tensor:
        """The tensor of :meth:`stored`, checked to have all its numbers in this process.

        Raises:
            UnsupportedWeightError: it cannot be read, or is on the meta device.
            TypeError: it is spread over processes (``DTensor``).
        """
        stored = self.source.tensor() if self.parameter is not None else self.stored()
        require_whole(f"model: the weight of layer {self.name!r}", stored)
        if stored.is_meta:
            raise UnsupportedWeightError(self.module, "has no numbers: it is on the meta device", self.name)
        return stored

    def oriented(self, stored: Tensor) -> Tensor:
        """The ``(out, in, *kernel)`` view of a tensor that is laid out as the stored one."""
        if self.place is not None:
            stored = stored[self.place]
        return stored.transpose(0, 1) if self.stored_transposed else stored

    def weight(self) -> Tensor:
        """The weight as ``(out, in, *kernel)``, with its autograd graph."""
        return self.oriented(self.stored())

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, ``(out, in, *kernel)``."""
        try:
            whole = source_of(self.module, self.attribute).shape
        except UnsupportedWeightError as error:
            raise error.of(self.name) from error.__cause__
        shape = tuple(whole)[0 if self.place is None else 1 :]
        return (shape[1], shape[0], *shape[2:]) if self.stored_transposed else shape

    @property
    def is_computed(self) -> bool:
        """Whether the weight is no parameter, but computed from others at each look-up."""
        return self.parameter is None

    @property
    def identity(self) -> object:
        """A key that is equal for layers with the same weight, whether stored or computed."""
        parameter = self.parameter
        return _Computed(self) if parameter is None else (id(parameter), self.place)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the layer, the canonical one first."""
        if self.place is not None:
            stack = self.name.rpartition("[")[0]
            return (self.name,) if self.is_ambiguous else (self.name, stack)
        return (self.name, self.parameter_name) if self.attribute == "weight" else (self.name,)

    @property
    def parameter_name(self) -> str:
        """The canonical name of the weight itself, as a plain model's ``state_dict`` has it."""
        return join(self.name, "weight") if self.attribute == "weight" and self.place is None else self.name

    @property
    def is_ambiguous(self) -> bool:
        """Whether its parameter may be either a stack of matrices or the kernel of an unknown convolution."""
        return self.place is not None and self.attribute == "weight"

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of an ``nn.Linear`` or of transformers' ``Conv1D``."""
        return self.attribute == "weight" and self.place is None and is_linear(self.module)

    @property
    def is_convolution(self) -> bool:
        """Whether it is the weight of a convolution, transposed ones included."""
        return self.attribute == "weight" and isinstance(operation(self.module), _ConvNd)


class _Computed:
    """A computed weight: equal to one that is computed from the same parameters with the same values."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.leaves = layer, frozenset(map(id, _leaves(layer.module, layer.attribute)))

    def __hash__(self) -> int:
        return hash((self.leaves, self.layer.place))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Computed):
            return NotImplemented
        one, another = self.layer, other.layer
        if one == another:
            return True
        if not self.leaves or self.leaves != other.leaves or one.place != another.place:
            return False
        try:
            with torch.no_grad():
                values = one.stored(), another.stored()
        except UnsupportedWeightError:
            return False
        return values[0].shape == values[1].shape and torch.equal(*values)


def _leaves(module: nn.Module, attribute: str) -> list[Tensor]:
    """The parameters that a module's tensor is computed from, as far as known; a stored tensor itself."""
    try:
        return source_of(module, attribute).leaves()
    except UnsupportedWeightError:
        own = operation(module)._parameters
        stored = own.get(attribute) if isinstance(own, dict) else None  # TorchScript has no dict
        return [] if stored is None else [stored]


def operation(module: nn.Module) -> Any:
    """The layer inside an adapter; a module that is no adapter itself."""
    while is_adapter(module):
        module = module.base_layer  # type: ignore[assignment]
    return module


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Linear`` or transformers' ``Conv1D``, with or without an adapter."""
    module = operation(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name == "Linear"
    return isinstance(module, Linear) or _is_conv1d(module) or _is_packed_linear(module)


def _is_conv1d(module: nn.Module) -> bool:
    return is_of(module, "transformers", "Conv1D")


def _is_packed_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer that shows its weight only as packed integers or a method."""
    if not re.search(r"Linear(\d|_|$)", type(module).__name__) or "weight" in module._parameters:
        return False
    own = [*module._parameters.values(), *module._buffers.values()]
    packed = any(t is not None and t.dim() >= 2 and not t.is_floating_point() for t in own)
    return packed or callable(getattr(module, "weight", None))


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(operation(module), (nn.Embedding, nn.EmbeddingBag))


def find_layers(model: nn.Module) -> list[Layer]:
    """Every weight of ``model`` with at least two dimensions, in the model's order.

    A weight that cannot be read is included; looking it up raises. A parameter of three dimensions that
    belongs to no convolution is a stack of matrices.
    """
    return [layer for name, module in named_modules(model) for layer in _layers_of(name, module)]


def _layers_of(prefix: str, module: nn.Module) -> Iterator[Layer]:
    for attribute in _attributes(module):
        is_weight = attribute == "weight"
        name = prefix if is_weight else join(prefix, attribute)
        try:
            shape = source_of(module, attribute).shape
        except UnsupportedWeightError:
            # What may be a matrix is not left out silently: looking it up raises.
            if is_weight or any(_may_be_matrix(leaf) for leaf in _leaves(module, attribute)):
                yield Layer(name, module, attribute, False)
            continue
        inner = operation(module)
        if len(shape) == 3 and not (is_weight and isinstance(inner, _ConvNd)):
            stack = join(prefix, attribute)
            for place in range(shape[0]):
                yield Layer(f"{stack}[{place}]", module, attribute, _is_transposed_stack(inner), place)
        elif len(shape) >= 2:
            transposed = isinstance(inner, _ConvTransposeNd) or _is_conv1d(inner)
            yield Layer(name, module, attribute, is_weight and transposed)


def _may_be_matrix(tensor: Tensor) -> bool:
    return has_no_shape(tensor) or tensor.dim() >= 2


def _attributes(module: nn.Module) -> list[str]:
    """The names of a module's tensors that may be weights; their shapes are not checked here."""
    if is_adapter(module):
        inner = operation(module)
        is_one_layer = is_linear(inner) or isinstance(inner, (_ConvNd, nn.Embedding))
        return ["weight"] if is_one_layer else _attributes(inner)
    if isinstance(module, torch.jit.ScriptModule):
        return ["weight"] if any(p.dim() > 1 for p in module.parameters(recurse=False)) else []
    computed = computed_tensors(module)
    pieces = {piece for names in computed.values() for piece in names}
    own = [name for name, p in module._parameters.items() if p is not None and name not in pieces]
    always = ["weight"] if is_linear(module) or isinstance(module, _ConvNd) else []
    return list(dict.fromkeys([*own, *computed, *always]))


def _is_transposed_stack(module: nn.Module) -> bool:
    """Whether the matrices of a stack are stored as (in, out)."""
    declared = getattr(module, "is_transposed", None)
    return declared if isinstance(declared, bool) else is_of(module, "transformers", *_TRANSPOSED_STACKS)


def linear_layers(model: nn.Module) -> list[Layer]:
    """Every linear layer whose weight no embedding shares; only the first of those with a tied weight."""
    embeddings = {
        id(leaf)
        for _, module in named_modules(model)
        if _is_embedding(module)
        for leaf in _leaves(operation(module), "weight")
    }
    distinct: dict[object, Layer] = {}
    for layer in find_layers(model):
        if layer.is_linear and not any(id(leaf) in embeddings for leaf in _leaves(layer.module, "weight")):
            distinct.setdefault(layer.identity, layer)
    return list(distinct.values())


def choose_layers(
    layers: Sequence[Layer],
    choices: Choices,
    argument: str,
    *,
    in_given_order: bool = False,
) -> list[Layer]:
    """Return the layers that match any of the choices, in the model's order or in that of the choices.

    Raises:
        ValueError: a choice matches no layer, or one that is ambiguous (:attr:`Layer.is_ambiguous`).
        TypeError: a choice is of another kind.
    """
    listed = listed_choices(choices, argument, in_given_order=in_given_order)
    names = [layer.names for layer in layers]
    chosen = [index for choice in listed for index in _chosen(layers, names, choice, argument)]
    return [layers[index] for index in (dict.fromkeys(chosen) if in_given_order else sorted(set(chosen)))]


def listed_choices(choices: Choices, argument: str, *, in_given_order: bool = False) -> list[Choice]:
    """Return one or several choices as a list, which can be iterated more than once.

    Raises:
        TypeError: the order of the choices matters, and they are a set, which has none.
    """
    # A module is one choice even if it can be iterated, such as an nn.Sequential; so is a class.
    if isinstance(choices, (str, nn.Module)) or callable(choices) or not isinstance(choices, Iterable):
        return [choices]
    if in_given_order and isinstance(choices, (set, frozenset)):
        raise TypeError(f"{argument} must be in order, got a {type(choices).__name__}, which has none")
    return list(choices)


def _chosen(
    layers: Sequence[Layer], names: Sequence[Sequence[str]], choice: Choice, argument: str
) -> list[int]:
    if isinstance(choice, type):
        raise TypeError(
            f"{argument} must hold names, globs, modules or functions of name and shape, "
            f"got the class {choice.__name__}: give modules of it"
        )
    if isinstance(choice, str):
        matched = match_names(names, choice, argument)
        explicit = choice.endswith("]")
    elif isinstance(choice, nn.Module):
        within = set(choice.modules())
        matched = [i for i, layer in enumerate(layers) if layer.module in within]
        # A layer with an adapter may be chosen by the module that the adapter wraps.
        matched = matched or [i for i, layer in enumerate(layers) if operation(layer.module) is choice]
        explicit = False
        if not matched:
            raise ValueError(
                f"{argument}: the module {type(choice).__name__} holds no layer of the model with a weight "
                f"matrix; there are: {layer_names(layers)}"
            )
    elif callable(choice):
        matched = [i for i, layer in enumerate(layers) if choice(layer.name, _shape_to_show(layer))]
        explicit = True
    else:
        raise TypeError(
            f"{argument} must hold names, globs, modules or functions of name and shape, "
            f"got {type(choice).__name__}"
        )
    for index in matched:
        if layers[index].is_ambiguous and not explicit:
            _raise_ambiguous(layers[index], argument)
    return matched


def _shape_to_show(layer: Layer) -> tuple[int, ...]:
    """The layer's shape; if the weight cannot be read, its module's sizes, or () if it has none."""
    try:
        return layer.shape
    except UnsupportedWeightError:
        inner = operation(layer.module) if layer.attribute == "weight" else None
        sizes = (getattr(inner, "out_features", None), getattr(inner, "in_features", None))
        return sizes if all(isinstance(size, int) for size in sizes) else ()  # type: ignore[return-value]


def _raise_ambiguous(layer: Layer, argument: str) -> None:
    stack = layer.name.rpartition("[")[0]
    shape = tuple(layer.source.shape)
    raise ValueError(
        f"{argument}: the weight {stack!r} of a {type(layer.module).__name__} has shape {shape}, and it is "
        f"not known whether it is a stack of {shape[0]} matrices; '{stack}[*]' takes it for one. "
        "(Convolutions are known by PyTorch's classes.)"
    )


def layer_names(layers: Sequence[Layer]) -> str:
    """The layers' canonical names, for a message."""
    return known_names([layer.names for layer in layers])


def match_layers(model: nn.Module, layers: Choices, *, in_given_order: bool = False) -> list[Layer]:
    """The layers of a model that the argument ``layers`` selects; raises as :func:`choose_layers` does."""
    return choose_layers(find_layers(model), layers, "layers", in_given_order=in_given_order)


def find_layer(model: nn.Module, name: str, argument: str) -> Layer:
    """The layer that a name stands for, whether its own name or its weight's.

    Raises:
        ValueError: there is none, or the name is that of a stack; the message names ``argument``.
    """
    layers = find_layers(model)
    matched = named_layers(layers, name)
    if not matched:
        raise ValueError(
            f"{argument}: {name!r} is no layer with a weight matrix; there are: {layer_names(layers)}"
        )
    if len(matched) > 1:
        raise ValueError(
            f"{argument}: {name!r} is a stack of {len(matched)} matrices, name one of them: "
            f"{layer_names(matched)}"
        )
    return matched[0]


def named_layers(layers: Sequence[Layer], name: object) -> list[Layer]:
    """The layers that a name stands for: one, or all matrices of a stack."""
    if not isinstance(name, str):
        return []
    return [layers[i] for i in find_named([layer.names for layer in layers], name)]
