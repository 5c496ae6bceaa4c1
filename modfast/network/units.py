"""A whole network as units joined by weights: neurons, channels, heads, the residual stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import check_count
from modfast.arrays import require_numbers
from modfast.display import html_table, listed
from modfast.layers.layer import Layer, choose_layers, find_layers, listed_choices
from modfast.layers.names import unwrapped
from modfast.partition import Labels, Partition, read_labels

from .batch_norms import BatchNorm
from .blocks import Blocks, check_options
from .marks import components
from .roles import ROLES

# The space that only the caller gives. No layer's name can be this: the names of modules hold no dot.
INPUT = ".input"

Change: TypeAlias = Callable[[Layer, Tensor], Tensor]
"""What takes the place of a weight: a function of the layer and its weight, ``(out, in, *kernel)``."""


# A computed weight is computed in evaluation mode. Two threads of shuffle_test at once would each put back
# the mode that the other has set meanwhile, and leave the model in another one than it was in.
_READING = threading.Lock()


@dataclass(frozen=True, eq=False, repr=False)
class NetworkLayer:
    """One weight of a network, and the units that it joins.

    Attributes:
        name: as everywhere in modfast: the module's name, or the parameter's if that is not ``weight``.
        role: what the weight does; one of those of :meth:`Network.select`.
        shape: ``(out, in)``; of a convolution in groups ``(out, in / groups)``.
        row_units: ``(out,)``, int64: the unit of each row.
        col_units: ``(in,)``, int64: the unit of each column; of a convolution in groups
            ``(out, in / groups)``, since each group of rows reads other channels.
        tied_to: the name of an earlier layer with the same parameter, or None.
        norms: the batch norms that multiply the rows, before anything else reads what the layer writes;
            None if the layer is used several times, with different ones.
        reads: the sides whose units it reads: ``("columns",)``; of an embedding, or a parameter that
            activations are multiplied by as ``x W``, ``("rows",)``; of a weight that is used both ways, both.
        groups: of a convolution; 1 for other weights.
    """

    name: str
    role: str
    shape: tuple[int, int]
    row_units: Tensor
    col_units: Tensor
    tied_to: str | None = None
    norms: tuple[BatchNorm, ...] | None = ()
    reads: tuple[str, ...] = ("columns",)
    groups: int = 1

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        tied = "" if self.tied_to is None else f", tied to {self.tied_to!r}"
        return f"NetworkLayer({self.name!r}, {self.role}, {shape}{tied})"


class Network:
    """A model's weights and the units that they join; made by :func:`read_network`.

    A **unit** is what one decides about: a neuron, a channel, an attention head, a dimension of the residual
    stream, a token. A **space** is a range of units that several layers read or write. The network holds the
    model, not its weights: :meth:`graph` is that of the weights as they are when it is called.

    Attributes:
        model: the model that was read.
        num_units: the number of units.
        spaces: for each space (the residual stream, the hidden neurons of one MLP, the heads of one
            attention, the tokens) the range of its units, by name: ``residual`` for what most layers of
            several blocks write, ``.input`` for what only the caller gives, else the layer that writes the
            space first; a space that no layer writes has the name of a layer that reads it and ``.inputs``.
        layers: the weights that the example used, by name, in the order of their first use.
    """

    def __init__(
        self, model: nn.Module, layers: dict[str, NetworkLayer], spaces: dict[str, slice], num_units: int
    ) -> None:
        self.model, self.layers, self.spaces, self.num_units = model, layers, spaces, num_units

    def __repr__(self) -> str:
        return f"Network({self.num_units} units in {len(self.spaces)} spaces, {len(self.layers)} layers)"

    def _repr_html_(self) -> str:
        rows = [
            [layer.name or "(the model)", layer.role, " x ".join(map(str, layer.shape)), layer.tied_to]
            for layer in self.layers.values()
        ]
        spaces = listed([f"{name} {space.stop - space.start:,}" for name, space in self.spaces.items()])
        return html_table(
            f"Network: {self.num_units:,} units. Spaces: {spaces}",
            ("layer", "role", "out x in", "tied to"),
            rows,
        )

    def select(self, *roles: str) -> list[str]:
        """Return the names of the layers with one of these roles.

        Args:
            *roles: ``embedding``, ``position_embedding``, ``attention_query``, ``attention_key``,
                ``attention_value``, ``attention_qkv`` (several of these in one weight),
                ``attention_output``; ``mlp_input``, ``mlp_gate``, ``mlp_output``; ``expert_input``,
                ``expert_gate``, ``expert_output``, ``router``; ``convolution``, ``linear`` (none of the
                others), ``head`` (what writes the model's output).

        Returns:
            The names in the order of :attr:`layers`; an empty list if no layer has such a role.

        Raises:
            ValueError: a role is unknown.
        """
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"roles must be among {', '.join(ROLES)}, got {role!r}")
        return [name for name, layer in self.layers.items() if layer.role in roles]

    def graph(
        self,
        layers: Iterable[str] | str | None = None,
        affinity: str = "abs",
        *,
        index_dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """Return the units as one sparse undirected graph, for :func:`spectral_cluster`.

        The edge weight between two units is the sum of ``|W|`` over the weights between them: over a kernel's
        positions, a head's rows, all layers. A parameter of several layers counts once. A batch norm that
        alone reads what a layer writes is folded in: it multiplies the layer's rows by
        ``|weight| / sqrt(running_var + eps)``. What joins a unit with itself (a depthwise convolution) is
        left out, and so are zeros, biases, activations and other norms.

        Args:
            layers: the names of some of the layers, or globs; None takes all. Units that none of them joins
                have no edges.
            affinity: "abs" for ``|W|``; "square" for its square, so that large weights count more.
            index_dtype: of the graph's indices. ``torch.int32`` takes 8 bytes an entry in place of 12: choose
                it for models of a billion parameters.

        Returns:
            ``torch.sparse_csr``, ``(num_units, num_units)``, symmetric, not negative; float64 if a weight is,
            else float32; on the device of the first layer, or on the CPU if there are no kernels
            for that. Each pair of units that weights join has two
            entries. While it is made, a dense matrix is held for each two spaces that are joined.

        Raises:
            ValueError: a layer or the affinity is unknown, a weight is not finite or is used several times
                with different batch norms, the model no longer has a layer or it has another shape,
                ``index_dtype`` is neither ``torch.int64`` nor ``torch.int32``, or there are too many entries
                for it.
            TypeError: a weight is spread over processes (``DTensor``).

        Source: "Clusterability in Neural Networks" (arXiv 2103.03386), for chains of layers.

        Example:
            >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
            >>> model[0].weight.data = torch.tensor([[3.0, -4.0]])
            >>> model[1].weight.data = torch.tensor([[5.0]])
            >>> from modfast import read_network
            >>> read_network(model, torch.zeros(1, 2)).graph().to_dense()
            tensor([[0., 0., 3., 0.],
                    [0., 0., 4., 0.],
                    [3., 4., 0., 5.],
                    [0., 0., 5., 0.]])
        """
        return self.changed_graph(None, layers, affinity, index_dtype=index_dtype)

    def changed_graph(
        self,
        change: Change | None,
        layers: Iterable[str] | str | None = None,
        affinity: str = "abs",
        *,
        index_dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """Return the graph of other weights in the places of the model's own; else as :meth:`graph`.

        Args:
            change: returns what to take in place of a layer's weight, of the same shape.
            layers: as for :meth:`graph`.
            affinity: as for :meth:`graph`.
            index_dtype: as for :meth:`graph`.

        Raises:
            ValueError, TypeError: as :meth:`graph`; ``change`` returns no tensor, or one of another shape.
        """
        check_options(affinity, index_dtype)
        with _READING:
            weights = {layer.name: layer for layer in find_layers(self.model)}
            chosen = [self.layers[name] for name in self._chosen(layers)]
        blocks = Blocks(list(self.spaces.values()), affinity)
        seen: set[str] = set()
        with torch.no_grad():
            for layer in chosen:
                if (layer.tied_to or layer.name) in seen:
                    continue
                seen.add(layer.tied_to or layer.name)
                with _READING:
                    stored = _found(layer, weights)
                    weight = stored.oriented(stored.whole()).detach()
                if change is not None:
                    weight = _changed(change, stored, weight)
                blocks.add(layer, weight, unwrapped(self.model))
            return blocks.graph(index_dtype)

    def part(self, layers: Iterable[str] | str) -> Network:
        """Return the network that some of the layers make, with their units alone, numbered anew.

        Args:
            layers: the names of the layers, or globs.

        Raises:
            ValueError: a layer is unknown, or there is none.

        Example:
            >>> from modfast import read_network
            >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
            >>> read_network(model, torch.zeros(1, 2)).part(["2"]).spaces
            {'0': slice(0, 3, None), '2': slice(3, 4, None)}
        """
        names = set(self._chosen(layers))
        kept = [self.layers[name] for name in self.layers if name in names]
        sides = torch.cat([side.flatten() for each in kept for side in (each.row_units, each.col_units)])
        is_kept = torch.zeros(self.num_units, dtype=torch.bool, device="cpu")
        is_kept[sides] = True
        number = is_kept.cumsum(0) - 1
        starts = [0, *is_kept.cumsum(0).tolist()]
        spaces = {
            name: slice(starts[space.start], starts[space.stop])
            for name, space in self.spaces.items()
            if bool(is_kept[space].any())
        }
        own = {layer.name for layer in kept}
        renumbered = {
            layer.name: replace(
                layer,
                row_units=number[layer.row_units],
                col_units=number[layer.col_units],
                tied_to=layer.tied_to if layer.tied_to in own else None,
            )
            for layer in kept
        }
        return Network(self.model, renumbered, spaces, starts[-1])

    def apart(self) -> list[list[str]]:
        """Return the names of layers in groups that have no units in common; one group, if all hang together.

        Example:
            >>> from modfast import read_network
            >>> model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
            >>> read_network(model, torch.zeros(1, 2)).part(["0", "2"]).apart()
            [['0'], ['2']]
        """
        # By units, not by spaces: what a layer reads side by side is one space, but its writers share none.
        sides = {
            name: torch.cat([layer.row_units, layer.col_units.flatten()]).unique()
            for name, layer in self.layers.items()
        }
        pairs = [torch.stack([units[:1].expand_as(units), units]) for units in sides.values()]
        least = components(self.num_units, torch.cat(pairs, dim=1).numpy())
        groups: dict[int, list[str]] = {}
        for name, units in sides.items():
            groups.setdefault(int(least[units[0]]), []).append(name)
        return list(groups.values())

    def partitions(
        self, labels: Labels | int, layers: Iterable[str] | str | None = None
    ) -> dict[str, Partition]:
        """Return for each layer the clusters of its rows and columns, from one label for each unit.

        What one layer writes and the next one reads is then in the same cluster.

        Args:
            labels: ``(num_units,)`` integers, -1 for "in no cluster"; or a number of clusters: then each
                space is cut into so many contiguous blocks, sized as ``torch.tensor_split`` does.
            layers: the names of some of the layers, or globs. None takes all, but of layers with the same
                parameter the first alone, and no convolution in groups whose columns stand for channels of
                several clusters.

        Returns:
            Layer name to :class:`Partition`, as :class:`EnmeshmentLoss` and :func:`save_partitions` take it;
            all have the same number of clusters, the largest label + 1.

        Raises:
            ValueError: a layer is unknown; labels are not one integer, -1 or above, for each unit; a
                convolution in groups was named whose columns stand for channels of several clusters.

        Example:
            >>> from modfast import read_network
            >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> partitions = read_network(model, torch.zeros(1, 2)).partitions(2)
            >>> partitions["0"].row_labels, partitions["2"].col_labels
            (tensor([0, 0, 1, 1]), tensor([0, 0, 1, 1]))
        """
        given, clusters = self.unit_labels(labels)
        found = {}
        for name in self._chosen(layers):
            layer = self.layers[name]
            cols = given[layer.col_units]
            if layers is None and layer.tied_to is not None:
                continue
            if cols.dim() == 2:
                if bool((cols != cols[:1]).any()):
                    if layers is None:
                        continue
                    raise ValueError(
                        f"layers must leave out {name!r}, a convolution in groups: a column of it stands for "
                        "channels of several clusters"
                    )
                cols = cols[0]
            found[name] = Partition(given[layer.row_units], cols, clusters)
        return found

    def unit_labels(self, labels: Labels | int) -> tuple[Tensor, int]:
        """Return the cluster of each unit, int64 ``(num_units,)``, and the number of clusters.

        Args:
            labels: as for :meth:`partitions`.

        Raises:
            ValueError: labels are not one integer, -1 or above, for each unit.

        Example:
            >>> from modfast import read_network
            >>> read_network(nn.Linear(2, 4), torch.zeros(1, 2)).unit_labels(2)
            (tensor([0, 1, 0, 0, 1, 1]), 2)
        """
        if isinstance(labels, (int, np.integer)) and not isinstance(labels, bool):
            clusters = check_count("labels", int(labels))
            given = torch.empty(self.num_units, dtype=torch.int64, device="cpu")
            for space in self.spaces.values():
                parts = torch.arange(space.stop - space.start, device="cpu").tensor_split(clusters)
                sizes = torch.tensor([len(part) for part in parts], device="cpu")
                given[space] = torch.arange(clusters, device="cpu").repeat_interleave(sizes)
            return given, clusters
        given = read_labels("labels", cast("Labels", labels), 2**31 - 2)
        require_numbers("labels", given)
        given = given.cpu()
        if len(given) != self.num_units:
            raise ValueError(
                f"labels must be {self.num_units}, one for each unit of the network, got {len(given)}"
            )
        return given, max(int(given.max()) + 1, 1)

    def _chosen(self, layers: Iterable[str] | str | None) -> list[str]:
        """The names of layers that some names, globs or names of parameters stand for."""
        if layers is None:
            return list(self.layers)
        chosen: list[str] = []
        for pattern in listed_choices(layers, "layers"):
            if isinstance(pattern, str) and pattern in self.layers:
                chosen.append(pattern)
                continue
            matched = [layer.name for layer in choose_layers(find_layers(self.model), pattern, "layers")]
            used = [name for name in matched if name in self.layers]
            if not used:
                raise ValueError(
                    f"layers must be among {', '.join(self.layers)}, got {pattern!r}, which the example does "
                    "not use"
                )
            chosen += used
        if not chosen:
            raise ValueError("layers must name at least one layer, got none")
        return list(dict.fromkeys(chosen))


def _found(layer: NetworkLayer, layers: Mapping[str, Layer]) -> Layer:
    """The model's layer of this name, which must have the shape that was read."""
    now = layers.get(layer.name)
    shape = None if now is None else tuple(now.shape[:2])
    if now is None or shape != tuple(layer.shape):
        has = "has no such layer" if now is None else f"has {shape} there"
        raise ValueError(
            f"model: layer {layer.name!r} was (out, in) {tuple(layer.shape)} when the network was read, and "
            f"the model now {has}: read it again"
        )
    return now


def _changed(change: Change, layer: Layer, weight: Tensor) -> Tensor:
    changed = change(layer, weight)
    if not isinstance(changed, Tensor) or changed.shape != weight.shape:
        got = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(
            f"change must return a tensor of shape {tuple(weight.shape)} for layer {layer.name!r}, got {got}"
        )
    return changed
