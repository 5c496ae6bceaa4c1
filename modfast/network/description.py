"""A table of a model's weights: their names, what they do, and which of them the loss would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from modfast.display import html_table
from modfast.layers.layer import Layer, find_layers, linear_layers, operation
from modfast.layers.names import is_adapter
from modfast.layers.readable import UnsupportedWeightError
from modfast.layers.source import parametrized_tensors

from .reading import read_network

# A repr has at most ten lines: a title, headings, rows, and a line that says what is left out.
_MOST_SHOWN = 7

_MOST_IN_HTML = 60

# Longer notes are cut in the table for a terminal; ``rows`` and HTML have them whole.
_LONGEST = 60

_HEADINGS = ("layer", "role", "kind", "shape", "in the loss", "notes")


@dataclass(frozen=True)
class LayerDescription:
    """What is known of one weight.

    Attributes:
        name: as everywhere in modfast: the module's name, or the parameter's if that is not ``weight``.
        role: what the weight does in the network, such as ``mlp_input``; "" if it is not known.
        kind: ``linear``, ``convolution``, ``transposed convolution``, ``embedding``, ``recurrent``, ``stack``
            (one matrix of several in one parameter), or ``other``.
        shape: ``(out, in, *kernel)``; None if the weight cannot be read.
        tied_to: the name of an earlier layer with the same weight, or None.
        selected: whether :class:`modfast.EnmeshmentLoss` takes it by default.
        computed: what computes the weight from other parameters, or None if it is a parameter itself.
        unreadable: why the weight cannot be read, or None. A loss that selects it raises.
    """

    name: str
    role: str
    kind: str
    shape: tuple[int, ...] | None
    tied_to: str | None
    selected: bool
    computed: str | None
    unreadable: str | None

    @property
    def notes(self) -> str:
        """What is unusual about the weight, in words; "" if nothing is."""
        notes = []
        if self.tied_to is not None:
            notes.append(f"tied to {self.tied_to or '(the model)'}")
        if self.computed is not None:
            notes.append(f"computed by {self.computed}")
        if self.unreadable is not None:
            notes.append(f"cannot be read: {self.unreadable}")
        return "; ".join(notes)

    def _cells(self) -> tuple[str, ...]:
        shape = "?" if self.shape is None else " x ".join(map(str, self.shape))
        selected = "yes" if self.selected else ""
        return self.name or "(the model)", self.role, self.kind, shape, selected, self.notes


class LayerTable(Sequence[LayerDescription]):
    """The table that :func:`describe_layers` returns: readable in a terminal and in a notebook.

    ``repr`` shows the first rows, a notebook up to 60 of them, ``print`` all. It is a sequence of its rows.

    Attributes:
        rows: a :class:`LayerDescription` for each weight, in the model's order.
    """

    def __init__(self, rows: Sequence[LayerDescription]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def _title(self) -> str:
        selected = sum(row.selected for row in self.rows)
        return f"{len(self.rows)} weights, {selected} of them in EnmeshmentLoss by default"

    def _shown(self) -> list[int]:
        """The columns that have anything to say; roles are left out where none is known."""
        columns = [index for index in range(len(_HEADINGS)) if any(row._cells()[index] for row in self.rows)]
        return columns or [0]

    def _text(self, rows: Sequence[LayerDescription]) -> list[str]:
        columns = self._shown()
        table = [[_HEADINGS[index] for index in columns]]
        for row in rows:
            cells = _cut(row._cells())
            table.append([cells[index] for index in columns])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)) for line in table)
        return [line.rstrip() for line in lines]

    def __str__(self) -> str:
        return "\n".join([self._title(), *self._text(self.rows)])

    def __repr__(self) -> str:
        lines = [self._title(), *self._text(self.rows[:_MOST_SHOWN])]
        if len(self.rows) > _MOST_SHOWN:
            lines.append(f"... and {len(self.rows) - _MOST_SHOWN} more: print() shows all")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        columns = self._shown()
        rows = [[row._cells()[index] for index in columns] for row in self.rows]
        headings = [_HEADINGS[index] for index in columns]
        # The last layers are worth a look: a classifier's head is among them.
        return html_table(self._title(), headings, rows, _MOST_IN_HTML, last=10, hint=": print() shows all")


def describe_layers(model: nn.Module, example_inputs: Any = None) -> LayerTable:
    """Describe every weight of a model: what ``layers=`` and partitions may name, and what the loss takes.

    Call it first with a model that you do not know: it shows names as all of modfast uses them, weights that
    are one parameter, weights that are computed (parametrizations, ``weight_norm``, pruning, LoRA adapters),
    and weights that cannot be read and would raise.

    Args:
        model: any module. It is not changed.
        example_inputs: what the model takes: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Give it to see roles, which are read from the computation on this example;
            without it they are blank, as they are for weights that the example does not use.

    Returns:
        A :class:`LayerTable` with ``rows``, one :class:`LayerDescription` for each weight with at least two
        dimensions, in the model's order.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        CannotFollowError: (a ``ValueError``) ``example_inputs`` is given, and the computation cannot be
            followed; the message names module and operator.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> describe_layers(model)
        3 weights, 2 of them in EnmeshmentLoss by default
        layer  kind       shape  in the loss
        0      embedding  9 x 4
        1      linear     8 x 4  yes
        3      linear     2 x 8  yes
        >>> [row.role for row in describe_layers(model, torch.zeros(1, 3, dtype=torch.int64))]
        ['embedding', 'linear', 'head']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    roles = {} if example_inputs is None else _roles(model, example_inputs)
    selected = {layer.name for layer in linear_layers(model)}
    first: dict[object, str] = {}
    rows = []
    for layer in find_layers(model):
        shape, unreadable = _shape(layer)
        holder = first.setdefault(layer.identity, layer.name)
        rows.append(
            LayerDescription(
                name=layer.name,
                role=roles.get(layer.name, ""),
                kind=_kind(layer),
                shape=shape,
                tied_to=None if holder == layer.name else holder,
                selected=layer.name in selected,
                computed=None if unreadable is not None else _computed(layer),
                unreadable=unreadable,
            )
        )
    return LayerTable(rows)


def _roles(model: nn.Module, example_inputs: Any) -> Mapping[str, str]:
    return {name: layer.role for name, layer in read_network(model, example_inputs).layers.items()}


def _shape(layer: Layer) -> tuple[tuple[int, ...] | None, str | None]:
    """The shape of a weight, or why it cannot be read."""
    try:
        layer.source  # noqa: B018 - raises if the weight cannot be read
        return layer.shape, None
    except UnsupportedWeightError as error:
        return None, error.reason


def _kind(layer: Layer) -> str:
    inner = operation(layer.module)
    if layer.place is not None:
        return "stack"
    if layer.is_linear:
        return "linear"
    if layer.is_convolution:
        return "transposed convolution" if isinstance(inner, _ConvTransposeNd) else "convolution"
    if layer.attribute == "weight" and isinstance(inner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    return "recurrent" if isinstance(inner, (nn.RNNBase, nn.RNNCellBase)) else "other"


def _computed(layer: Layer) -> str | None:
    """What computes a weight, in words; None for a parameter."""
    if not layer.is_computed:
        return None
    if is_adapter(layer.module):
        return "an adapter (LoRA)"
    if layer.attribute in parametrized_tensors(layer.module):
        changes = layer.module.parametrizations[layer.attribute]  # type: ignore[index]
        names = ", ".join(type(change).__name__.lstrip("_") for change in changes)
        return f"a parametrization ({names})"
    hook = getattr(layer.source, "hook", None)
    return f"a hook ({type(hook).__name__})" if hook is not None else "its module"


def _cut(cells: tuple[str, ...]) -> list[str]:
    """One line for each weight: names stay whole, since they are what one copies, and notes are cut."""
    *others, notes = cells
    notes = " ".join(notes.split())
    return [*others, notes if len(notes) <= _LONGEST else f"{notes[: _LONGEST - 4]} ..."]
