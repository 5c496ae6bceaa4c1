"""What multiplies activations by each other: attention in its forms, and what only looks like it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modfast.network.following import Call, Follower
from modfast.network.marks import MIXED, NONE, SPACES, Marks, Routed, Weight, is_all, thin, unknown, varies

from .elementwise import meet
from .reducing import reduced
from .table import rule
from .weights import product


@rule("mm matmul bmm")
def matmul(follower: Follower, call: Call) -> Any:
    """``x W``, ``W x``, or two activations."""
    return multiply(follower, call, 0)


@rule("addmm baddbmm")
def adds_product(follower: Follower, call: Call) -> Any:
    """``b + x W``."""
    found = multiply(follower, call, 1)
    if isinstance(found, Routed):
        raise call.fail("adds something to what experts write")
    numbers = [call.arguments[0], call.result]
    return meet(follower, call, [call.given[0], found], numbers, call.result.shape, adding=True)


@rule("mv ")
def multiplies_vector(follower: Follower, call: Call) -> Any:
    """A vector is a weight without rows: what is read becomes a mixture."""
    one, other = call.given[:2]
    if isinstance(one, Weight) or isinstance(other, Weight):
        raise call.fail("multiplies a parameter by a vector")
    marks = [follower.marks(each, number) for each, number in zip((one, other), call.arguments, strict=True)]
    for each in marks:
        follower.meets(each)
    if marks[1].marked:
        raise call.fail("multiplies by a vector that has units")
    return Marks(tuple(_over_last(space) for space in marks[0].spaces), marks[0].origin[..., 0])


def _over_last(space: Tensor) -> Tensor:
    return reduced(space, [space.dim() - 1])[..., 0]


def multiply(follower: Follower, call: Call, first: int) -> Any:
    """The product of two arguments, the first of which is at this place."""
    (one, other), (left, right) = call.given[first : first + 2], call.arguments[first : first + 2]
    if left.dim() < 2 or right.dim() < 2:
        raise call.fail("multiplies by a vector")
    if isinstance(other, Weight):
        return product(follower, call, one, left, other, transposed=True)
    if isinstance(one, Weight):
        if isinstance(other, (Marks, Routed)):
            other = _turned(other)
        return _turned(product(follower, call, other, right.transpose(-1, -2), one))
    marks = follower.marks(one, left), follower.marks(other, right)
    for each in marks:
        follower.meets(each)
    for place, dims in ((0, (-1, -2)), (1, (-2, -1))):
        if _is_computed_weight(follower, call.node.args[first + place], marks[place], marks[1 - place], dims):
            raise call.fail("multiplies by a weight that is computed: it cannot be told whose units it has")
    return _activations(follower, call, *marks)


def _is_computed_weight(
    follower: Follower, node: Any, one: Marks, other: Marks, dims: tuple[int, int]
) -> bool:
    """Whether a factor, computed by ``node``, was made of parameters alone and takes no part in an attention.

    Of its two dimensions the first one is added up, and the second one stays.
    """
    if node not in follower.weighed or node in follower.fed:
        return False
    if not one.marked:
        return True
    space, theirs = one.spaces[0], other.spaces[0]
    if _are(follower.scores, space) or (other.marked and _are(follower.scores, theirs)):
        return False
    # Learned queries and keys have their units along what is added up; a weight writes along what stays.
    added, stays = dims
    return not other.marked or (not varies(space, added) and (one.shape[added] > 1 or varies(space, stays)))


def _turned(value: Any) -> Any:
    if isinstance(value, Routed):
        return Routed(tuple(map(_turned, value.experts)))
    return value.each(lambda layer: layer.transpose(-1, -2))


def _activations(follower: Follower, call: Call, one: Marks, other: Marks) -> Marks | None:
    """Two activations multiply: in an attention all units of a head interact, so they are one."""
    shape = call.result.shape
    ours, theirs = (any(bool((thin(space) >= 0).any()) for space in each.spaces) for each in (one, other))
    if not ours and not theirs:
        return Marks(_mixtures(one, other, shape), _nothing(shape)) if one.marked or other.marked else None
    if not (ours and theirs):
        # Numbers without units only say how those of the other side are added up.
        marks, dim = (one, -1) if ours else (other, -2)
        spaces = [_added_up(space, dim).expand(shape) for space in marks.spaces]
        return Marks(tuple(spaces), _nothing(shape))
    _only_in_first_space(call, one, other)
    left, right = one.spaces[0], other.spaces[0]
    if bool((thin(left) == MIXED).any()) or bool((thin(right) == MIXED).any()):
        raise call.fail("multiplies units by what mixes several")
    rows, cols = varies(left, -2), varies(right, -1)
    inner = varies(left, -1) or varies(right, -2)
    if (rows or cols) and inner:
        raise call.fail("multiplies activations whose units lie along more than one dimension")
    if rows and cols and len(shape) < 4:
        raise call.fail("multiplies each unit by every other one, without heads")
    if len(shape) == 2 and not rows and not cols:
        # A product of two vectors for each pair: nothing says that its units are one head.
        follower.units.join(left[0], right[:, 0])
        return unknown(shape, MIXED)
    if rows != cols:
        # One side has a unit alone in each batch. Scores of an attention are of the head's unit, and so are
        # its values; a single factor of all units scales them alike.
        factor, several = (right, left) if rows else (left, right)
        if not _are(follower.scores, factor) and len(thin(factor)[thin(factor) >= 0].unique()) == 1:
            small = thin_last(factor)[..., :1, :1]
            follower.units.gate(small, several, None)
            return _in_first_space((several[..., :1] if rows else several[..., :1, :]).expand(shape))
    attends = not _are(follower.scores, left) and not _are(follower.scores, right)
    for part, value in zip(("query", "key") if attends else ("value", "value"), (one, other), strict=True):
        if attends or not _are(follower.scores, value.spaces[0]):
            follower.note(part, value)
    head = _one_unit(follower, shape[:-2], [left, right])
    attended = _in_first_space(head[..., None, None].expand(shape))
    if attends:
        follower.scores.update(thin(head)[thin(head) >= 0].unique().tolist())
    else:
        follower.note("attended", attended)
    return attended


def _are(scores: set[int], space: Tensor) -> bool:
    small = thin(space)
    return scores.issuperset(small[small >= 0].unique().tolist())


def _added_up(space: Tensor, dim: int) -> Tensor:
    return reduced(space, [space.dim() + dim])


def _mixtures(one: Marks, other: Marks, shape: Any) -> tuple[Tensor, ...]:
    value = [
        MIXED if MIXED in (_value(a), _value(b)) else NONE
        for a, b in zip(one.spaces, other.spaces, strict=True)
    ]
    return tuple(torch.tensor(each, device="cpu").expand(shape) for each in value)


def _value(space: Tensor) -> int:
    return MIXED if bool((thin(space) == MIXED).any()) else NONE


def _nothing(shape: Any) -> Tensor:
    return torch.tensor(NONE, device="cpu").expand(shape)


def _in_first_space(space: Tensor) -> Marks:
    none = _nothing(space.shape)
    return Marks((space, *[none] * (SPACES - 1)), none)


def _only_in_first_space(call: Call, *several: Marks) -> None:
    for marks in several:
        if not all(is_all(space, NONE) for space in marks.spaces[1:]):
            raise call.fail("multiplies activations whose places are units as well: they would be mixed")


def thin_last(space: Tensor) -> Tensor:
    """Marks without the repetitions along the last two dimensions."""
    for dim in (-2, -1):
        if space.shape[dim] > 1 and space.stride(dim) == 0:
            space = space.narrow(dim, 0, 1)
    return space


def _one_unit(follower: Follower, batch: Any, several: list[Tensor]) -> Tensor:
    """In each of a batch all units are one: join them, and return a mark for each."""
    parts = [thin_last(space).flatten(-2) for space in several]
    parts = [part.expand(*batch, part.shape[-1]) for part in parts]
    together = torch.cat(parts, -1)
    return follower.units.join_all(together.flatten(0, -2)).reshape(batch)


@rule("scaled_dot_product_attention")
def attention(follower: Follower, call: Call) -> Any:
    """Queries, keys and values of a head become one unit; query heads that share a key and value as well."""
    known = [follower.marks(each, n) for each, n in zip(call.given[:3], call.arguments[:3], strict=True)]
    for each in known:
        follower.meets(each)
    mask = call.given[3] if len(call.given) > 3 else call.named.get("attn_mask")
    batch = call.result.shape[:-2]
    if isinstance(mask, (Marks, Weight)):
        number = call.arguments[3] if len(call.arguments) > 3 else call.options["attn_mask"]
        known.append(follower.marks(mask, number))
    if not any(each.marked for each in known[:3]):
        return None
    _only_in_first_space(call, *known)
    spaces = [each.spaces[0] for each in known]
    if any(bool((thin(space) == MIXED).any()) for space in spaces):
        raise call.fail("attends by what mixes several units")
    for place in (1, 2):
        if len(batch) and spaces[place].shape[-3] != batch[-1]:
            spaces[place] = spaces[place].repeat_interleave(batch[-1] // spaces[place].shape[-3], -3)
    for part, each in zip(("query", "key", "value"), known[:3], strict=True):
        follower.note(part, each)
    head = _one_unit(follower, batch, spaces)
    attended = _in_first_space(head[..., None, None].expand(call.result.shape))
    follower.note("attended", attended)
    return attended
