"""The weight matrices of a model, by name: which there are, and which of them are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import Linear

from modfast.partition import Partition

from .names import is_adapter, is_of, join, known_names, match_names, named_modules, spellings
from .weight import Source, Stored, UnsupportedWeightError, computed_tensors, source_of

Choice: TypeAlias = str | nn.Module | Callable[[str, tuple[int, ...]], bool]
"""How a layer is chosen: by a name or glob, by its module, or by a function of its name and shape."""

# Of transformers before these told it by ``is_transposed``.
_TRANSPOSED_STACKS = ("GptOssExperts", "Llama4TextExperts", "Qwen3VLMoeTextExperts")


class Layer(NamedTuple):
    """A matrix that a module multiplies by, and in which form the module keeps it.

    The weight is looked up each time, since FSDP, parametrisations and ``.to`` may replace it.

    Attributes:
        name: the module's canonical name; or the parameter's, where it is not called ``weight``, with the
            place in brackets if it is one of a stack: ``"experts.up_proj[3]"``.
        module: the module that multiplies by it. With an adapter it is peft's.
        attribute: the weight's name there.
        stored_transposed: whether it is kept as (in, out, ...).
        place: which matrix of a stack it is; None if the parameter is no stack.
    """

    name: str
    module: nn.Module
    attribute: str
    stored_transposed: bool
    place: int | None = None

    @property
    def source(self) -> Source:
        """Where the tensor comes from that holds the weight.

        Raises:
            UnsupportedWeightError: it cannot be read; the message names the layer and its type.
        """
        try:
            return source_of(self.module, self.attribute)
        except UnsupportedWeightError as error:
            raise UnsupportedWeightError(error.module, error.reason, self.name) from None

    @property
    def parameter(self) -> Tensor | None:
        """The parameter that holds the weight; None where it is computed, or cannot be read."""
        own = self.module._parameters
        return own.get(self.attribute) if isinstance(own, dict) else None  # TorchScript has no dict

    def stored(self) -> Tensor:
        """The tensor that holds the weight, as the forward pass would use it now, with its record."""
        # The usual case first: to ask for the source takes longer.
        parameter = self.parameter
        return self.source.tensor() if parameter is None else parameter

    def oriented(self, stored: Tensor) -> Tensor:
        """The ``(out, in, *kernel)`` view of a tensor that is laid out as the stored one."""
        if self.place is not None:
            stored = stored[self.place]
        return stored.transpose(0, 1) if self.stored_transposed else stored

    def weight(self) -> Tensor:
        """The weight as ``(out, in, *kernel)``, with its record for gradients."""
        return self.oriented(self.stored())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, ``(out, in, *kernel)``."""
        shape = tuple(self.source.shape)[0 if self.place is None else 1 :]
        return (shape[1], shape[0], *shape[2:]) if self.stored_transposed else shape

    @property
    def is_computed(self) -> bool:
        """Whether the weight is no parameter, but made from others at each look-up."""
        return self.parameter is None

    @property
    def identity(self) -> object:
        """The same for two layers that share one parameter; a computed weight is its module's own."""
        parameter = self.parameter
        if parameter is None and is_adapter(self.module) and self.attribute == "weight":
            parameter = operation(self.module)._parameters.get(self.attribute)
        return (id(self.module), self.attribute) if parameter is None else (id(parameter), self.place)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it goes by, the canonical one first."""
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
        """Whether it is not known if it is one matrix of a stack, or its parameter is a convolution's."""
        return self.place is not None and self.attribute == "weight"

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of an ``nn.Linear`` or of transformers' ``Conv1D``."""
        return self.attribute == "weight" and self.place is None and is_linear(self.module)

    @property
    def is_convolution(self) -> bool:
        """Whether it is the weight of a convolution, transposed ones included."""
        return self.attribute == "weight" and isinstance(operation(self.module), _ConvNd)


def operation(module: nn.Module) -> Any:
    """The layer itself, where a module is an adapter around it."""
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
    """Whether a module is a linear layer whose weight shows in packed integers or a method only."""
    if not re.search(r"Linear(\d|_|$)", type(module).__name__) or "weight" in module._parameters:
        return False
    own = [*module._parameters.values(), *module._buffers.values()]
    packed = any(each is not None and each.dim() >= 2 and not each.is_floating_point() for each in own)
    return packed or callable(getattr(module, "weight", None))


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(operation(module), (nn.Embedding, nn.EmbeddingBag))


def find_layers(model: nn.Module) -> list[Layer]:
    """Every weight of ``model`` with at least two dimensions, in the model's order.

    A weight that cannot be read is among them, and raises when it is looked up. A parameter of three
    dimensions that belongs to no convolution is a stack of matrices.
    """
    return [layer for name, module in named_modules(model) for layer in _layers_of(name, module)]


def _layers_of(prefix: str, module: nn.Module) -> Iterator[Layer]:
    for attribute in _attributes(module):
        is_weight = attribute == "weight"
        name = prefix if is_weight else join(prefix, attribute)
        try:
            shape = source_of(module, attribute).shape
        except UnsupportedWeightError:
            if is_weight:
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


def _attributes(module: nn.Module) -> list[str]:
    """The names of the tensors that a module multiplies by, and of some that it does not."""
    if is_adapter(module):
        return ["weight"]
    if isinstance(module, torch.jit.ScriptModule):
        return ["weight"] if any(each.dim() > 1 for each in module.parameters(recurse=False)) else []
    computed = computed_tensors(module)
    pieces = {piece for names in computed.values() for piece in names}
    own = [name for name, each in module._parameters.items() if each is not None and name not in pieces]
    always = ["weight"] if is_linear(module) or isinstance(module, _ConvNd) else []
    return list(dict.fromkeys([*own, *computed, *always]))


def _is_transposed_stack(module: nn.Module) -> bool:
    """Whether the matrices of a stack are kept as (in, out)."""
    told = getattr(module, "is_transposed", None)
    return told if isinstance(told, bool) else is_of(module, "transformers", *_TRANSPOSED_STACKS)


def linear_layers(model: nn.Module) -> list[Layer]:
    """The weight of every linear layer, tied ones once; none that an embedding shares."""
    embeddings = {
        (id(module._parameters.get("weight")), None)
        for _, outer in named_modules(model)
        if _is_embedding(outer)
        for module in (operation(outer),)
    }
    distinct: dict[object, Layer] = {}
    for layer in find_layers(model):
        if layer.is_linear and layer.identity not in embeddings:
            distinct.setdefault(layer.identity, layer)
    return list(distinct.values())


def choose_layers(
    layers: Sequence[Layer],
    choices: Sequence[Choice] | Choice,
    argument: str,
    *,
    in_given_order: bool = False,
) -> list[Layer]:
    """The layers that any of the choices takes, in the model's order or that of the choices.

    Raises:
        ValueError: a choice takes none, or a matrix that may not be one.
        TypeError: a choice is of another kind.
    """
    # A module that holds others is no list of choices.
    if isinstance(choices, nn.Module) or not isinstance(choices, Sequence) or isinstance(choices, str):
        choices = [choices]
    chosen = [index for choice in choices for index in _chosen(layers, choice, argument)]
    return [layers[index] for index in (dict.fromkeys(chosen) if in_given_order else sorted(set(chosen)))]


def _chosen(layers: Sequence[Layer], choice: Choice, argument: str) -> list[int]:
    if isinstance(choice, str):
        found = match_names([layer.names for layer in layers], choice, argument)
        explicit = choice.endswith("]")
    elif isinstance(choice, nn.Module):
        within = set(choice.modules())
        found = [i for i, layer in enumerate(layers) if layer.module in within]
        # A layer with an adapter may be named by what the adapter wraps.
        found = found or [i for i, layer in enumerate(layers) if operation(layer.module) is choice]
        explicit = False
        if not found:
            raise ValueError(
                f"{argument}: the module {type(choice).__name__} holds no layer of the model with a weight "
                f"matrix; there are: {layer_names(layers)}"
            )
    elif callable(choice):
        found = [i for i, layer in enumerate(layers) if choice(layer.name, _shape_to_show(layer))]
        explicit = True
    else:
        raise TypeError(
            f"{argument} must hold names, globs, modules or functions of name and shape, "
            f"got {type(choice).__name__}"
        )
    for index in found:
        if layers[index].is_ambiguous and not explicit:
            _raise_ambiguous(layers[index], argument)
    return found


def _shape_to_show(layer: Layer) -> tuple[int, ...]:
    """The shape, also of a weight that cannot be read, as far as the layer tells it."""
    try:
        return layer.shape
    except UnsupportedWeightError:
        inner = operation(layer.module)
        sizes = (getattr(inner, "out_features", None), getattr(inner, "in_features", None))
        return sizes if all(isinstance(size, int) for size in sizes) else ()  # type: ignore[return-value]


def _raise_ambiguous(layer: Layer, argument: str) -> None:
    stack = layer.name.rpartition("[")[0]
    shape = tuple(layer.stored().shape)
    raise ValueError(
        f"{argument}: the weight {stack!r} of a {type(layer.module).__name__} has shape {shape}, and it is "
        f"not known whether it is a stack of {shape[0]} matrices; '{stack}[*]' takes it for one. "
        "(Convolutions are known by PyTorch's classes.)"
    )


def layer_names(layers: Sequence[Layer]) -> str:
    """Their canonical names, for a message."""
    return known_names([layer.names for layer in layers])


def match_layers(
    model: nn.Module, layers: Sequence[Choice] | Choice, *, in_given_order: bool = False
) -> list[Layer]:
    """The layers of a model that the argument ``layers`` asks for; raises as :func:`choose_layers`."""
    return choose_layers(find_layers(model), layers, "layers", in_given_order=in_given_order)


def find_layer(model: nn.Module, name: str, argument: str) -> Layer:
    """The layer of this name, or whose weight has it.

    Raises:
        ValueError: there is none, or a stack of several; the message names ``argument``.
    """
    layers = find_layers(model)
    found = _named(layers, name)
    if not found:
        raise ValueError(
            f"{argument}: {name!r} is no layer with a weight matrix; there are: {layer_names(layers)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{argument}: {name!r} is a stack of {len(found)} matrices, name one of them: "
            f"{layer_names(found)}"
        )
    return found[0]


def _named(layers: Sequence[Layer], name: object) -> list[Layer]:
    """The layers that a name stands for: one, or all matrices of a stack."""
    for spelling in spellings(name) if isinstance(name, str) else []:
        found = [layer for layer in layers if spelling in layer.names]
        if found:
            return found
    return []


def partitioned_layers(
    model: nn.Module, partitions: Mapping[str, Partition]
) -> list[tuple[Layer, Partition]]:
    """The layers that a mapping of layer or parameter names to partitions names, in the model's order.

    Raises:
        ValueError: a name is unknown, two names are one weight, or a partition does not fit.
        TypeError: a value is no :class:`Partition`.
    """
    layers = find_layers(model)
    chosen: dict[str, Partition] = {}
    for name, partition in partitions.items():
        if not isinstance(partition, Partition):
            raise TypeError(f"partitions[{name!r}] must be a Partition, got {type(partition).__name__}")
        found = _named(layers, name)
        if not found:
            raise ValueError(
                f"partitions: {name!r} is no layer with a weight matrix; there are: {layer_names(layers)}"
            )
        for layer in found:
            if layer.name in chosen:
                raise ValueError(f"partitions: {name!r} is named twice")
            check_fit(layer, partition)
            chosen[layer.name] = partition
    return [(layer, chosen[layer.name]) for layer in layers if layer.name in chosen]


class PartitionsByName(dict[str, Partition]):
    """Partitions by the canonical names of their layers, which can be looked up by other names as well.

    ``[name]``, ``get`` and ``in`` take any name of a layer, or of a stack whose matrices all have the same.
    """

    def __missing__(self, name: object) -> Partition:
        for spelling in spellings(name) if isinstance(name, str) else []:
            plain = spelling.removesuffix(".weight") if spelling != "weight" else ""
            for key in (plain, spelling):
                if dict.__contains__(self, key):
                    return self[key]
            stack = [self[key] for key in self if key.rpartition("[")[0] == spelling]
            if stack and all(partition == stack[0] for partition in stack):
                return stack[0]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return self.get(name) is not None

    def get(self, name: Any, default: Any = None) -> Any:
        """The partition of this name, or the default."""
        try:
            return self[name]
        except KeyError:
            return default

    def __reduce__(self) -> tuple[type[PartitionsByName], tuple[dict[str, Partition]]]:
        return PartitionsByName, (dict(self),)


# As Partition itself, it may be part of a checkpoint that torch.load(weights_only=True) loads.
torch.serialization.add_safe_globals([PartitionsByName])


def check_fit(layer: Layer, partition: Partition) -> None:
    """Raises ``ValueError`` unless the partition fits the layer's ``(out, in)``."""
    shape = layer.shape[:2]
    if shape != partition.shape:
        raise ValueError(
            f"partitions: layer {layer.name!r} has (out, in) {shape}, its partition {partition.shape}"
        )


@contextmanager
def replaced_weights(model: nn.Module, weights: Mapping[Layer, Tensor]) -> Iterator[None]:
    """Inside, the model multiplies by other weights; afterwards it is as it was.

    Args:
        model: whose layers these are. It must not be used by another thread meanwhile.
        weights: for each layer a tensor of its weight's shape, ``(out, in, *kernel)``.
    """
    whole: dict[tuple[nn.Module, str], Tensor] = {}
    for layer, weight in weights.items():
        key = (layer.module, layer.attribute)
        # A view of the given tensor, laid out as the layer keeps it: gradients flow into what was given.
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
    """Inside, the model uses other parameters or buffers, by their names in it; tied ones together.

    Raises:
        ValueError: a name is unknown; the message names ``argument``.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    for name in tensors:
        if name not in own:
            raise ValueError(f"{argument}: {name!r} is no parameter or buffer of the model")
    with ExitStack() as stack:
        for name, tensor in tensors.items():
            _replace(stack, model, own[name], tensor)
        yield


def _replace(stack: ExitStack, model: nn.Module, before: Tensor, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer wherever the model holds it."""
    for module in model.modules():
        for home in (module._parameters, module._buffers):
            for attribute, held in home.items():
                if held is before:
                    stack.enter_context(Stored(module, attribute).replaced(tensor))
