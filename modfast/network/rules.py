"""What each operator does with marks; see :mod:`modfast.network.following`. A rule for each kind of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .following import MIXED, NONE, SPACES, Follower, Marks, Rule, Use, Weight

ATEN: Any = torch.ops.aten

RULES: dict[Any, Rule] = {}


def _names(operators: str) -> list[str]:
    """Return those of these operators that this PyTorch has."""
    return [name for name in operators.split() if hasattr(ATEN, name)]


def rule(operators: str) -> Any:
    """Register a rule for operators of ``torch.ops.aten``, by their names; some PyTorch may lack one."""

    def register(function: Rule) -> Rule:
        for name in _names(operators):
            RULES[getattr(ATEN, name)] = function
        return function

    return register


# --- What leaves every number in its place, or moves numbers to other places


@rule(
    "abs alias bernoulli celu clamp clamp_max clamp_min clone contiguous cos detach dropout elu erf "
    "exp expm1 feature_dropout gelu glu_jvp hardsigmoid hardswish hardtanh leaky_relu lift_fresh log "
    "log1p log_sigmoid mish neg pow reciprocal relu relu6 round rsqrt selu sigmoid silu sin softplus "
    "softsign sqrt square tanh threshold _to_copy to type_as softmax _softmax log_softmax _log_softmax "
    "_safe_softmax float nan_to_num layer_norm rms_norm group_norm native_dropout "
    "alpha_dropout"
)
def passes(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """Numbers stay where they are. Weights that scale or shift them are folded, or left out."""
    value = given[0]
    if getattr(node.target, "overloadpacket", None) in _CURVED:
        follower.note("curved", value)
    if value is None or isinstance(value, Weight):
        # A weight that is only cast or copied stays that weight.
        return (
            value
            if isinstance(result, Tensor) and isinstance(value, Weight) and node.target in _COPIES
            else None
        )
    return value


_CURVED = {
    getattr(ATEN, name)
    for name in _names(
        "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu sigmoid silu softplus "
        "softsign tanh threshold"
    )
}

_COPIES = {
    getattr(getattr(ATEN, name), overload)
    for name in _names("alias clone contiguous detach _to_copy to type_as lift_fresh")
    for overload in getattr(ATEN, name).overloads()
}


@rule("_native_batch_norm_legit_no_training native_layer_norm native_group_norm _native_batch_norm_legit")
def norm_of_several(
    follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any
) -> Any:
    """The first result is the input, scaled and shifted; the others are statistics."""
    return [given[0], None, None]


@rule("batch_norm instance_norm _batch_norm_no_update")
def norm_of_one(
    follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any
) -> Any:
    """The result, or the first of several, is the input, scaled and shifted."""
    return given[0] if isinstance(result, Tensor) else [given[0], None, None, None]


@rule(
    "view reshape _unsafe_view _reshape_alias flatten unflatten permute transpose t unsqueeze squeeze "
    "expand slice select split split_with_sizes chunk unbind narrow flip roll repeat repeat_interleave "
    "movedim swapaxes pixel_shuffle pixel_unshuffle index index_select tile unfold diagonal broadcast_to "
    "expand_as view_as channel_shuffle"
)
def moves(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """The same operator moves the marks."""
    value = given[0]
    arguments, options = follower.numbers(node)
    if isinstance(value, Weight):
        return _moved_weight(follower, node, value, arguments)
    if value is None:
        return None  # the other arguments are places
    # A view of numbers that lie in order may meet marks that are spread: these are laid out first.
    target: Any = node.target
    spaces = [target(space.contiguous(), *arguments[1:], **options) for space in value]
    if isinstance(result, Tensor):
        return torch.stack(spaces)
    return [torch.stack(list(parts)) for parts in zip(*spaces, strict=True)]


def _moved_weight(follower: Follower, node: fx.Node, weight: Weight, arguments: list[Any]) -> Weight | None:
    packet = getattr(node.target, "overloadpacket", None)
    dims = len(weight.order)
    order: list[int] | None = None
    if packet is ATEN.t:
        order = list(range(dims))[::-1]
    elif packet is ATEN.transpose:
        order = list(range(dims))
        one, other = arguments[1] % dims, arguments[2] % dims
        order[one], order[other] = order[other], order[one]
    elif packet is ATEN.permute:
        order = [dim % dims for dim in arguments[1]]
    if order is None:
        return None  # a parameter that is no matrix here: it has no units of its own
    return Weight(weight.name, tuple(weight.order[dim] for dim in order))


@rule("cat concat stack")
def joins(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """Units lie side by side; what has none gets none."""
    tensors = follower.number(node.args[0])
    parts = [follower.marks(each, tensor) for each, tensor in zip(given[0], tensors, strict=True)]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    target: Any = node.target
    return torch.stack([target([part[space] for part in parts], dim) for space in range(SPACES)])


@rule("pad constant_pad_nd _pad_enum")
def pads(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """What is put around has no unit."""
    arguments, _ = follower.numbers(node)
    if not isinstance(given[0], Tensor):
        return None
    return torch.stack([ATEN.constant_pad_nd(space, arguments[1], NONE) for space in given[0]])


@rule("slice_scatter select_scatter")
def scatters(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """The numbers of one tensor take the places of some of the other."""
    arguments, options = follower.numbers(node)
    one, other = (follower.marks(given[i], arguments[i]) for i in (0, 1))
    target: Any = node.target
    pairs = zip(one, other, strict=True)
    return torch.stack([target(a, b, *arguments[2:], **options) for a, b in pairs])


@rule(
    "_assert_tensor_metadata _assert_async new_zeros new_ones new_full new_empty zeros_like ones_like "
    "full_like empty_like eq ne lt le gt ge isnan isinf sym_size argmax argsort"
)
def forgets(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """The result does not hold the numbers, only whether they are so, or how many there are."""
    return None


# --- Where units meet


@rule(
    "add sub rsub mul div maximum minimum where fmod remainder atan2 lerp addcmul addcdiv true_divide "
    "masked_fill bitwise_and logical_and __and__ __or__"
)
def meets(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """Numbers at the same place are of the same unit."""
    arguments, _ = follower.numbers(node)
    found: Marks | None = None
    for value, argument in zip(given, arguments, strict=True):
        if not isinstance(value, Tensor) or not isinstance(argument, Tensor):
            continue
        missing = result.dim() - argument.dim()
        marks = value.reshape(SPACES, *[1] * missing, *argument.shape).expand(SPACES, *result.shape)
        if found is None:
            found = marks
            continue
        for one, other in zip(found, marks, strict=True):
            ours, theirs = _varies_along(one), _varies_along(other)
            if not (ours <= theirs or theirs <= ours):
                raise follower.fail(node, "joins units that lie along different dimensions")
        follower.units.join(found, marks)
        # What is known of one is known of the result; a mixture stays one where nothing else is known.
        found = torch.where(found >= 0, found, torch.where(marks >= 0, marks, torch.minimum(found, marks)))
    return found


def _varies_along(space: Tensor) -> set[int]:
    """The dimensions along which neighbours are of different units."""
    found = set()
    for dim in range(space.dim()):
        one, other = space.narrow(dim, 0, space.shape[dim] - 1), space.narrow(dim, 1, space.shape[dim] - 1)
        if bool(((one >= 0) & (other >= 0) & (one != other)).any()):
            found.add(dim)
    return found


@rule("mean sum amax amin max min var std linalg_vector_norm logsumexp norm prod")
def reduces(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """Over numbers of one unit the result is of that unit; over several it is a mixture."""
    value = given[0]
    if not isinstance(value, Tensor):
        return None
    arguments, options = follower.numbers(node)
    dims = options.get("dim", arguments[1] if len(arguments) > 1 else None)
    if dims is None or dims == []:
        dims = list(range(value.dim() - 1))
    dims = [dims] if isinstance(dims, int) else list(dims)
    reduced = [each % (value.dim() - 1) + 1 for each in dims]
    most, least = value.amax(reduced, keepdim=True), value.amin(reduced, keepdim=True)
    some = torch.where(value >= 0, value, torch.iinfo(torch.int64).max).amin(reduced, keepdim=True)
    one = torch.where((most >= 0) & (some < most), MIXED, most)
    one = torch.where((most < 0) & (least == MIXED), MIXED, one)
    target = result[0] if isinstance(result, tuple) else result
    marks = one.reshape(SPACES, *target.shape)
    return [marks, None] if isinstance(result, tuple) else marks


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d max_pool2d_with_indices"
)
def pools(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """Places of a channel are pooled: they are of the channel's unit."""
    target = result[0] if isinstance(result, tuple) else result
    marks = _channels(follower, node, given[0], follower.number(node.args[0]))
    spread = marks.reshape(*marks.shape, *[1] * (target.dim() - 2)).expand(SPACES, *target.shape)
    return [spread, None] if isinstance(result, tuple) else spread


def _channels(follower: Follower, node: fx.Node, value: Any, tensor: Tensor) -> Tensor:
    """The marks of the channels, ``(SPACES, batch, channels)``, of which all places are the same unit."""
    marks = follower.marks(value, tensor)
    if bool((marks[1:] >= 0).any()):
        raise follower.fail(node, "reads channels whose places are units as well: they would be mixed")
    if tensor.dim() < 3:
        return marks
    flat = marks.flatten(3)
    some = flat.amax(3)
    follower.units.join(some[..., None], flat)
    return some


# --- Weights


def _use(follower: Follower, weight: Weight, kind: str, out_dim: int, in_dim: int, groups: int = 1) -> Use:
    """Note that an operator multiplies by a weight; its marks are the same at each use."""
    sizes = follower.sizes[weight.name]
    use = follower.uses.get(weight.name)
    if use is None:
        out, into = sizes[out_dim], sizes[in_dim] * groups
        # What it reads comes first, so that units are numbered in the order in which they are computed.
        read = follower.units.new(into)
        use = Use(kind, follower.units.new(out), read, out_dim, in_dim, groups)
        follower.uses[weight.name] = use
    return use


def _sides(use: Use, out_dim: int) -> tuple[Tensor, Tensor]:
    """The marks of what this use writes and reads: a weight that is used again may be transposed."""
    return (use.out, use.into) if use.out_dim == out_dim else (use.into, use.out)


def _contract(
    follower: Follower,
    node: fx.Node,
    value: Any,
    tensor: Tensor,
    use: Use,
    sides: tuple[Tensor, Tensor],
    shape: Sequence[int],
) -> Marks:
    """The marks after a product over the last dimension, by the space in which that dimension's units lie."""
    out, into = sides
    marks = follower.marks(value, tensor)
    read = _space_along_last(follower, node, marks)
    spaces = []
    for index, space in enumerate(marks):
        if index == read:
            use.read |= frozenset(space[space >= 0].unique().tolist())
            rows = space.flatten(0, -2).unique(dim=0) if space.dim() > 1 else space[None]
            if bool((rows == MIXED).any(1).all()):
                raise follower.fail(node, "reads what mixes several units, so that its inputs have none")
            follower.units.join(rows, into)
            spaces.append(out.expand(shape))
        else:
            spaces.append(space[..., :1].expand(shape))
    return torch.stack([space.clone() for space in spaces])


def _space_along_last(follower: Follower, node: fx.Node, marks: Marks) -> int:
    """The space in which the units along the last dimension lie.

    It is the one whose marks change along that dimension, or which has one unit alone. In the other one the
    numbers along that dimension are of one unit each: a channel, where places are multiplied.
    """
    numbered = [index for index, space in enumerate(marks) if bool((space[..., 1:] != space[..., :-1]).any())]
    if len(numbered) > 1:
        raise follower.fail(node, "reads along a dimension that has units of two kinds")
    if numbered:
        return numbered[0]
    for index, space in enumerate(marks):
        if bool((space == MIXED).any()):
            return index
        if bool((space >= 0).any()) and bool((space == space.flatten()[0]).all()):
            return index
    free = [index for index, space in enumerate(marks) if bool((space == NONE).all())]
    if not free:
        raise follower.fail(node, "reads along a dimension that has no units, of numbers that have some")
    return free[0]


@rule("linear")
def linear(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """``x W^T + b``."""
    return _product(follower, node, given[0], given[1], node.args[0], 0, 1, result)


@rule("addmm")
def addmm(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """``b + x W``."""
    return _product(follower, node, given[1], given[2], node.args[1], 1, 0, result)


@rule("mm matmul bmm")
def matmul(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """``x W``, or two activations that meet in each head."""
    one, other = given[:2]
    if isinstance(other, Weight):
        return _product(follower, node, one, other, node.args[0], 1, 0, result)
    if isinstance(one, Weight):
        raise follower.fail(node, f"multiplies by the parameter {one.name!r} from the left")
    if follower.number(node.args[0]).dim() < 3:
        raise follower.fail(node, "multiplies two activations that have no heads")
    # Two products make an attention: of queries with keys, then of what they attend to with values.
    attends = isinstance(one, Tensor) and follower.scores.isdisjoint(one[one >= 0].unique().tolist())
    for part, value in zip(("query", "key") if attends else ("", "value"), (one, other), strict=True):
        if part:
            follower.note(part, value)
    product = _attend(follower, [(one, node.args[0]), (other, node.args[1])], result)
    if attends:
        follower.scores.update(product[product >= 0].unique().tolist())
    else:
        follower.note("attended", product)
    return product


def _product(
    follower: Follower, node: fx.Node, value: Any, weight: Any, read: Any, out: int, into: int, result: Tensor
) -> Any:
    if not isinstance(weight, Weight):
        raise follower.fail(
            node, "multiplies by a weight that is computed: it cannot be told whose units it has"
        )
    if isinstance(value, Weight):
        value = None
    dims = weight.order[out], weight.order[into]
    use = _use(follower, weight, "linear", *dims)
    return _contract(follower, node, value, follower.number(read), use, _sides(use, dims[0]), result.shape)


def _attend(follower: Follower, factors: list[Any], result: Tensor) -> Any:
    """A product of two activations: in each of its batches all units interact, so they are one (a head)."""
    batch = result.shape[:-2]
    parts = []
    for value, argument in factors:
        tensor = follower.number(argument)
        marks = follower.marks(value, tensor)
        missing = len(batch) - (tensor.dim() - 2)
        marks = marks.reshape(SPACES, *[1] * missing, *tensor.shape)
        parts.append(marks.expand(SPACES, *batch, *tensor.shape[-2:]).flatten(-2))
    together = torch.cat(parts, -1)
    one = follower.units.join_all(together.flatten(0, -2)).reshape(SPACES, *batch)
    attended = one[..., None, None].expand(SPACES, *result.shape).clone()
    return attended


@rule("topk sort")
def picks(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """What is picked depends on the numbers: it is of no unit in particular."""
    return [torch.full((SPACES, *each.shape), MIXED, device="cpu") for each in result]


@rule("scaled_dot_product_attention")
def attention(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """Queries, keys and values of a head become one unit."""
    query, key, value = given[:3]
    tensors = [follower.number(each) for each in node.args[:3]]
    heads = tensors[0].shape[-3] if tensors[0].dim() > 2 else 1
    parts = []
    for marked, tensor in zip((query, key, value), tensors, strict=True):
        marks = follower.marks(marked, tensor)
        if tensor.dim() > 2 and tensor.shape[-3] != heads:
            marks = marks.repeat_interleave(heads // tensor.shape[-3], -3)
        parts.append(marks.flatten(-2))
    for part, marked in zip(("query", "key", "value"), (query, key, value), strict=True):
        follower.note(part, marked)
    one = follower.units.join_all(torch.cat(parts, -1).flatten(0, -2)).reshape(SPACES, *result.shape[:-2])
    attended = one[..., None, None].expand(SPACES, *result.shape).clone()
    follower.note("attended", attended)
    return attended


@rule("embedding")
def embedding(follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any) -> Any:
    """A token's row becomes the numbers of the embedding: its columns are what is written."""
    if not isinstance(given[0], Weight):
        raise follower.fail(node, "looks up rows of a table that is computed")
    use = _use(follower, given[0], "embedding", 1, 0)
    places = follower.number(node.args[1]).reshape(-1, result.shape[-2] if result.dim() > 1 else 1)
    use.counts = places.shape[1] > 1 and bool((places.diff(dim=1) == 1).all())
    use.counts = use.counts and node.args[1] not in follower.fed
    out, _ = _sides(use, 1)
    marks = torch.full((SPACES, *result.shape), NONE, device="cpu")
    marks[0] = out
    return marks


@rule("conv1d conv2d conv3d convolution")
def convolution(
    follower: Follower, node: fx.Node, given: list[Any], named: dict[str, Any], result: Any
) -> Any:
    """Channels are what is read and written, whatever the place."""
    arguments, options = follower.numbers(node)
    weight = given[1]
    if not isinstance(weight, Weight):
        raise follower.fail(
            node, "multiplies by a weight that is computed: it cannot be told whose units it has"
        )
    is_general = node.target is ATEN.convolution.default
    transposed = bool(is_general and arguments[6])
    position = 8 if is_general else 6
    groups = int(arguments[position] if len(arguments) > position else options.get("groups", 1))
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    if transposed and groups > 1:
        raise follower.fail(node, "a transposed convolution in groups cannot be followed")
    use = _use(follower, weight, "convolution", out_dim, in_dim, groups)
    channels = _channels(follower, node, given[0], arguments[0])
    spaces = []
    for index, space in enumerate(channels):
        if index == 0:
            follower.units.join(space, use.into)
            if (
                groups == use.into.numel() and use.out.numel() % groups == 0
            ):  # depthwise: channels keep to themselves
                follower.units.join(use.out.reshape(groups, -1), use.into[:, None])
            spaces.append(use.out.reshape(1, -1, *[1] * (result.dim() - 2)).expand(result.shape))
        else:
            spaces.append(torch.full(result.shape, NONE, device="cpu"))
    return torch.stack([space.clone() for space in spaces])
