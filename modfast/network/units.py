"""A whole model as units joined by weights: neurons, channels, heads, the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import check_count
from modfast.layers.layer import Layer, find_layers
from modfast.layers.running import preserved
from modfast.layers.source import in_evaluation_mode
from modfast.partition import Labels, Partition, read_labels

from .chain import take_warnings
from .following import CannotFollowError, Follower, components
from .rules import RULES


@dataclass(frozen=True)
class NetworkLayer:
    """One weight of a network, and the units that it joins.

    Attributes:
        name: as everywhere in modfast: the module's name, or the parameter's if that is not ``weight``.
        role: what the weight does; see :meth:`Network.select`.
        shape: ``(out, in)``.
        row_units: ``(out,)``, int64: the unit of each row.
        col_units: ``(in,)``, int64: the unit of each column; of a convolution in groups ``(out, in)``, since
            each group of rows reads other channels.
        tied_to: the name of an earlier layer with the same parameter, or None.
    """

    name: str
    role: str
    shape: tuple[int, int]
    row_units: Tensor
    col_units: Tensor
    tied_to: str | None = None


class Network:
    """A model's weights and the units that they join; made by :func:`read_network`.

    Attributes:
        num_units: the number of units.
        spaces: for each space (the residual stream, the hidden neurons of one MLP, the heads of one
            attention, the tokens) the range of its units, by name: ``residual``, or the layer that writes the
            space, or that layer which alone reads it, with ``.inputs``.
        layers: the weights that the example used, by name, in the order of their first use.
    """

    def __init__(
        self, model: nn.Module, layers: dict[str, NetworkLayer], spaces: dict[str, slice], num_units: int
    ) -> None:
        self.model, self.layers, self.spaces, self.num_units = model, layers, spaces, num_units

    def __repr__(self) -> str:
        return f"Network({self.num_units} units in {len(self.spaces)} spaces, {len(self.layers)} layers)"

    def select(self, *roles: str) -> list[str]:
        """Return the names of the layers with one of these roles.

        Raises:
            ValueError: a role is unknown.
        """
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"roles must be among {', '.join(ROLES)}, got {role!r}")
        return [name for name, layer in self.layers.items() if layer.role in roles]

    def graph(self, layers: Iterable[str] | None = None, affinity: str = "abs") -> Tensor:
        """Return the units as one sparse undirected graph, for ``spectral_cluster``.

        The edge between two units is the sum of ``|W|`` over the weights between them: over a kernel's
        positions, a head's rows, all layers. A parameter of several layers counts once. What joins a unit
        with itself (a depthwise convolution) is left out.

        Args:
            layers: the names of some of the layers; None takes all.
            affinity: "abs" for ``|W|``, "square" for its square.

        Returns:
            ``torch.sparse_csr``, ``(num_units, num_units)``, symmetric, float64, on the CPU.

        Raises:
            ValueError: a layer or the affinity is unknown, or a weight is not finite.
        """
        if affinity not in ("abs", "square"):
            raise ValueError(f"affinity must be 'abs' or 'square', got {affinity!r}")
        weights = {layer.name: layer for layer in find_layers(self.model)}
        shape = (self.num_units, self.num_units)
        total = torch.sparse_coo_tensor(
            torch.empty(2, 0, dtype=torch.int64, device="cpu"),
            torch.empty(0, dtype=torch.float64, device="cpu"),
            shape,
            device="cpu",
            check_invariants=False,
        )
        for name in self._chosen(layers):
            layer = self.layers[name]
            if layer.tied_to is not None:
                continue
            block = weights[name].weight().detach().abs().to("cpu", torch.float64)
            if affinity == "square":
                block = block.square()
            block = block.flatten(2).sum(2) if block.dim() > 2 else block
            if not bool(block.isfinite().all()):
                raise ValueError(f"model: the weights of layer {name!r} must be finite")
            rows = layer.row_units[:, None].expand_as(block)
            cols = layer.col_units.expand_as(block)
            edges = (block != 0) & (rows != cols)
            places = torch.stack([rows[edges], cols[edges]])
            both = torch.cat([places, places.flip(0)], dim=1)
            values = block[edges].repeat(2)
            part = torch.sparse_coo_tensor(both, values, shape, device="cpu", check_invariants=False)
            total = (total + part).coalesce()
        take_warnings()
        return total.coalesce().to_sparse_csr()

    def partitions(self, labels: Labels | int, layers: Iterable[str] | None = None) -> dict[str, Partition]:
        """Return for each layer the clusters of its rows and columns, from one label for each unit.

        Args:
            labels: ``(num_units,)`` integers, -1 for "in no cluster"; or a number of clusters: then each
                space is cut into so many contiguous blocks, sized as ``torch.tensor_split`` does.
            layers: the names of some of the layers; None takes all. A convolution in groups must be left out,
                unless all columns of a group have one label.

        Raises:
            ValueError: a layer is unknown, labels have another length, or the columns of a convolution in
                groups have no label of their own.
        """
        if isinstance(labels, int) and not isinstance(labels, bool):
            clusters = check_count("labels", labels)
            given = torch.empty(self.num_units, dtype=torch.int64, device="cpu")
            for space in self.spaces.values():
                parts = torch.arange(space.stop - space.start, device="cpu").tensor_split(clusters)
                sizes = torch.tensor([len(part) for part in parts], device="cpu")
                given[space] = torch.arange(clusters, device="cpu").repeat_interleave(sizes)
        else:
            given = read_labels("labels", cast("Labels", labels), 2**31 - 2).cpu()
            if len(given) != self.num_units:
                raise ValueError(
                    f"labels must have a label for each of {self.num_units} units, got {len(given)}"
                )
            clusters = max(int(given.max()) + 1, 1)
        found = {}
        for name in self._chosen(layers):
            layer = self.layers[name]
            cols = given[layer.col_units]
            if cols.dim() == 2:
                if bool((cols != cols[:1]).any()):
                    raise ValueError(
                        f"layers must leave out {name!r}: its groups read channels of different clusters"
                    )
                cols = cols[0]
            found[name] = Partition(given[layer.row_units], cols, clusters)
        return found

    def _chosen(self, layers: Iterable[str] | None) -> list[str]:
        names = list(self.layers) if layers is None else [layers] if isinstance(layers, str) else list(layers)
        for name in names:
            if name not in self.layers:
                raise ValueError(f"layers must be among {', '.join(self.layers)}, got {name!r}")
        return names


ROLES = (
    "embedding",
    "position_embedding",
    "attention_query",
    "attention_key",
    "attention_value",
    "attention_qkv",
    "attention_output",
    "mlp_input",
    "mlp_gate",
    "mlp_output",
    "convolution",
    "linear",
    "head",
)


def read_network(model: nn.Module, example_inputs: Any) -> Network:
    """Read a model as units joined by weights, by following its computation on an example.

    A unit is what one decides about: a neuron, a channel, an attention head, a dimension of the residual
        stream, a token. Adding or multiplying two activations makes their units the same; concatenation puts
        units side by side; norms and elementwise functions pass them through; a flatten repeats a channel's
        unit. A head's rows of query, key and value and its columns of the output share its unit; query heads
        that share a key and value are one unit. Nothing depends on names or on the order in which layers are
        registered.

    Args:
        model: the network, in either mode; it is read in evaluation mode and is not changed.
        example_inputs: what the model takes: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Units do not depend on the numbers in it, but a branch that it does not reach
            is not seen.

    Raises:
        CannotFollowError: (a ``ValueError``) the computation holds something without a rule: an operator
            between two weights that cannot be followed, a weight that is computed, or what ``torch.export``
            does not take. The message names module and operator.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> network = read_network(model, torch.zeros(1, 3))
        >>> network
        Network(9 units in 3 spaces, 2 layers)
        >>> torch.equal(network.layers["0"].row_units, network.layers["2"].col_units)
        True
    """
    args, kwargs = _arguments(example_inputs)
    follower = _follow(model, args, kwargs)
    units, spaces = _numbered(follower, follower.units.numbers())
    layers = _layers(model, follower, units)
    return Network(model, layers, _named(spaces, layers), int(units.max()) + 1 if len(units) else 0)


def _numbered(follower: Follower, units: Tensor) -> tuple[Tensor, list[slice]]:
    """Number units space by space; a space is what several sides of weights have in common.

    Returns:
        The unit of each mark, and the range of each space.
    """
    sides = [units[side] for use in follower.uses.values() for side in (use.out, use.into)]
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
    return torch.from_numpy(number)[units], ranges


def _named(spaces: list[slice], layers: dict[str, NetworkLayer]) -> dict[str, slice]:
    """Name each space: the stream that most layers write, or by a layer that writes or reads it."""

    def within(side: Tensor, space: slice) -> bool:
        first = int(side.flatten()[0])
        return bool(space.start <= first < space.stop)

    writers: list[list[str]] = []
    for space in spaces:
        # The rows of an embedding are what it reads, and its columns what it writes.
        writers.append(
            [
                name
                for name, layer in layers.items()
                if within(layer.col_units if "embedding" in layer.role else layer.row_units, space)
            ]
        )
    outputs = [
        sum(layers[name].role in ("attention_output", "mlp_output") for name in names) for names in writers
    ]
    streams = [index for index, number in enumerate(outputs) if number > 1]
    named = {}
    for index, (space, names) in enumerate(zip(spaces, writers, strict=True)):
        if streams == [index]:
            named["residual"] = space
        elif names:
            named[names[0]] = space
        else:
            reader = next(
                name
                for name, layer in layers.items()
                if within(layer.row_units, space) or within(layer.col_units, space)
            )
            named[f"{reader}.inputs"] = space
    return named


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def _follow(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Follower:
    with torch.no_grad(), preserved(model), in_evaluation_mode(model):
        try:
            program = torch.export.export(model, args, kwargs, strict=False).run_decompositions({})
        except Exception as error:
            raise CannotFollowError(
                f"the model's computation cannot be followed, since torch.export fails: {error}"
            ) from error
        signature, state, constants = program.graph_signature, program.state_dict, program.constants
        names, values, inputs_by_name = {}, [], set()
        inputs = iter(torch.utils._pytree.tree_leaves((args, kwargs)))
        for spec in signature.input_specs:
            target = spec.target
            if spec.kind.name == "USER_INPUT":
                inputs_by_name.add(spec.arg.name)
                values.append(next(inputs))
            else:
                values.append(state[target] if target in state else constants[target])
            if spec.kind.name == "PARAMETER":
                names[spec.arg.name] = str(target)
        sizes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        follower = Follower(program.graph_module, names, sizes, RULES)
        follower.inputs = inputs_by_name
        try:
            follower.run(*values, enable_io_processing=False)
        except CannotFollowError as error:
            raise CannotFollowError(str(error).split("\n\nWhile executing")[0]) from None
        return follower


def _layers(model: nn.Module, follower: Follower, units: Tensor) -> dict[str, NetworkLayer]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = {id(parameters[name]): use for name, use in follower.uses.items()}
    found: dict[str, NetworkLayer] = {}
    first: dict[int, str] = {}
    by_parameter: dict[int, list[Layer]] = {}
    for layer in find_layers(model):
        by_parameter.setdefault(id(layer.parameter), []).append(layer)
    roles = _roles(follower, units)
    for name in follower.uses:
        key = id(parameters[name])
        use = uses[key]
        for layer in by_parameter.get(key, []):
            tied_to = first.get(key)
            first.setdefault(key, layer.name)
            rows_are_out = use.out_dim == (1 if layer.stored_transposed else 0)
            rows, cols = (use.out, use.into) if rows_are_out else (use.into, use.out)
            shape = layer.shape[:2]
            if use.groups > 1:
                cols = cols.reshape(use.groups, 1, -1).expand(-1, len(rows) // use.groups, -1).flatten(0, 1)
            found[layer.name] = NetworkLayer(
                layer.name, roles[name], (shape[0], shape[1]), units[rows], units[cols], tied_to
            )
    return found


def _roles(follower: Follower, units: Tensor) -> dict[str, str]:
    """Return the role of each parameter, by what reads and writes its units."""
    uses = follower.uses
    written = {name: frozenset(units[use.out].tolist()) for name, use in uses.items()}
    read = {name: frozenset(units[use.into].tolist()) for name, use in uses.items()}
    linear = [name for name, use in uses.items() if use.kind == "linear"]
    roles = {}
    for name, use in uses.items():
        roles[name] = use.kind
        if use.kind == "embedding" and use.counts:
            roles[name] = "position_embedding"
    parts = follower.parts
    for name in linear:
        rows = set(uses[name].out.tolist())
        factors = [part for part in ("query", "key", "value") if rows & parts[part]]
        if uses[name].read and uses[name].read <= parts["attended"]:
            roles[name] = "attention_output"
        elif len(factors) > 1:
            roles[name] = "attention_qkv"
        elif factors:
            roles[name] = f"attention_{factors[0]}"
    for name in linear:
        if roles[name] != "linear":
            continue
        # What reads the stream, whose hidden units another layer reads to write the stream again.
        outputs = [
            other
            for other in linear
            if other != name and read[other] == written[name] and written[other] == read[name]
        ]
        if not outputs or not set(uses[name].out.tolist()):
            continue
        curved = set(uses[name].out.tolist()) <= parts["curved"]
        partners = [o for o in linear if o != name and written[o] == written[name] and read[o] == read[name]]
        roles[name] = "mlp_gate" if partners and curved else "mlp_input"
        for other in outputs:
            roles[other] = "mlp_output"
    everything_read = frozenset().union(*read.values()) if read else frozenset()
    for name in linear:
        if roles[name] == "linear" and not written[name] & everything_read and len(linear) > 1:
            roles[name] = "head"
    return roles
