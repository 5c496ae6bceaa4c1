"""What leaves every number in its place, and what makes numbers at the same place meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast.network.following import Call, Follower
from modfast.network.marks import MIXED, NONE, Marks, Weight, is_all, lies_along, thin

from .table import rule

_COPIES = "alias clone contiguous detach lift_fresh lift_fresh_copy _to_copy to type_as"

_CURVED = (
    "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu sigmoid silu softplus "
    "tanh threshold log_sigmoid"
)


# Norms whose weights lie along the last dimensions; those of the others lie along the channels.
_OVER_LAST = ("layer_norm", "rms_norm", "_fused_rms_norm")


@rule(_COPIES, by_itself=True)
def copies(follower: Follower, call: Call) -> Any:
    """The same numbers, perhaps in another dtype; a weight stays that weight, unless it is made integers."""
    if isinstance(call.given[0], Weight) and not (
        call.result.is_floating_point() or call.result.is_complex()
    ):
        return follower.marks(call.given[0], call.arguments[0])
    return call.given[0]


@rule(
    f"{_CURVED} abs ceil cos dropout erf exp exp2 expm1 "
    "feature_dropout floor log log1p log2 logit nan_to_num neg reciprocal round rsqrt sign sin "
    "sqrt square tril triu alpha_dropout logical_not bitwise_not",
    by_itself=True,
)
def passes(follower: Follower, call: Call) -> Any:
    """Each number becomes another one of the same unit."""
    if call.name in _CURVED.split():
        follower.note("curved", call.given[0])
    return follower.marks(call.given[0], call.arguments[0])


@rule("clamp clamp_max clamp_min", by_itself=True)
def clamps(follower: Follower, call: Call) -> Any:
    """Bounds are numbers; or tensors, which take the place of what exceeds them."""
    marks, shape = follower.marks(call.given[0], call.arguments[0]), call.result.shape
    for name in ("min", "max"):
        bound = call.option(name)
        if isinstance(bound, Tensor):
            numbers = [call.arguments[0], bound]
            marks = meet(follower, call, [marks, call.known(name)], numbers, shape, adding=True) or marks
    return marks


@rule(
    "softmax _softmax log_softmax _log_softmax _safe_softmax layer_norm rms_norm _fused_rms_norm group_norm "
    "native_layer_norm native_group_norm native_dropout batch_norm instance_norm "
    "_native_batch_norm_legit_no_training _native_batch_norm_legit _batch_norm_no_update"
)
def scales(follower: Follower, call: Call) -> Any:
    """Numbers are scaled by what others are, and by the norm's own weights, which are left out here.

    A factor and a summand that weights have written are no weights of the norm: they meet the numbers.
    Operators with several results have the numbers first, and statistics after them.
    """
    marks = follower.marks(call.given[0], call.arguments[0])
    follower.meets(marks)
    dim = None if call.name.removeprefix("native_") in _OVER_LAST else 1
    for name, adding in (("weight", False), ("bias", True)):
        marks = meet_channels(follower, call, marks, name, dim, adding)
    if isinstance(call.result, Tensor):
        return marks
    return [marks, *[None] * (len(call.result) - 1)]


@rule("add sub rsub maximum minimum fmin fmax", by_itself=True)
def adds(follower: Follower, call: Call) -> Any:
    """Numbers that are added are of the same unit."""
    return meet(follower, call, call.given[:2], call.arguments[:2], call.result.shape, adding=True)


@rule(
    "mul div fmod remainder floor_divide atan2 pow eq ne lt le gt ge isnan isinf bitwise_and "
    "bitwise_or logical_and logical_or __and__ __or__ masked_fill prelu _prelu_kernel copysign",
    by_itself=True,
)
def multiplies(follower: Follower, call: Call) -> Any:
    """Factors at the same place are of the same unit; a factor of several units is one of its own."""
    if "prelu" in call.name:  # a slope for each channel, which is no weight between units
        if isinstance(call.given[1], Marks) and call.given[1].marked:
            raise call.fail("has slopes that weights have written")
        follower.note("curved", call.given[0])
        return call.given[0]
    return meet(follower, call, call.given[:2], call.arguments[:2], call.result.shape, adding=False)


@rule("where", by_itself=True)
def chooses(follower: Follower, call: Call) -> Any:
    """What is chosen among is of the same unit, and what decides is a factor."""
    shape = call.result.shape
    found = meet(follower, call, call.given[1:3], call.arguments[1:3], shape, adding=True)
    return meet(follower, call, [found, call.given[0]], [call.result, call.arguments[0]], shape, adding=False)


@rule("addcmul addcdiv", by_itself=True)
def adds_product(follower: Follower, call: Call) -> Any:
    """``a + b * c``."""
    shape = call.result.shape
    product = meet(follower, call, call.given[1:3], call.arguments[1:3], shape, adding=False)
    return meet(
        follower, call, [call.given[0], product], [call.arguments[0], call.result], shape, adding=True
    )


@rule("lerp", by_itself=True)
def interpolates(follower: Follower, call: Call) -> Any:
    """``a + weight * (b - a)``."""
    shape = call.result.shape
    both = meet(follower, call, call.given[:2], call.arguments[:2], shape, adding=True)
    return meet(follower, call, [both, call.given[2]], [call.result, call.arguments[2]], shape, adding=False)


@rule("glu")
def gates(follower: Follower, call: Call) -> Any:
    """One half of the numbers is multiplied by the sigmoid of the other."""
    marks, dim = follower.marks(call.given[0], call.arguments[0]), call.option("dim", -1)
    size = call.result.shape[dim]
    halves = [
        marks.each(lambda layer, start=start: layer.narrow(dim, start, size))  # type: ignore[misc]
        for start in (0, size)
    ]
    follower.note("curved", halves[1])
    return meet(follower, call, halves, [call.result] * 2, call.result.shape, adding=False)


def meet_channels(
    follower: Follower, call: Call, marks: Marks, name: str, dim: int | None, adding: bool
) -> Marks:
    """Let an argument with a number for each channel meet the result, if weights have written it.

    The argument has this ``name``; the result has these ``marks``, and its channels along dimension ``dim``,
    or along the last ones if that is None. It is added, or it multiplies.
    """
    value = call.known(name)
    if not isinstance(value, Marks) or not value.marked:
        return marks
    if dim is not None:
        behind = len(marks.shape) - dim - 1
        value = value.each(lambda layer: layer[(..., *[None] * behind)])
    number = call.option(name)
    return meet(follower, call, [marks, value], [number, number], marks.shape, adding=adding) or marks


def meet(
    follower: Follower, call: Call, values: Sequence[Any], numbers: Sequence[Any], shape: Any, *, adding: bool
) -> Marks | None:
    """The marks of a result, at each of whose places the numbers of several values meet."""
    known = []
    follower.spread.meet(call.node, values, numbers, len(shape))
    for value, number in zip(values, numbers, strict=True):
        if isinstance(number, Tensor) and value is not None:
            marks = follower.marks(value, number)
            missing = len(shape) - len(marks.shape)
            known.append(marks.each(lambda layer, m=missing: layer[(None,) * m]))  # type: ignore[misc]
    if not known:
        return None
    if len(known) == 1:
        return known[0].expand(shape)
    one, other = known
    for each in known:
        follower.meets(each)
    spaces = tuple(
        _meet_in_space(follower, call, ours, theirs, shape, adding)
        for ours, theirs in zip(one.spaces, other.spaces, strict=True)
    )
    if one.origin.numel() < other.origin.numel():
        one, other = other, one
    origin = _combined(one.origin, other.origin, shape, lambda a, b: torch.where(a >= 0, a, b))
    return Marks(spaces, origin)


def _meet_in_space(
    follower: Follower, call: Call, one: Tensor, other: Tensor, shape: Any, adding: bool
) -> Tensor:
    if is_all(other, NONE):
        return one.expand(shape)
    if is_all(one, NONE):
        return other.expand(shape)
    ours, theirs = lies_along(one), lies_along(other)
    # A number of one side may meet several units of the other one, where it is repeated.
    our_repeats = {dim for dim in theirs if one.shape[dim] == 1}
    their_repeats = {dim for dim in ours if other.shape[dim] == 1}
    for side, along, repeats in ((one, theirs, our_repeats), (other, ours, their_repeats)):
        # A statistic over a group of units scales all of them; nothing else that is mixed meets units.
        if bool((thin(side) == MIXED).any()) and along and not repeats:
            raise call.fail("joins units with what mixes several, number by number")
    has_units = bool((thin(one) >= 0).any()) and bool((thin(other) >= 0).any())
    if has_units and ((our_repeats and their_repeats) or not (ours <= theirs or theirs <= ours)):
        raise call.fail("joins units that lie along different dimensions")

    def refused() -> Exception:
        return call.fail("adds one unit to several")

    if our_repeats:
        one, other = other, one
    # One factor of all units scales them alike. Several, each of a group of units, tie the group together.
    repeated = bool(our_repeats or their_repeats)
    if repeated and (adding or len(thin(other)[thin(other) >= 0].unique()) == 1):
        follower.units.gate(other, one, refused if adding else None)
    else:
        follower.units.join(one, other)
    # What is known of one is known of the result; a mixture stays one where nothing else is known.
    return _combined(
        one,
        other,
        shape,
        lambda a, b: torch.where(a >= 0, a, torch.where(b >= 0, b, torch.minimum(a, b))),
    )


def _combined(one: Tensor, other: Tensor, shape: Any, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine two layers of marks, broadcast, without writing out what is repeated."""
    if bool((thin(one) >= 0).all()):
        return one.expand(shape)
    return how(thin(one), thin(other)).expand(shape)
