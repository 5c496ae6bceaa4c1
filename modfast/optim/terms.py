"""What one call of the optimiser's operator updates: the matrices of a parameter group on one device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook

from modfast.arrays import is_sharded
from modfast.energy import sharded
from modfast.energy.loss import EnmeshmentLoss

from .device import rows_at
from .energies import Energies, Row
from .keep import Places
from .layers import LossLayers

# Those whose energies others may make stale.
_WATCHING: WeakSet[Terms] = WeakSet()


def _watch(terms: Terms) -> None:
    if not any(hook is _forget_changed for hook in _global_optimizer_post_hooks.values()):
        register_optimizer_step_post_hook(_forget_changed)
    _WATCHING.add(terms)


def _forget_changed(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After the step of any optimiser: the fused ones of PyTorch change weights and no version."""
    if getattr(optimizer, "_counts_its_changes", False):
        return
    fused = [group["params"] for group in optimizer.param_groups if group.get("fused")]
    if not fused or not _WATCHING:
        return
    changed = set(map(id, chain.from_iterable(fused)))
    for terms in _WATCHING:
        terms.forget_changed(changed)


def local_of(tensor: Any) -> Tensor:
    """This process's piece of a ``DTensor``, in the very tensor that counts how often it was changed."""
    piece = tensor._local_tensor
    # A piece that is still on its way from other processes has to be waited for.
    arrived: Tensor = piece.wait() if hasattr(piece, "wait") else piece
    return arrived


class Held(NamedTuple):
    """The matrices that a parameter holds, each a term of the call.

    Attributes:
        is_sharded: whether it is a ``DTensor``.
        stacked: whether it is a stack, whose matrices are terms of their own.
        first_labels: for each term the place of its first label, or -1 outside the loss.
        rows: for each term its row of the energies, or -1.
        kept: for each term its name if it keeps only its largest weights.
    """

    is_sharded: bool
    stacked: bool
    first_labels: list[int]
    rows: list[int]
    kept: list[str | None]


class Terms:
    """All parameters of a group on one device, with the labels and the energies of those of the loss.

    Attributes:
        params: the parameters.
        number: the group's.
        held: what each of them holds.
        is_plain: whether each parameter is one matrix that this process has as a whole.
        in_loss: the indices of the parameters of the loss.
        energies: None if there are none.
        labels: int32, for the operator, likewise.
    """

    def __init__(
        self, number: int, params: Sequence[Tensor], layers: LossLayers | None, places: Places
    ) -> None:
        self.number = number
        self.params = list(params)
        self.device = params[0].device
        self.held: list[Held] = []
        self.in_loss: list[int] = []
        rows: list[Row] = []
        labels: list[Tensor] = []
        known = 0  # labels
        by_param: dict[int, dict[int | None, int]] = {}
        for layer, parameter in (layers.fused if layers is not None else {}).items():
            assert layers is not None
            by_param.setdefault(id(parameter), {})[layers.loss._layers[layer].place] = layer
        for index, parameter in enumerate(self.params):
            of_loss, of_keep = by_param.get(id(parameter), {}), places.get(id(parameter), {})
            stacked = bool(of_loss or of_keep) and None not in {**of_loss, **of_keep}
            held = Held(is_sharded(parameter), stacked, [], [], [])
            for place in range(parameter.shape[0]) if stacked else (None,):
                held.kept.append(of_keep.get(place))
                if place not in of_loss:
                    held.first_labels.append(-1)
                    held.rows.append(-1)
                    continue
                assert layers is not None
                of_rows, of_cols, group = _labels_of(layers.loss, of_loss[place], parameter)
                shape = (len(of_rows), len(of_cols))
                held.first_labels.append(known)
                held.rows.append(len(rows))
                rows.append(Row(of_loss[place], len(self.in_loss), place, known, shape, group))
                labels += [of_rows, of_cols]
                known += sum(shape)
            if of_keep and held.is_sharded:
                _check_whole(parameter, held)
            if of_loss:
                self.in_loss.append(index)
            self.held.append(held)
        self.is_plain = not any(held.is_sharded or held.stacked for held in self.held)
        self.any_kept = any(name is not None for held in self.held for name in held.kept)
        with torch.inference_mode(False), torch.no_grad():
            self.labels = torch.cat(labels) if labels else None
            self.energies = None if self.labels is None else Energies(rows, self.labels, len(self.in_loss))
        self._watched = [self.params[index] for index in self.in_loss]
        self._watch_pieces = any(self.held[index].is_sharded for index in self.in_loss)
        self._selection: Selection | None = None
        if self.energies is not None:
            _watch(self)

    def watched(self) -> list[Tensor]:
        """The tensors that hold the weights of the loss now."""
        if not self._watch_pieces:
            return self._watched
        return [local_of(each) if is_sharded(each) else each for each in self._watched]

    def forget_changed(self, parameters: Collection[int]) -> None:
        """Others have changed these parameters, given by their ``id``."""
        if self.energies is not None:
            self.energies.forget(index for index, each in enumerate(self._watched) if id(each) in parameters)

    def split(self, tensors: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
        """The matrices in tensors that are laid out as some parameters."""
        result: list[Tensor] = []
        for tensor, index in zip(tensors, indices, strict=True):
            held = self.held[index]
            piece = local_of(tensor) if held.is_sharded and is_sharded(tensor) else tensor
            if held.stacked:
                result += piece.unbind(0)
            else:
                result.append(piece)
        return result

    def repeat(self, tensors: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
        """A tensor for each parameter, once for each of its matrices."""
        result: list[Tensor] = []
        for tensor, index in zip(tensors, indices, strict=True):
            result += [tensor] * len(self.held[index].first_labels)
        return result

    def selection(self, indices: list[int]) -> Selection:
        """What is known of the terms of some parameters; the last one is kept."""
        if self._selection is None or self._selection.indices != indices:
            self._selection = Selection(self, indices)
        return self._selection

    def forget_states(self) -> None:
        """The states of the parameters are other ones now."""
        self._selection = None

    def name_of(self, index: int, group: Mapping[str, Any]) -> str:
        """A parameter's name, for messages."""
        names = group.get("param_names")
        return f"parameter {names[index] if names else index} of group {self.number}"


class Selection:
    """Those parameters of a call that have a gradient in this step.

    Attributes:
        indices: their places among the parameters of the call.
        states: the state of each, found by the optimiser.
        types: those of the parameters when the moments were looked at last.
        first_labels: of each term.
        places: the rows of the energies that the terms have, in their order.
        has_rows: whether there are any.
        rows: the same as a tensor, int64; None if they are all rows.
        kept: for each term its name if it keeps only its largest weights.
        sizes: the elements of each term, if any keeps only its largest weights.
        share, counts: which share was kept last, and how many elements of each term that are.
        thresholds: what the operator remembers of each kept term.
    """

    rows: Tensor | None

    def __init__(self, terms: Terms, indices: list[int]) -> None:
        self.indices = indices
        self.params = [terms.params[index] for index in indices]
        self.states: list[dict[str, Tensor]] = []
        self.types: set[torch.dtype] = set()
        chosen = [terms.held[index] for index in indices]
        self.first_labels = [first for held in chosen for first in held.first_labels]
        self.places = places = [row for held in chosen for row in held.rows if row >= 0]
        self.has_rows = bool(places)
        count = 0 if terms.energies is None else len(terms.energies.rows)
        with torch.inference_mode(False), torch.no_grad():
            self.rows = None
            if places and len(places) < count:
                self.rows = rows_at(torch.arange(count, device=terms.device), places)
            self.kept = [name for held in chosen for name in held.kept]
            self.sizes: list[int] = []
            self.share: float | None = None
            self.counts: list[int] = []
            self.thresholds: Tensor | None = None
            if any(name is not None for name in self.kept):
                self.sizes = [matrix.numel() for matrix in terms.split(self.params, indices)]
                self.thresholds = torch.zeros((len(self.kept), 2), dtype=torch.int64, device=terms.device)


def _labels_of(loss: EnmeshmentLoss, index: int, parameter: Tensor) -> tuple[Tensor, Tensor, sharded.Group]:
    """The labels of the rows and the columns of a weight as it is stored: int32, of this process's piece."""
    layer, group = loss._layers[index], sharded.ALONE
    if is_sharded(parameter):
        rows, cols, group = loss._losses.piece(index, parameter)
    else:
        placed = loss._partitions[index].to(parameter.device)
        rows, cols = placed.row_labels, placed.col_labels
    if layer.stored_transposed:
        rows, cols = cols, rows
    # Those in no cluster are in none together, so that -1 must not meet -1.
    return rows.to(torch.int32), torch.where(cols < 0, -2, cols).to(torch.int32), group


def _check_whole(parameter: Any, held: Held) -> None:
    """Raises for a matrix to keep sparse of which this process holds only a piece.

    Raises:
        TypeError: it does.
    """
    if not all(placement.is_replicate() for placement in parameter.placements):
        name = next(name for name in held.kept if name is not None)
        raise TypeError(
            f"keep: the weight {name!r} is spread over processes (DTensor), by {parameter.placements}; the "
            "largest of the whole matrix are only found where one process has all of it: choose others by "
            "keep_layers"
        )
