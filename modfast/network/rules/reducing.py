"""What makes one number of many: sums, means, pools."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modfast.network.following import Call, Follower
from modfast.network.marks import MIXED, Marks, thin, varies

from .elementwise import meet
from .table import rule


@rule("mean sum amax amin max min var std var_mean std_mean linalg_vector_norm logsumexp prod median")
def reduces(follower: Follower, call: Call) -> Any:
    """Over numbers of one unit the result is of that unit; over several it is a mixture."""
    if call.name in ("max", "min") and isinstance(call.option("other"), Tensor):
        return meet(follower, call, call.given[:2], call.arguments[:2], call.result.shape, adding=True)
    marks = follower.marks(call.given[0], call.arguments[0])
    dims = call.option("dim")
    if dims is None or dims == []:
        dims = list(range(len(marks.shape)))
    dims = [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % len(marks.shape) for dim in dims]
    matrix = follower.spread.added_up(call.node.args[0], [dim - len(marks.shape) for dim in dims])
    if matrix is not None and call.name in ("sum", "linalg_vector_norm"):
        raise call.fail(
            f"adds up what the parameter {matrix!r} meets number by number, as a matrix does: it "
            "cannot be told whose units that has"
        )
    result = call.result[0] if isinstance(call.result, (tuple, list)) else call.result
    spaces = tuple(reduced(space, dims).reshape(result.shape) for space in marks.spaces)
    found = Marks(spaces, _first(marks.origin, dims).reshape(result.shape))
    if isinstance(call.result, (tuple, list)):
        # The variance and the mean are both of these units; the places of the greatest are not.
        both = call.name in ("var_mean", "std_mean")
        return [found, found if both else None]
    return found


def reduced(space: Tensor, dims: list[int]) -> Tensor:
    """The mark of all numbers along some dimensions, which stay with size 1; several are a mixture."""
    for dim in dims:
        if not varies(space, dim):
            space = space.narrow(dim, 0, 1)
    dims = [dim for dim in dims if space.shape[dim] > 1]
    if not dims:
        return space
    most, least = space.amax(dims, keepdim=True), space.amin(dims, keepdim=True)
    some = torch.where(space >= 0, space, torch.iinfo(torch.int64).max).amin(dims, keepdim=True)
    one = torch.where((most >= 0) & (some < most), MIXED, most)
    return torch.where(least == MIXED, MIXED, one)


def _first(origin: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        origin = origin.narrow(dim, 0, 1)
    return origin


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices "
    ""
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_bilinear2d "
    "upsample_linear1d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa grid_sampler_2d"
)
def pools(follower: Follower, call: Call) -> Any:
    """Places of a channel are pooled, or put between others: they are of the channel's unit."""
    marks = follower.marks(call.given[0], call.arguments[0])
    result = call.result[0] if isinstance(call.result, (tuple, list)) else call.result
    number = next(int(letter) for letter in "123" if f"{letter}d" in call.name or f"_{letter}d" in call.name)
    places = list(range(len(marks.shape) - number, len(marks.shape)))
    if any(varies(space, dim) for space in marks.spaces[1:] for dim in places):
        raise call.fail("pools channels whose places are units as well: they would be mixed")
    if any(varies(marks.spaces[0], dim) for dim in places):
        raise call.fail("pools places that are of different units")
    found = Marks(
        tuple(_first(space, places).expand(result.shape) for space in marks.spaces),
        _first(marks.origin, places).expand(result.shape),
    )
    return [found, None] if isinstance(call.result, (tuple, list)) else found


def along_last(call: Call, marks: Marks) -> int:
    """The space in which the units along the last dimension lie.

    It is the one whose marks change along that dimension, or which has one unit alone. In the other one the
    numbers along that dimension are of one unit each: a channel, where places are multiplied.
    """
    last = len(marks.shape) - 1
    changing = [index for index, space in enumerate(marks.spaces) if varies(space, last)]
    if len(changing) > 1:
        raise call.fail("reads along a dimension that has units of two kinds")
    if changing:
        return changing[0]
    for index, space in enumerate(marks.spaces):
        small = thin(space)
        if bool((small == MIXED).any()) or bool((small == small.flatten()[0]).all() & (small >= 0).all()):
            return index
    free = [index for index, space in enumerate(marks.spaces) if bool((thin(space) < 0).all())]
    if not free:
        raise call.fail("reads along a dimension that has no units, of numbers that have some")
    return free[0]
