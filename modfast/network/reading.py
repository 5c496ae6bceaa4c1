"""Read a model as units joined by weights, by following its computation on an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arrays import require_whole
from modfast.layers.layer import Layer, find_layers
from modfast.layers.names import unwrapped
from modfast.layers.readable import UnsupportedWeightError, require_shape
from modfast.layers.replaced import replaced_weights, require_own_parameters
from modfast.layers.running import copied, device_of, is_several, moved, not_compiled, preserved, with_leaves
from modfast.layers.source import in_evaluation_mode

from .exporting import composed_operators, in_plain_operators
from .following import CannotFollowError, Found, Inputs, Matrix, follow
from .marks import components
from .roles import find_roles
from .rules import RULES
from .units import INPUT, Network, NetworkLayer


def read_network(model: nn.Module, example_inputs: Any) -> Network:
    """Read a model as units joined by weights, by following its computation on an example.

    A unit is what one decides about: a neuron, a channel, an attention head, a dimension of the residual
    stream, a token. Adding or multiplying two activations makes their units the same; concatenation puts
    units side by side; norms and elementwise functions pass them through; a flatten repeats a channel's unit.
    A head's rows of query, key and value and its columns of the output share its unit; query heads that share
    a key and value are one unit. Nothing depends on names or on the order in which layers are registered.

    Args:
        model: the network, in either mode; it is read in evaluation mode and is not changed. Compiled and
            wrapped models are read as what they wrap; a computed weight (a parametrisation, a LoRA adapter)
            is one weight, as the forward pass multiplies by it.
        example_inputs: what the model takes: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. They are moved to the model's device. Units do not depend on the numbers in
            them, but a branch that they do not reach is not seen, and inputs that are one and the same tensor
            are the same units.

    Returns:
        The :class:`Network`, whose layers are those that the example used.

    Raises:
        CannotFollowError: (a ``ValueError``) the computation holds something without a rule: an operator
            between two weights that cannot be followed, a weight that is computed in the forward pass, or
            what ``torch.export`` does not take; or the computation fails on this example. The message names
            module and operator.
        ValueError: a weight cannot be read, or the model has none that the example used.
        TypeError: ``model`` is no ``nn.Module`` or returns no tensor; a weight is spread over processes
            (``DTensor``) or kept by FSDP.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> network = read_network(model, torch.zeros(1, 3))
        >>> network
        Network(9 units in 3 spaces, 2 layers)
        >>> torch.equal(network.layers["0"].row_units, network.layers["2"].col_units)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    require_own_parameters(model)
    for name, parameter in model.named_parameters():
        require_whole(f"model: {name!r}", parameter)
        require_shape(f"model: {name!r}", parameter)
        if parameter.is_meta:
            raise ValueError(f"model: {name!r} has no numbers: it is on the meta device")
    with_leaves(example_inputs, _require_numbers)
    with torch.inference_mode(False), torch.no_grad(), preserved(model), in_evaluation_mode(model):
        layers, unreadable = _readable(model)
        with _as_parameters(layers, model), _explained(unreadable):
            by_tensor: dict[object, list[Layer]] = {}
            for layer in layers:
                by_tensor.setdefault((_identity(layer.whole()), layer.place), []).append(layer)
            stacks = {_identity(layer.whole()) for layer in layers if layer.place is not None}
            found, tensors = _follow(model, copied(moved(example_inputs, device_of(model))), stacks)
            layers_of: dict[Matrix, list[Layer]] = {}
            for matrix in found.uses:
                layers_of[matrix] = by_tensor.get((tensors[matrix.parameter], matrix.place), [])
                if not layers_of[matrix]:
                    raise CannotFollowError(
                        f"model: it multiplies by {matrix.parameter!r}, which is the weight of no layer that "
                        "can be read: an adapter or a forward pass of its own computes with it"
                    )
    if not layers_of:
        raise ValueError(
            "model must multiply by a weight when it is called with example_inputs: it uses none"
        )
    units, spaces = _numbered(found, found.units.numbers())
    joined = _layers(found, units, layers_of)
    written = {
        layer.name: units[use.out] for matrix, use in found.uses.items() for layer in layers_of[matrix]
    }
    return Network(model, joined, _named(spaces, joined, written), int(units.max()) + 1)


def _require_numbers(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_meta:
        raise ValueError("example_inputs must hold numbers, got a tensor on the meta device")
    return value


def _readable(model: nn.Module) -> tuple[list[Layer], dict[str, UnsupportedWeightError]]:
    """The layers whose weight can be read, and by the names of the others why it cannot."""
    layers, unreadable = [], {}
    for layer in find_layers(model):
        try:
            layer.whole()
        except UnsupportedWeightError as error:
            unreadable[layer.name] = error
        else:
            layers.append(layer)
    return layers, unreadable


@contextmanager
def _explained(unreadable: Mapping[str, UnsupportedWeightError]) -> Iterator[None]:
    """Where a computation cannot be followed through a layer that cannot be read, that is the reason."""
    try:
        yield
    except CannotFollowError as error:
        message = str(error)
        for name, reason in unreadable.items():
            if f"'{name}'" in message or f"'{name}." in message or (not name and "the model" in message):
                raise reason from error
        raise


def _identity(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


@contextmanager
def _as_parameters(layers: list[Layer], model: nn.Module) -> Iterator[None]:
    """Inside, every weight is one tensor that the model holds, also those that are computed from others."""
    computed = {layer: layer.weight().detach().clone() for layer in layers if layer.is_computed}
    with replaced_weights(model, computed):
        for module in model.modules():
            own: Any = module._parameters  # TorchScript has no dict
            for attribute, tensor in own.items() if isinstance(own, dict) else ():
                if tensor is not None and not isinstance(tensor, nn.Parameter):
                    own[attribute] = nn.Parameter(tensor, requires_grad=False)
        yield


class _Called(nn.Module):
    """Calls a model with inputs of any form, and returns all tensors that it returns."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.__dict__["inputs"] = inputs  # an input may be a module, which is no part of this one

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        inputs = with_leaves(
            self.__dict__["inputs"], lambda value: next(given) if isinstance(value, Tensor) else value
        )
        if isinstance(inputs, Mapping):
            output = self.model(**inputs)
        elif is_several(inputs):
            output = self.model(*inputs)
        else:
            output = self.model(inputs)
        found = list(_tensors_in(output))
        if not found:
            raise TypeError(f"model must return a tensor, got {type(output).__name__}")
        return found


def _tensors_in(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors_in(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from _tensors_in(getattr(output, field.name))
    elif isinstance(getattr(output, "logits", None), Tensor):
        yield output.logits


def _follow(
    model: nn.Module, inputs: Any, stacks: set[tuple[int, tuple[int, ...]]]
) -> tuple[Found, dict[str, object]]:
    """Follow the model's computation.

    Returns:
        What was found, and the identities of parameters by their names there.
    """
    tensors: list[Tensor] = []

    def note(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
        return value

    with_leaves(inputs, note)
    called = _Called(unwrapped(model), inputs)  # DistributedDataParallel cannot be exported
    with not_compiled(), in_plain_operators(called):
        try:
            program = torch.export.export(called, tuple(tensors), strict=False)
            program = program.run_decompositions(dict(composed_operators()))
        except Exception as error:
            if isinstance(error, TypeError) and str(error).startswith("model must return"):
                raise
            raise CannotFollowError(
                f"model: its computation cannot be followed, since torch.export fails: {_first_lines(error)}"
            ) from error
    signature, state, constants = program.graph_signature, program.state_dict, program.constants
    names: dict[str, str] = {}
    parameters: dict[str, str] = {}
    given: set[str] = set()
    values: list[Any] = []
    for spec in signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            given.add(spec.arg.name)
            values.append(tensors[len(given) - 1])
            continue
        target = str(spec.target)
        values.append(state[target] if target in state else constants[target])
        names[spec.arg.name] = target.removeprefix("model.")
        if spec.kind.name in ("PARAMETER", "CONSTANT_TENSOR"):
            parameters[spec.arg.name] = names[spec.arg.name]
    held = dict(zip((spec.arg.name for spec in signature.input_specs), values, strict=True))
    identities = {name: _identity(held[place]) for place, name in parameters.items()}
    inputs_of_program = Inputs(
        parameters,
        frozenset(given),
        {name: shape for name, (_, shape) in identities.items()},
        frozenset(name for name, identity in identities.items() if identity in stacks),
        names,
    )
    try:
        found = follow(program.graph_module, values, inputs_of_program, RULES)
    except (CannotFollowError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what the model computes with may fail in any way, as its own call would
        empty = [f"{name!r} of shape {shape}" for name, (_, shape) in identities.items() if 0 in shape]
        empty += [f"an input of shape {tuple(each.shape)}" for each in tensors if each.numel() == 0]
        hint = f" (there are no numbers in {', '.join(empty)})" if empty else ""
        raise CannotFollowError(
            f"model: its computation on example_inputs fails: {_first_lines(error, 1)}{hint}"
        ) from error
    return found, dict(identities)


def _first_lines(error: Exception, number: int = 3) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:number]) or type(error).__name__


def _numbered(found: Found, units: Tensor) -> tuple[Tensor, list[slice]]:
    """Number units space by space; a space is what several sides of weights have in common.

    Returns:
        The unit of each mark, -1 for one that no weight reads or writes; and the range of each space.
    """
    sides = [units[side] for use in found.uses.values() for side in (use.out, use.into)]
    if sides:
        # What no weight reads or writes is no unit: numbers of an input that only meet each other.
        of_weights = torch.cat(sides).unique()
        places = torch.full((int(units.max()) + 1,), -1, device="cpu")
        places[of_weights] = torch.arange(len(of_weights), device="cpu")
        units = places[units]
        sides = [places[side] for side in sides]
    count = int(units.max()) + 1 if len(units) else 0
    firsts = torch.cat([side[:1].expand_as(side) for side in sides]) if sides else units
    everything = torch.cat(sides) if sides else units
    space_of = components(count, torch.stack([firsts, everything]).numpy())
    # By the first unit of each space, then by unit: both in the order in which weights have them.
    order = space_of.argsort(kind="stable")
    number = np.empty(count, dtype=np.int64)
    number[order] = np.arange(count)
    ends = [*(np.flatnonzero(np.diff(space_of[order])) + 1).tolist(), count] if count else []
    ranges = [slice(begin, end) for begin, end in pairwise([0, *ends])]
    return torch.where(units >= 0, torch.from_numpy(number)[units], -1), ranges


def _named(
    spaces: list[slice], layers: dict[str, NetworkLayer], written: dict[str, Tensor]
) -> dict[str, slice]:
    """Name each space: the stream that most layers write, or by a layer that writes or reads it.

    Args:
        spaces: the range of each.
        layers: by name.
        written: the units that each layer writes: its columns, if it is an embedding or used transposed.
    """

    def within(side: Tensor, space: slice) -> bool:
        first = int(side.flatten()[0])
        return bool(space.start <= first < space.stop)

    embeddings = {name for name, layer in layers.items() if "embedding" in layer.role}
    read = {
        name: layer.col_units if torch.equal(layer.row_units, written[name]) else layer.row_units
        for name, layer in layers.items()
    }
    writers = [[name for name in layers if within(written[name], space)] for space in spaces]
    readers = [[name for name in layers if within(read[name], space)] for space in spaces]
    outputs = [
        sum(layers[name].role in ("attention_output", "mlp_output", "expert_output") for name in names)
        for names in writers
    ]
    streams = [index for index, number in enumerate(outputs) if number > 1]
    given = [
        index for index, names in enumerate(writers) if not names and readers[index][0] not in embeddings
    ]
    named = {}
    for index, (space, names) in enumerate(zip(spaces, writers, strict=True)):
        if streams == [index]:
            named["residual"] = space
        elif names:
            named[names[0]] = space
        elif given == [index]:
            named[INPUT] = space
        else:
            named[f"{readers[index][0]}.inputs"] = space
    return named


def _layers(found: Found, units: Tensor, layers_of: Mapping[Matrix, list[Layer]]) -> dict[str, NetworkLayer]:
    """Return what each layer joins, in the order in which their weights were used first."""
    joined: dict[str, NetworkLayer] = {}
    roles = find_roles(found, units)
    for matrix, use in found.uses.items():
        first: str | None = None
        norms = use.norms[0] if len(set(use.norms)) == 1 else None
        for layer in layers_of[matrix]:
            first_dim = 0 if matrix.place is None else 1
            rows_dim, cols_dim = first_dim, first_dim + 1
            if layer.stored_transposed:
                rows_dim, cols_dim = cols_dim, rows_dim
            rows_are_out = use.out_dim == rows_dim
            rows, cols = (use.out, use.into) if rows_are_out else (use.into, use.out)
            if use.groups > 1:
                cols = cols.reshape(use.groups, 1, -1).expand(-1, len(rows) // use.groups, -1).flatten(0, 1)
            joined[layer.name] = NetworkLayer(
                layer.name,
                roles[matrix],
                (layer.shape[0], layer.shape[1]),
                units[rows],
                units[cols],
                first,
                norms if rows_are_out or not norms else None,
                tuple(
                    side for side, dim in (("columns", cols_dim), ("rows", rows_dim)) if dim in use.contracted
                ),
                use.groups,
            )
            first = first or layer.name
    return joined
