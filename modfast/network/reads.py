"""Where a model reads units: each product of activations with a weight, caught as it is computed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from modfast.arrays import require_whole
from modfast.layers.layer import Layer, find_layers, is_linear, operation
from modfast.layers.names import unwrapped
from modfast.layers.replaced import require_own_parameters
from modfast.layers.running import not_compiled

from .exporting import in_plain_experts
from .products import Product, product_of
from .units import Network, NetworkLayer
from .views import Held, View
from .watching import Watch

ROWS = " (rows)"

_CALLS = itertools.count(1)


@dataclass(frozen=True)
class Read:
    """What one product reads.

    Attributes:
        key: the weight's side, as :func:`sides_read` names it.
        dims: the dimensions of the activations along which units lie, counted from the end, ascending.
        units: the unit at each place along these dimensions, on the device of the activations.
        index: where these units lie in the side's own units.
        looked_up: whether activations are rows of a table, which indices picked.
        call: the call of the whole model in which it is read, a number of its own; 0 outside of one, as where
            a backward pass computes anew.
    """

    key: str
    dims: tuple[int, ...]
    units: Tensor
    index: tuple[int | slice, ...] = (slice(None),)
    looked_up: bool = False
    call: int = 0

    def along(self, values: Tensor, dim: int) -> Tensor:
        """Values of the units' shape, or several such, laid along activations of ``dim`` dimensions."""
        shape = [1] * dim
        for place, size in zip(self.dims, self.units.shape, strict=True):
            shape[place] = size
        return values.reshape(*values.shape[: values.dim() - self.units.dim()], *shape)


Change: TypeAlias = Callable[[Read, Tensor], Tensor]
"""Takes what a weight is about to read, and returns what it reads in its place."""


def sides_read(network: Network) -> dict[str, Tensor]:
    """Return the units that each weight reads, ``(in,)``; of a stack ``(matrices, in)``, -1 for one not used.

    The key is the layer's name, a stack's without a place; for a weight that reads along its rows (an
    embedding), with :data:`ROWS` behind it. Of layers with the same parameter the first stands for all.
    """
    stacks: dict[str, dict[int, Tensor]] = {}
    found: dict[str, Tensor] = {}
    for name, layer in network.layers.items():
        if layer.tied_to is not None:
            continue
        stack, place = _stack_of(name, layer)
        for side in layer.reads:
            key = stack + (ROWS if side == "rows" else "")
            units = layer.row_units if side == "rows" else _columns(layer)
            if place is None:
                found[key] = units
            else:
                stacks.setdefault(key, {})[place] = units
                found[key] = units  # in the order of the layers
    for key, places in stacks.items():
        size = len(next(iter(places.values())))
        units = torch.full((max(places) + 1, size), -1, device="cpu")
        for place, of_matrix in places.items():
            units[place] = of_matrix
        found[key] = units
    return found


def _stack_of(name: str, layer: NetworkLayer) -> tuple[str, int | None]:
    if not name.endswith("]"):
        return name, None
    stack, _, place = name[:-1].rpartition("[")
    return stack, int(place)


def _columns(layer: NetworkLayer) -> Tensor:
    if layer.col_units.dim() == 1:
        return layer.col_units
    # A convolution in groups: all rows of a group read the same channels.
    return layer.col_units[:: len(layer.col_units) // layer.groups].flatten()


class Reads(TorchFunctionMode):
    """Inside, a function changes what weights read.

    Args:
        model: the model; it may be compiled, wrapped, or hold computed weights.
        sides: as :func:`sides_read` returns them.
        wanted: bool, ``(num_units,)``: the units that matter; other reads go on untouched.
        change: called for each product that reads such units.
        instead: functions to call in place of others, with the other one before the arguments.

    Raises:
        ValueError: the model has no such layer or one of another shape, or such a weight is used in a way in
            which it cannot be told what is read; the message names the layer and the function.
        TypeError: a weight is spread over processes (``DTensor``), or FSDP keeps the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        sides: Mapping[str, Tensor],
        wanted: Tensor,
        change: Change,
        instead: Mapping[Any, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        require_own_parameters(model)
        for module in model.modules():
            if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
                raise ValueError(
                    "model must run in this thread, got DataParallel over several devices, which copies it "
                    "into others: give model.module"
                )
        self._sides, self._wanted, self._change = sides, wanted, change
        self._instead = dict(instead or {})
        self._hooked: list[Layer] = []
        self._held: list[Held] = []
        self._places: dict[tuple[str, torch.device], Tensor] = {}
        self._find(model)
        self._by_storage: dict[int, list[Held]] = {}
        self._by_identity: dict[int, Held] = {}
        self._located: list[tuple[int, int]] = []
        self._depth = self._call = 0  # of calls of the whole model
        self._locate()
        self._watch = Watch(self, [held.layer for held in self._held], self._hooked, self._parameters)
        self._model = model

    def _find(self, model: nn.Module) -> None:
        layers = find_layers(model)
        self._parameters = {id(layer.parameter) for layer in layers if layer.parameter is not None}
        known: set[str] = set()
        seen: set[object] = set()
        for layer in layers:
            name = layer.name if layer.place is None else layer.name.rpartition("[")[0]
            dims = self._dims(layer)
            sides = {
                dim: (key, self._sides[key])
                for dim, key in zip(dims, (name + ROWS, name), strict=True)
                if key in self._sides
            }
            known.update(key for key, _ in sides.values())
            wanted = any(bool(self._wanted[units[units >= 0]].any()) for _, units in sides.values())
            if not wanted or (layer.place or 0) > 0:
                continue
            self._check(layer, sides)
            if layer.is_computed:
                self._hooked.append(layer)
                continue
            parameter = layer.parameter
            assert parameter is not None
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            stack = None if layer.place is None else 0
            self._held.append(Held(name, layer, parameter, stack, sides))
        missing = [key for key in self._sides if key not in known]
        if missing:
            raise ValueError(
                f"model: it has no layer {missing[0].removesuffix(ROWS)!r} of the network: read it again"
            )

    @staticmethod
    def _dims(layer: Layer) -> tuple[int, int]:
        """The dimensions of the stored weight that are its rows and its columns."""
        first = 0 if layer.place is None else 1
        return (first + 1, first) if layer.stored_transposed else (first, first + 1)

    def _check(self, layer: Layer, sides: Mapping[int, tuple[str, Tensor]]) -> None:
        if isinstance(layer.module, torch.jit.ScriptModule):
            raise ValueError(
                f"model: layer {layer.name!r} is TorchScript, which does not show what it reads: its inputs "
                "cannot be ablated"
            )
        rows, _ = self._dims(layer)
        groups = operation(layer.module).groups if layer.is_convolution else 1
        for dim, (_, units) in sides.items():
            size = layer.shape[0] if dim == rows else layer.shape[1] * groups
            if units.shape[-1] != size:
                raise ValueError(
                    f"model: layer {layer.name!r} must read {units.shape[-1]} inputs as in the network, it "
                    f"reads {size}: read it again"
                )
        if layer.parameter is not None:
            require_whole(f"model: the weight of layer {layer.name!r}", layer.parameter)
        if layer.is_computed and not (
            layer.attribute == "weight" and (is_linear(operation(layer.module)) or layer.is_convolution)
        ):
            raise ValueError(
                f"model: the weight of layer {layer.name!r} is computed, and its module is neither linear "
                "nor a convolution: it cannot be told what it reads, so its inputs cannot be ablated"
            )

    def _enter(self, *_: Any) -> None:
        if self._watch.is_here:
            self._call = self._call if self._depth else next(_CALLS)
            self._depth += 1
            self._locate()

    def _leave(self, *_: Any) -> None:
        if self._watch.is_here:
            self._depth -= 1
            self._call = self._call if self._depth else 0

    def _locate(self) -> None:
        """Find out which tensors are weights now: others may stand for parameters, as in functional_call."""
        present = [held.layer.parameter for held in self._held]
        places = [
            (id(each), 0 if each is None or _is_transformed(each) else each.untyped_storage().data_ptr())
            for each in present
        ]
        if places == self._located:
            return
        self._located = places
        self._by_storage.clear()
        self._by_identity.clear()
        for held, parameter, (_, pointer) in zip(self._held, present, places, strict=True):
            if parameter is None:
                raise ValueError(
                    f"model: layer {held.name!r} had a weight when this context was made, and has none"
                )
            held.parameter = parameter
            self._by_identity[id(parameter)] = held
            if pointer:
                self._by_storage.setdefault(pointer, []).append(held)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Inside, reads are changed; the model is as it was afterwards."""
        with ExitStack() as stack:
            stack.enter_context(not_compiled())
            stack.enter_context(self._watch.entered())
            root = unwrapped(self._model)
            stack.callback(root.register_forward_pre_hook(self._enter).remove)
            stack.callback(root.register_forward_hook(self._leave, always_call=True).remove)
            if any(held.stack_dim is not None for held in self._held):
                stack.enter_context(in_plain_experts(self._model))
            for layer in self._hooked:
                hook = layer.module.register_forward_pre_hook(self._hook(layer), with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(self)
            yield

    def _hook(self, layer: Layer) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        """Change the input of a module whose weight is computed, which no parameter is."""
        places = len(operation(layer.module).kernel_size) if layer.is_convolution else 0
        key, dims = layer.name, (-1 - places,)

        def change(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._watch.is_here:
                return None
            given = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
            if not isinstance(given, Tensor):
                raise ValueError(
                    f"model: layer {layer.name!r} must read a tensor, got {type(given).__name__}"
                )
            read = Read(key, dims, self._units(key, given.device), call=self._call)
            changed = self._change(read, given)
            if args:
                return (changed, *args[1:]), kwargs
            return args, {name: changed if value is given else value for name, value in kwargs.items()}

        return change

    def _units(self, key: str, device: torch.device) -> Tensor:
        if (key, device) not in self._places:
            self._places[key, device] = self._sides[key].to(device)
        return self._places[key, device]

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Change what a product with a held weight reads; anything else runs as it is."""
        options = dict(kwargs or {})
        if self._watch.is_needed and self._depth > 0:
            used = self._watch.used_elsewhere(_tensors([*args, *options.values()]))
            if used is not None:
                result = func(*args, **options)
                if not any(True for _ in _tensors(result)):
                    return result  # a model may ask for a weight's dtype
                raise ValueError(
                    f"model: the weight of layer {used.name!r} is computed, and another module uses it: it "
                    "cannot be told what it reads, so the units which it reads cannot be ablated"
                )
        if func in self._instead:
            return self._instead[func](func, *args, **options)
        if func is functional.multi_head_attention_forward:
            return self._attention(func, args, options)
        held = self._first_held([args, list(options.values())])
        if held is None:
            return func(*args, **options)
        product = product_of(func, args, options, lambda value: self._holding(value) is not None)
        if product is None:
            result = func(*args, **options)
            made = [each for each in _tensors(result) if self._holding(each) is None]
            # What the model reads by numbers that are made of a weight would not be caught. Outside of its
            # forward pass (a penalty on weights, an optimiser) nothing is read.
            if made and self._depth > 0:
                raise self._refusal(held, func, "that is no product whose factors are known")
            return result
        if product.picks:
            return self._looked_up(func, args, options, product, held)
        read = self._read(held, product, func)
        if read is None:
            return func(*args, **options)
        given, named = product.with_activations(self._change(read, product.activations), args, options)
        return func(*given, **named)

    def _first_held(self, values: Any) -> Held | None:
        """The first held parameter among arguments, and in lists of them."""
        for value in values:
            found = self._first_held(value) if isinstance(value, (list, tuple)) else self._holding(value)
            if found is not None:
                return found
        return None

    def _holding(self, value: Any) -> Held | None:
        """The held parameter that a value is, or is a view of."""
        if not isinstance(value, Tensor):
            return None
        held = self._by_identity.get(id(value))
        if held is not None:
            return held
        # Where functions are transformed (vmap), tensors have no memory that could be a weight's.
        if value.layout != torch.strided or value.is_meta or _is_transformed(value):
            return None
        pointer = value.untyped_storage().data_ptr()
        for held in self._by_storage.get(pointer, ()):
            begin = held.parameter.storage_offset()
            if begin <= value.storage_offset() < begin + max(held.parameter.numel(), 1):
                return held
        return None

    def _looked_up(
        self, func: Any, args: Sequence[Any], options: Mapping[str, Any], product: Product, held: Held
    ) -> Any:
        result = func(*args, **options)
        view = View.of(held, product.weight)
        key, units, _ = self._side(held, view, product, func)
        if not self._matters(units):
            return result
        dims = tuple(range(-result.dim(), -1))
        return self._change(
            Read(key, dims, units[product.activations], looked_up=True, call=self._call), result
        )

    def _matters(self, units: Tensor) -> bool:
        return bool(self._wanted.to(units.device)[units.clamp(min=0)].logical_and(units >= 0).any())

    def _read(self, held: Held, product: Product, func: Any) -> Read | None:
        """What a product reads; None if none of it matters."""
        view = View.of(held, product.weight)
        key, units, index = self._side(held, view, product, func)
        if not self._matters(units):
            return None
        dim = product.aligned[view.matrix_dim(product.contracted)]
        if units.dim() == 1:
            return Read(key, (dim,), units, index, call=self._call)
        # Several matrices of a stack side by side.
        across = product.aligned.get(view.stack)
        if across is None or product.activations.shape[across] != len(units):
            if not bool((units == units[:1]).all()):
                raise self._refusal(held, func, "its matrices read the same numbers as different units")
            return Read(key, (dim,), units[0], (0, index[-1]), call=self._call)
        if across > dim:
            raise self._refusal(held, func, "the matrices of the stack lie behind their columns")
        return Read(key, (across, dim), units, index, call=self._call)

    def _side(
        self, held: Held, view: View, product: Product, func: Any
    ) -> tuple[str, Tensor, tuple[int | slice, ...]]:
        """The key, the units and their place of the dimension that a product sums over."""
        contracted = view.matrix_dim(product.contracted)
        if view.reshaped or contracted not in view.dims:
            raise self._refusal(held, func, "it is reshaped, or only some of its numbers are used")
        dim, begin = view.dims[contracted]
        if dim not in held.sides:
            raise self._refusal(held, func, "it reads along another side than when the network was read")
        key, stored = held.sides[dim]
        self._watch.met(held.layer)
        units, length = self._units(key, product.activations.device), product.weight.shape[contracted]
        columns = slice(begin, begin + length)
        if length == held.parameter.shape[dim] != stored.shape[-1]:
            columns = slice(0, stored.shape[-1])  # a convolution in groups reads the channels of all of them
        if held.stack_dim is None:
            return key, units[columns], (columns,)
        if view.stack >= 0:
            begin = view.dims[view.stack][1]
            places = slice(begin, begin + product.weight.shape[view.stack])
            return key, units[places, columns], (places, columns)
        return key, units[view.place, columns], (view.place, columns)

    def _attention(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Attention of ``nn.MultiheadAttention``, which multiplies by four weights in one function."""
        bound = inspect.signature(func).bind(*args, **options)
        given = bound.arguments
        separate = bool(given.get("use_separate_proj_weight"))
        changed: dict[tuple[int, int], Tensor] = {}
        for name in ("query", "key", "value"):
            activations = given[name]
            weight = given.get(f"{name[0]}_proj_weight" if separate else "in_proj_weight")
            if weight is None or self._holding(weight) is None:
                continue
            case = id(activations), id(weight)
            if case not in changed:
                changed[case] = self._changed(activations, weight, func)
            # The arguments may be one tensor; each is looked at as it was given.
            given = {**given, name: changed[case]}
        bound.arguments.update(given)
        out = given["out_proj_weight"]
        if self._holding(out) is None:
            return func(*bound.args, **bound.kwargs)
        # Multiplied by the identity, the function returns what the last weight reads.
        bound.arguments["out_proj_weight"] = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
        bound.arguments["out_proj_bias"] = None
        attended, weights = func(*bound.args, **bound.kwargs)
        attended = self._changed(attended, out, func)
        return functional.linear(attended, out, given.get("out_proj_bias")), weights

    def _changed(self, activations: Tensor, weight: Tensor, func: Any) -> Tensor:
        held = self._holding(weight)
        assert held is not None
        read = self._read(held, Product(activations, weight, (1,), {1: -1}), func)
        return activations if read is None else self._change(read, activations)

    @staticmethod
    def _refusal(held: Held, func: Any, why: str) -> ValueError:
        name = getattr(func, "__name__", str(func))
        return ValueError(
            f"model: the weight of layer {held.name!r} goes into {name}: {why}, so that the units which it "
            "reads cannot be ablated"
        )


def _is_transformed(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
