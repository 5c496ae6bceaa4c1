"""What moves numbers to other places, puts them side by side, or picks some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from modfast.network.following import Call, Follower
from modfast.network.marks import MIXED, NONE, SPACES, Marks, Weight, unknown, varies

from .table import rule
from .weights import looked_up

ATEN: Any = torch.ops.aten


@rule(
    "view reshape _unsafe_view _reshape_alias flatten unflatten permute transpose t unsqueeze "
    "squeeze expand slice select split split_with_sizes chunk unbind narrow flip roll repeat "
    "repeat_interleave movedim pixel_shuffle pixel_unshuffle channel_shuffle "
    "index index_select gather tile unfold diagonal broadcast_to expand_as view_as rot90 "
    "im2col take_along_dim",
    by_itself=True,
)
def moves(follower: Follower, call: Call) -> Any:
    """The same operator moves the marks."""
    value = call.given[0]
    if value is None:
        return None  # the other arguments are places
    chosen = _chosen_by_input(follower, call)
    if _looks_up(follower, call, value, chosen):
        return looked_up(follower, call, value, chosen[0])
    if chosen and isinstance(value, Weight):
        if value.name in follower.inputs.stacks and len(value.shape) > 2:
            return _routed(follower, call, value, chosen)
        value = follower.marks(value, call.arguments[0])  # a table, as of a bias for each expert
    layers = value.index if isinstance(value, Weight) else (*value.spaces, value.origin)
    for dim in chosen:
        if any(varies(space, dim) for space in layers[:SPACES]):
            if call.name in ("gather", "take_along_dim"):
                follower.note("picked", value)
                return unknown(call.result.shape, MIXED)
            raise call.fail("picks units by what the input is")
    moved = [_moved(call, layer) for layer in layers]

    def made(layers: Any) -> Any:
        if isinstance(value, Weight):
            return Weight(value.name, tuple(layers), True, value.routed)
        return Marks(tuple(layers[:-1]), layers[-1])

    if isinstance(call.result, Tensor):
        return made(moved)
    return [made(parts) for parts in zip(*moved, strict=True)]


def _moved(call: Call, layer: Tensor) -> Any:
    """A layer of marks, moved as the numbers were; what is repeated is not written out."""
    if all(size == 1 or stride == 0 for size, stride in zip(layer.shape, layer.stride(), strict=True)):
        one = layer.flatten()[:1] if layer.numel() else layer.new_full((1,), NONE)
        if isinstance(call.result, Tensor):
            return one[0].expand(call.result.shape)
        return [one[0].expand(part.shape) for part in call.result]
    target: Any = call.node.target
    if call.name in ("view", "_unsafe_view", "_reshape_alias", "view_copy"):
        # Marks may not lie in memory as the numbers do.
        return layer.reshape(call.result.shape)
    if call.name == "im2col":
        # It fills up with zeros, which are no marks, and knows only floating numbers, exact up to 2^53.
        return target((layer - NONE).double(), *call.arguments[1:], **call.options).long() + NONE
    arguments = [each.cpu() if isinstance(each, Tensor) else each for each in call.arguments[1:]]
    if call.name == "index":
        arguments = [[None if each is None else each.cpu() for each in call.arguments[1]]]
    return target(layer, *arguments, **call.options)


def _chosen_by_input(follower: Follower, call: Call) -> list[int]:
    """The dimensions along which an operator picks numbers by what the caller gives."""
    places: Any = call.node.args[1] if call.name == "index" else call.node.args[1:]
    fed = [each for each in places if isinstance(each, fx.Node) and each in follower.fed]
    if not fed:
        return []
    dims = call.arguments[0].dim()
    if call.name in ("gather", "take_along_dim", "index_select"):
        return [call.option("dim", 0) % dims]
    if call.name != "index":
        return list(range(dims))
    found, dim = [], 0
    for node, number in zip(places, call.arguments[1], strict=True):
        size = number.dim() if isinstance(number, Tensor) and number.dtype == torch.bool else 1
        if isinstance(node, fx.Node) and node in follower.fed:
            found += list(range(dim, dim + size))
        dim += size
    return found


def _looks_up(follower: Follower, call: Call, value: Any, chosen: list[int]) -> bool:
    """Whether rows or columns of a matrix are looked up, as those of an embedding: by what the caller gives.

    What weights have chosen, as an expert, picks of a table.
    """
    if not isinstance(value, Weight) or len(value.shape) != 2 or len(chosen) != 1:
        return False
    if call.name not in ("index", "index_select") or value.name in follower.inputs.stacks:
        return False
    places: Any = call.node.args[1] if call.name == "index" else call.node.args[2:]
    nodes = [each for each in places if isinstance(each, fx.Node)]
    boolean = any(follower.env[node].dtype == torch.bool for node in nodes)
    return len(nodes) == 1 and not boolean and nodes[0] not in follower.weighed


def _routed(follower: Follower, call: Call, weight: Weight, dims: list[int]) -> Weight:
    """Matrices of a stack that are chosen by what the input is."""
    whole = weight.index[0].shape[0] == follower.inputs.sizes[weight.name][0] and not weight.moved
    if dims != [0] or not whole:
        raise call.fail(f"picks numbers of the parameter {weight.name!r} by what the input is")
    return Weight(weight.name, tuple(_moved(call, index) for index in weight.index), True, True)


@rule("cat stack", by_itself=True)
def joins(follower: Follower, call: Call) -> Any:
    """Units lie side by side; what has none gets none."""
    tensors = call.arguments[0]
    parts = [follower.marks(each, tensor) for each, tensor in zip(call.given[0], tensors, strict=True)]
    dim, target = call.option("dim", 0), call.node.target

    def put(layers: list[Tensor]) -> Tensor:
        # Where all marks are the same along other dimensions they are not written out.
        joined: Tensor = target(layers, dim)  # type: ignore[operator]
        return joined

    spaces = [put([part.spaces[space] for part in parts]) for space in range(SPACES)]
    return Marks(tuple(spaces), put([part.origin for part in parts]))


@rule("pad constant_pad_nd _pad_enum", by_itself=True)
def pads(follower: Follower, call: Call) -> Any:
    """What is put around a channel's places is of the channel's unit; what is put beside units has none."""
    marks = follower.marks(call.given[0], call.arguments[0])
    mode, amounts = call.option("mode", "constant"), call.arguments[1]
    last = len(marks.shape) - 1
    dims = [last - place // 2 for place, amount in enumerate(amounts) if amount != 0]

    def put(layer: Tensor) -> Tensor:
        if not any(varies(layer, dim) for dim in dims):
            for dim in dims:
                layer = layer.narrow(dim, 0, 1)
            return layer.expand(call.result.shape)
        if mode not in ("constant", 0):
            moved: Tensor = torch.nn.functional.pad(layer.double(), amounts, mode)
            return moved.long()
        return torch.nn.functional.pad(layer, amounts, value=NONE)

    return marks.each(put)


@rule(
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)
def mirrors(follower: Follower, call: Call) -> Any:
    """What is put around are numbers from within."""
    marks = follower.marks(call.given[0], call.arguments[0])
    target: Any = call.node.target
    return marks.each(lambda layer: target(layer.double(), *call.arguments[1:]).long())


@rule("slice_scatter select_scatter")
def scatters(follower: Follower, call: Call) -> Any:
    """The numbers of one tensor take the places of some of the other."""
    one, other = (follower.marks(call.given[i], call.arguments[i]) for i in (0, 1))
    target: Any = call.node.target

    def put(ours: Tensor, theirs: Tensor) -> Tensor:
        put_in: Tensor = target(ours.contiguous(), theirs, *call.arguments[2:], **call.options)
        return put_in

    spaces = tuple(put(a, b) for a, b in zip(one.spaces, other.spaces, strict=True))
    return Marks(spaces, put(one.origin, other.origin))


@rule("copy", by_itself=True)
def overwrites(follower: Follower, call: Call) -> Any:
    """The numbers of the second tensor, repeated to the shape of the first."""
    return follower.marks(call.given[1], call.arguments[1]).expand(call.result.shape)


@rule("view_as_complex")
def pairs_up(follower: Follower, call: Call) -> Any:
    """Two numbers become the parts of a complex one: they are of one unit."""
    marks = follower.marks(call.given[0], call.arguments[0])
    for space in marks.spaces:
        follower.units.join(space[..., 0], space[..., 1])
    return marks.each(lambda layer: layer[..., 0])


@rule("view_as_real")
def takes_apart(follower: Follower, call: Call) -> Any:
    """Both parts of a complex number are of its unit."""
    marks = follower.marks(call.given[0], call.arguments[0])
    return marks.each(lambda layer: layer[..., None].expand(call.result.shape))


@rule("topk sort")
def picks(follower: Follower, call: Call) -> Any:
    """What is picked among several units is of no unit in particular."""
    follower.note("picked", call.given[0])
    marks, dim = follower.marks(call.given[0], call.arguments[0]), call.option("dim", -1)
    shape = call.result[0].shape
    if any(varies(space, dim) for space in marks.spaces):
        return [unknown(shape, MIXED), None]
    return [marks.each(lambda layer: layer.narrow(dim, 0, 1).expand(shape)), None]


@rule("cumsum")
def adds_up(follower: Follower, call: Call) -> Any:
    """Numbers of one unit are added up along a dimension of places."""
    marks, dim = follower.marks(call.given[0], call.arguments[0]), call.option("dim")
    if any(varies(space, dim) for space in marks.spaces):
        raise call.fail("adds up along a dimension along which units lie")
    return marks


@rule(
    "new_zeros new_ones new_full new_empty randn_like rand_like zeros_like ones_like full_like empty_like "
    "argmax argmin argsort sym_size _assert_tensor_metadata _assert_async nonzero histc one_hot bincount any "
    "all"
)
def forgets(follower: Follower, call: Call) -> Any:
    """The result does not hold the numbers, only where they are, or how many there are."""
    return None


@rule("index_put index_add scatter_add index_copy scatter")
def puts(follower: Follower, call: Call) -> Any:
    """Numbers are put, or added, to places of another tensor: there they are of its units."""
    shape = call.result.shape
    into = follower.marks(call.given[0], call.arguments[0])
    position = 3 if call.name in ("index_add", "scatter_add", "index_copy", "scatter") else 2
    source = call.given[position] if len(call.given) > position else None
    if source is None:
        return into
    marks = follower.marks(source, call.arguments[position])
    if call.name == "index_put":
        chosen = [dim for dim, place in enumerate(call.arguments[1]) if place is not None]
        leading = chosen == list(range(len(chosen))) and len(chosen) > 0
        plain = all(each is None or each.dtype != torch.bool for each in call.arguments[1])
        if not (leading and plain):
            raise call.fail("puts numbers at places other than along the first dimensions")
        places = torch.broadcast_tensors(*[call.arguments[1][dim] for dim in chosen])[0].dim()
        rest = len(shape) - len(chosen)
    else:
        chosen = [call.option("dim") % len(shape)]
    follower.meets(marks)
    spaces = []
    for ours, theirs in zip(into.spaces, marks.spaces, strict=True):
        if any(varies(ours, dim) for dim in chosen):
            raise call.fail("puts numbers along a dimension along which units lie")
        if call.name == "index_put":
            theirs = theirs.expand(*[1] * max(places + rest - theirs.dim(), 0), *theirs.shape)
            if any(varies(theirs, dim) for dim in range(places)):
                raise call.fail("puts numbers along a dimension along which units lie")
            theirs = theirs[(0,) * places].expand(shape)
        else:
            if varies(theirs, chosen[0]):
                raise call.fail("puts numbers along a dimension along which units lie")
            theirs = theirs.narrow(chosen[0], 0, 1)
            if call.name in ("scatter", "scatter_add") and any(
                a != b for dim, (a, b) in enumerate(zip(theirs.shape, shape, strict=True)) if dim != chosen[0]
            ):
                raise call.fail("puts numbers to some of the places alone")
            theirs = theirs.expand(shape)
        follower.units.join(ours, theirs)
        spaces.append(torch.where(ours >= 0, ours, theirs))
    return Marks(tuple(spaces), into.origin)
