"""What multiplies by weights: linear layers, convolutions, embeddings, experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modfast.network.following import Call, Follower, Matrix, Use
from modfast.network.marks import MIXED, NONE, SPACES, Marks, Routed, Weight, thin, unknown, varies

from .elementwise import meet_channels
from .reducing import along_last
from .table import rule


@dataclass(frozen=True)
class Sides:
    """The marks that a weight writes and reads, as an operator sees it.

    Attributes:
        uses: of the weight; or of the matrices of a stack, if the operator has several side by side.
        out: ``(out,)`` for each way to see it: all are the same units.
        into: ``(in,)``, likewise.
    """

    uses: list[Use]
    out: list[Tensor]
    into: list[Tensor]


def sides_of(
    follower: Follower, call: Call, value: Any, kind: str, groups: int = 1, transposed: bool = False
) -> Sides:
    """Tell the rows and columns of a weight, ``(out, in, *kernel)``; with ``transposed``, ``(in, out, ...)``.

    Raises:
        CannotFollowError: the value is no parameter, or its rows are not those of one.
    """
    if not isinstance(value, Weight):
        raise call.fail("multiplies by a weight that is computed: it cannot be told whose units it has")
    sizes = follower.inputs.sizes[value.name]
    stacked = value.name in follower.inputs.stacks
    computed = call.fail(
        f"multiplies by the parameter {value.name!r}, but with other rows and columns than are stored"
    )
    rows_dim, cols_dim = (1, 0) if transposed else (0, 1)
    along_rows, along_cols = set(), set()
    for dim, index in enumerate(value.index):
        along = {place for place in range(index.dim()) if varies(index, place)}
        if {rows_dim, cols_dim} <= along or (along - {rows_dim, cols_dim} and along & {rows_dim, cols_dim}):
            raise computed
        along_rows |= {dim} if rows_dim in along else set()
        along_cols |= {dim} if cols_dim in along else set()
    matrix = (1, 2) if stacked else (0, 1)
    out_dim, in_dim = _told_apart(matrix, along_rows, along_cols)
    if out_dim == in_dim:  # a single number, or nothing that tells
        if value.moved:
            raise computed
        out_dim, in_dim = (matrix[rows_dim], matrix[cols_dim])
    kernel = set(range(len(sizes))) - set(matrix) - ({0} if stacked else set())
    inside = {
        dim for dim in matrix if any(varies(value.index[dim], d) for d in range(2, value.index[dim].dim()))
    }
    if inside or along_rows & kernel or (groups > 1 and stacked):
        raise computed

    def at(dim: int, side: int) -> Tensor:
        index = value.index[dim]
        for other in range(index.dim()):
            if other != side:
                index = index.narrow(other, 0, 1)
        return index.flatten()

    rows, cols = at(out_dim, rows_dim), at(in_dim, cols_dim)

    whole = [torch.arange(sizes[dim], device="cpu") for dim in (out_dim, in_dim)]
    if groups > 1 and not (torch.equal(rows, whole[0]) and torch.equal(cols, whole[1])):
        raise computed

    def use(place: int | None) -> Use:
        return _use(
            follower, Matrix(value.name, place), kind, sizes[out_dim], sizes[in_dim], out_dim, in_dim, groups
        )

    if not stacked:
        one = use(None)
        out, into = _sides(one, out_dim)
        return Sides([one], [out[rows]], [into if groups > 1 else into[cols]])
    places = {dim: at(0, dim) for dim in (rows_dim, cols_dim)}
    present = torch.cat([place.unique() for place in places.values()]).unique().tolist()
    uses = {place: use(place) for place in present}
    both = {place: _sides(each, out_dim) for place, each in uses.items()}
    if 0 in along_rows:  # several matrices, one below the other
        below = [torch.stack([both[int(p)][0][r] for p, r in zip(places[rows_dim], rows, strict=True)])]
        return Sides(list(uses.values()), below, [into[cols] for _, into in both.values()])
    if 0 in along_cols:  # several matrices side by side
        beside = torch.stack([both[int(p)][1][c] for p, c in zip(places[cols_dim], cols, strict=True)])
        return Sides(list(uses.values()), [out[rows] for out, _ in both.values()], [beside])
    ((out, into),) = both.values()
    return Sides(list(uses.values()), [out[rows]], [into[cols]])


def _told_apart(matrix: tuple[int, int], along_rows: set[int], along_cols: set[int]) -> tuple[int, int]:
    """Which dimension of a parameter its rows and columns lie along; the same one twice if that is open."""
    one, other = matrix
    if (one in along_rows or other in along_cols) and not (one in along_cols or other in along_rows):
        return one, other
    if (one in along_cols or other in along_rows) and not (one in along_rows or other in along_cols):
        return other, one
    return one, one


def _use(
    follower: Follower, matrix: Matrix, kind: str, out: int, into: int, out_dim: int, in_dim: int, groups: int
) -> Use:
    """Note that an operator multiplies by a weight; its marks are the same at each use."""
    use = follower.uses.get(matrix)
    if use is None:
        # What it reads comes first, so that units are numbered in the order in which they are computed.
        read = follower.units.new(into * groups)
        use = follower.uses[matrix] = Use(kind, follower.units.new(out), read, out_dim, in_dim, groups)
    use.contracted.add(in_dim)
    follower.used.append(matrix)
    return use


def _sides(use: Use, out_dim: int) -> tuple[Tensor, Tensor]:
    """The marks of what this use writes and reads: a weight that is used again may be transposed."""
    return (use.out, use.into) if use.out_dim == out_dim else (use.into, use.out)


def contract(follower: Follower, call: Call, marks: Marks, sides: Sides) -> Marks:
    """The marks after a product over the last dimension, in the space in which that one's units lie."""
    read = along_last(call, marks)
    space = marks.spaces[read]
    small = thin(space)
    if bool((small == MIXED).any()):
        raise call.fail("reads what mixes several units, so that its inputs have none")
    seen = frozenset(small[small >= 0].unique().tolist())
    if seen and seen <= follower.scores:  # scores stay scores where weights mix those of several heads
        follower.scores.update(*(out.tolist() for out in sides.out))
    for use in sides.uses:
        use.read |= seen
    for into in sides.into:
        follower.units.join(space, into)
        follower.units.join(sides.into[0], into)
    for out in sides.out[1:]:
        follower.units.join(sides.out[0], out)
    if bool((small == NONE).any()):
        unmarked = torch.where(small >= 0, NONE, marks.origin)
        follower.sources.read(unmarked)
    shape = (*marks.shape[:-1], len(sides.out[0]))
    spaces = [
        sides.out[0].expand(shape) if index == read else each[..., :1].expand(shape)
        for index, each in enumerate(marks.spaces)
    ]
    # The places of what is written are those of what was read.
    return Marks(tuple(spaces), marks.origin[..., :1].expand(shape))


def product(
    follower: Follower, call: Call, one: Any, number: Tensor, weight: Any, *, transposed: bool = False
) -> Any:
    """``x W^T`` for a weight ``(out, in)``, or a batch of both; ``x W`` for one that is ``(in, out)``."""
    if isinstance(weight, Weight) and len(weight.shape) > 3:
        raise call.fail(f"multiplies by the parameter {weight.name!r} with more than one batch dimension")
    if isinstance(weight, Weight) and len(weight.shape) == 3:
        return _batched(follower, call, one, number, weight, transposed)
    sides = sides_of(follower, call, weight, "linear", transposed=transposed)
    return contract(follower, call, follower.marks(one, number), sides)


def _batched(
    follower: Follower, call: Call, one: Any, number: Tensor, weight: Weight, transposed: bool
) -> Any:
    if weight.routed:
        experts = _experts(follower, weight)
        given = one.experts if isinstance(one, Routed) else [follower.marks(one, number)] * len(experts)
        found = []
        for marks, expert in zip(given, experts, strict=True):
            sides = sides_of(follower, call, expert, "linear", transposed=transposed)
            for use in sides.uses:
                use.routed, use.within = True, use.within or isinstance(one, Routed)
            found.append(contract(follower, call, marks, sides))
        return Routed(tuple(found))
    marks, batches = follower.marks(one, number), weight.shape[0]
    if len(marks.shape) == 2:
        marks = marks.each(lambda layer: layer[None])
    repeated = marks.shape[-3] == 1
    if not any(varies(index, 0) for index in weight.index):
        batches = 1
    parts = []
    for batch in range(batches):
        matrix = Weight(weight.name, tuple(index[batch] for index in weight.index), weight.moved)
        place = 0 if repeated else batch
        part = (
            marks if batches == 1 else marks.each(lambda layer, p=place: layer.narrow(-3, p, 1))  # type: ignore[misc]
        )
        sides = sides_of(follower, call, matrix, "linear", transposed=transposed)
        parts.append(contract(follower, call, part, sides))
    spaces = [torch.cat([part.spaces[space] for part in parts], -3) for space in range(SPACES)]
    joined = Marks(tuple(spaces), torch.cat([part.origin for part in parts], -3))
    if joined.shape[-3] != weight.shape[0]:  # the same matrix for each of the batches
        shape = (*joined.shape[:-3], max(weight.shape[0], joined.shape[-3]), *joined.shape[-2:])
        joined = joined.expand(shape)
    return joined


def _experts(follower: Follower, weight: Weight) -> list[Weight]:
    """The matrix of each expert, for a weight of one that the input chooses."""
    found = []
    for place in range(follower.inputs.sizes[weight.name][0]):
        rest = tuple(index[0] for index in weight.index[1:])
        found.append(Weight(weight.name, (torch.full_like(rest[0], place), *rest), weight.moved))
    return found


@rule("linear")
def linear(follower: Follower, call: Call) -> Any:
    """``x W^T + b``."""
    found = product(follower, call, call.given[0], call.arguments[0], call.given[1])
    if isinstance(found, Marks):
        return meet_channels(follower, call, found, "bias", None, True)
    return found


@rule("transformers::grouped_mm_fallback _grouped_mm")
def experts(follower: Follower, call: Call) -> Any:
    """Each row meets the matrix of one expert, ``(experts, in, out)``; the input chooses which."""
    one, weight = call.given[:2]
    if not isinstance(weight, Weight) or len(weight.shape) != 3 or call.arguments[0].dim() != 2:
        raise call.fail("multiplies by a weight that is computed: it cannot be told whose units it has")
    routed = Weight(weight.name, weight.index, weight.moved, True)
    return _batched(follower, call, one, call.arguments[0], routed, True)


@rule("embedding embedding_bag _embedding_bag _embedding_bag_forward_only")
def embedding(follower: Follower, call: Call) -> Any:
    """A token's row becomes the numbers of the embedding: its columns are what is written."""
    if not isinstance(call.given[0], Weight):
        raise call.fail("looks up rows of a table that is computed")
    sides = sides_of(follower, call, call.given[0], "embedding", transposed=True)
    result = call.result[0] if isinstance(call.result, (tuple, list)) else call.result
    places = call.arguments[1]
    free = call.node.args[1] not in follower.held
    for use in sides.uses:
        use.counts = free and bool((places != places.flatten()[:1]).any())
    found = Marks(
        (sides.out[0].expand(result.shape), *unknown(result.shape).spaces[1:]), unknown(result.shape).origin
    )
    return [found, None, None, None] if isinstance(call.result, (tuple, list)) else found


def looked_up(follower: Follower, call: Call, weight: Weight, dim: int) -> Marks:
    """The marks of what an index picks of ``(in, out)`` along dimension 0, or of ``(out, in)`` along 1."""
    sides = sides_of(follower, call, weight, "embedding", transposed=dim == 0)
    none = unknown(call.result.shape)
    behind = 0 if dim == 0 else len(none.shape) - 1
    out = sides.out[0][(..., *[None] * behind)].expand(none.shape)
    return Marks((out, *none.spaces[1:]), none.origin)


@rule("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d")
def convolution(follower: Follower, call: Call) -> Any:
    """Channels are what is read and written, whatever the place."""
    transposed = call.name.startswith("conv_transpose") or bool(call.option("transposed", False))
    groups = int(call.option("groups", 1))
    if transposed and groups > 1:
        raise call.fail("is a transposed convolution in groups, whose rows belong to several units each")
    sides = sides_of(follower, call, call.given[1], "convolution", groups, transposed)
    places = call.arguments[1].dim() - 2
    marks = follower.marks(call.given[0], call.arguments[0])
    channels = len(marks.shape) - places - 1
    if any(bool((thin(space) >= 0).any()) for space in marks.spaces[1:]):
        raise call.fail("reads channels whose places are units as well: they would be mixed")
    space = marks.spaces[0]
    slides = any(varies(space, dim) for dim in range(channels + 1, len(marks.shape)))
    if slides and not varies(space, channels):
        raise call.fail("slides along a dimension along which units lie")
    turned = Marks(
        (space.movedim(channels, -1), *[each.movedim(channels, -1) for each in marks.spaces[1:]]),
        marks.origin.movedim(channels, -1),
    )
    contract(follower, call, turned, sides)
    (out,), (into,) = sides.out, sides.into
    if groups > 1 and groups == len(into) == len(out):
        # Depthwise: channels keep to themselves. Several outputs of a channel are units of their own.
        follower.units.join(out, into)
    shape = call.result.shape
    result = out.reshape(-1, *[1] * places).expand(shape)
    none = torch.tensor(NONE, device="cpu").expand(shape)
    return meet_channels(
        follower, call, Marks((result, *[none] * (SPACES - 1)), none), "bias", channels, True
    )
