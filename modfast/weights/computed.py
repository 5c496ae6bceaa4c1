"""Computes weights that a file holds in pieces; the names of the pieces show how."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class UnknownWeightError(Exception):
    """A file does not show how a weight is computed; the message follows "the weight of layer ..."."""


@dataclass(frozen=True)
class Pieces:
    """What a layer's weight is computed from.

    Attributes:
        tensors: the tensors, by the keys of :attr:`Computed.names`.
        adapter: the ``adapter_config.json`` beside the file.
        is_transposed: whether the layer stores its weight as (in, out).
    """

    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Any]
    is_transposed: bool


@dataclass(frozen=True)
class Computed:
    """A tensor of a layer that a file holds in pieces.

    Attributes:
        how: computes the tensor.
        names: the names of the pieces within the layer. Their keys are ``orig``, ``mask``, ``u``, ``v`` and
            ``g`` for hooks, the parametrization's own names, or, with an adapter, the names themselves.
        whole: the key of the piece that has the tensor's shape; None if no piece is known to have it.
    """

    how: Callable[[Pieces], Tensor]
    names: Mapping[str, str]
    whole: str | None


Shape = tuple[int, ...]
# What may be computed from these pieces, by the endings of their names, and the piece that has its shape.
_HOOKS = ((("g", "v"), "v"), (("orig", "mask"), "orig"), (("orig", "u", "v"), "orig"))
_PARAMETRIZED = "parametrizations."


def computed_in(shapes: Mapping[str, Shape]) -> dict[str, Computed]:
    """Return the tensors that a layer computes, by the names of the attributes that hold them in memory.

    A plain module may have two parameters that are called ``a_g`` and ``a_v``. So, except for ``weight``,
    they count as pieces only if their shapes fit each other and no ``a`` is stored.

    Args:
        shapes: the shapes of the layer's tensors, by their names within the layer.

    Example:
        >>> found = computed_in({"hidden_orig": (4, 2), "hidden_mask": (4, 2), "bias": (4,)})
        >>> {attribute: computed.names for attribute, computed in found.items()}
        {'hidden': {'orig': 'hidden_orig', 'mask': 'hidden_mask'}}
    """
    found = _hooked(shapes)
    # A piece may be computed itself, if a module has two hooks; as in memory such a tensor is not supported.
    inner = {name: shapes[one.names[one.whole]] for name, one in found.items() if one.whole is not None}
    for attribute, outer in _hooked({**inner, **shapes}).items():
        twice = [name for name in outer.names.values() if name in found and name not in shapes]
        if twice:
            names = {name: name for name in outer.names.values() if name in shapes}
            names |= {name: name for piece in twice for name in found.pop(piece).names.values()}
            reason = f"is computed from a computed tensor ({twice[0]}): make one of the two permanent first"
            found[attribute] = Computed(_refusal(reason), names, None)
    return found | _parametrized(shapes)


def _hooked(shapes: Mapping[str, Shape]) -> dict[str, Computed]:
    """Return what the hooks of ``weight_norm``, ``prune`` and ``spectral_norm`` compute."""
    found: dict[str, Computed] = {}
    for keys, whole in _HOOKS:
        ending = f"_{whole}"
        for attribute in [name.removesuffix(ending) for name in shapes if name.endswith(ending)]:
            names = {key: f"{attribute}_{key}" for key in keys}
            if not all(name in shapes for name in names.values()):
                continue
            fits = attribute not in shapes and _fit({key: shapes[name] for key, name in names.items()})
            if attribute != "weight" and not fits:
                continue
            if attribute in found:
                both = dict.fromkeys((*found[attribute].names.values(), *names.values()))
                refusal = _refusal(f"has pieces of several hooks ({', '.join(both)})")
                found[attribute] = Computed(refusal, {name: name for name in both}, None)
            else:
                how = _normed if whole == "v" else _pruned if "mask" in keys else _spectral
                found[attribute] = Computed(how, names, whole)
    if "weight_orig" in shapes and "weight" not in found:
        lacking = ", ".join(name for name in ("weight_u", "weight_v") if name not in shapes)
        reason = f"is computed from weight_orig and something that the file lacks ({lacking})"
        found["weight"] = Computed(_refusal(reason), {"orig": "weight_orig"}, "orig")
    return found


def _fit(shapes: Mapping[str, Shape]) -> bool:
    """Whether the pieces of a hook have shapes with which it can compute a tensor."""
    if "g" in shapes:
        return _norm_dim(shapes["g"], shapes["v"]) is not None
    if "mask" in shapes:
        return shapes["mask"] == shapes["orig"]
    return bool(_spectral_dims(shapes["orig"], shapes["u"], shapes["v"]))


def _parametrized(shapes: Mapping[str, Shape]) -> dict[str, Computed]:
    """Return what ``torch.nn.utils.parametrize`` computes, known by the names of the pieces."""
    pieces: dict[str, dict[str, str]] = defaultdict(dict)
    for name in shapes:
        attribute, _, key = name.removeprefix(_PARAMETRIZED).partition(".")
        if key and name.startswith(_PARAMETRIZED):
            pieces[attribute][key] = name
    found = {}
    for attribute, names in pieces.items():
        if attribute != "weight" and not {"original", "original0"} & set(names):
            continue  # a plain module that is called parametrizations
        if set(names) == {"original0", "original1"}:
            found[attribute] = Computed(_normed, {"g": names["original0"], "v": names["original1"]}, "v")
        elif set(names) == {"original", "0._u", "0._v"}:
            renamed = {"orig": names["original"], "u": names["0._u"], "v": names["0._v"]}
            found[attribute] = Computed(_spectral, renamed, "orig")
        else:
            reason = (
                f"is computed by a parametrization that the file does not tell (from {sorted(names)}): give "
                "package.module:callable, or remove it first "
                "(torch.nn.utils.parametrize.remove_parametrizations)"
            )
            largest = max(names, key=lambda key: math.prod(shapes[names[key]]))
            whole = largest if len(shapes[names[largest]]) > 1 else None
            found[attribute] = Computed(_refusal(reason), names, whole)
    return found


def _refusal(reason: str) -> Callable[[Pieces], Tensor]:
    def refuse(pieces: Pieces) -> Tensor:
        raise UnknownWeightError(reason)

    return refuse


def _pruned(pieces: Pieces) -> Tensor:
    """Compute a weight as ``torch.nn.utils.prune`` does."""
    original, mask = pieces.tensors["orig"], pieces.tensors["mask"]
    if mask.shape != original.shape:
        raise UnknownWeightError(
            f"of shape {tuple(original.shape)} does not fit its mask of shape {tuple(mask.shape)}"
        )
    return mask.to(original.dtype) * original


def _normed(pieces: Pieces) -> Tensor:
    """Compute a weight as ``weight_norm`` does: ``g v / |v|``."""
    lengths, directions = pieces.tensors["g"], pieces.tensors["v"]
    dim = _norm_dim(tuple(lengths.shape), tuple(directions.shape))
    if dim is None:
        raise UnknownWeightError(
            f"is computed from {tuple(lengths.shape)} and {tuple(directions.shape)}, which is no weight_norm"
        )
    return torch._weight_norm(directions, lengths, dim)


def _norm_dim(lengths: Shape, directions: Shape) -> int | None:
    """Return the dimension that ``weight_norm`` does not sum over, -1 if it sums over all; None if unfit."""
    if len(lengths) not in (0, len(directions)):
        return None
    if any(size not in (1, whole) for size, whole in zip(lengths, directions, strict=False)):
        return None
    not_summed = [dim for dim, size in enumerate(lengths) if size > 1]
    if len(not_summed) > 1:
        return None
    # The norm of a single row is that of the whole.
    return not_summed[0] if not_summed else (0 if lengths and directions[0] == 1 else -1)


def _spectral(pieces: Pieces) -> Tensor:
    """Compute a weight as ``spectral_norm`` does in evaluation mode: ``W / u^T W v``.

    W is taken as a matrix, of which one dimension of the weight gives the rows; a file does not say which
    one. If several have the right length, the vectors show it: the last step of the power iteration sets
    u to the direction of ``W v``, or v to that of ``W^T u``.
    """
    weight, u, v = (pieces.tensors[key] for key in ("orig", "u", "v"))
    dims = _spectral_dims(tuple(weight.shape), tuple(u.shape), tuple(v.shape))
    if not dims or not weight.dtype == u.dtype == v.dtype:
        shown = ", ".join(f"{tuple(vector.shape)} {vector.dtype}" for vector in (u, v))
        raise UnknownWeightError(
            f"of shape {tuple(weight.shape)} {weight.dtype} does not fit spectral_norm's vectors ({shown})"
        )
    matrices: list[Tensor] = []
    for dim in dims:
        matrix = weight.movedim(dim, 0).flatten(1)
        if not any(torch.equal(matrix, other) for other in matrices):
            matrices.append(matrix)
    if len(matrices) > 1:
        matrices.sort(key=lambda matrix: _chance(matrix, u, v))
        best, next_best = (_chance(matrix, u, v) for matrix in matrices[:2])
        if not best <= _RARE * next_best:
            raise UnknownWeightError(
                f"of shape {tuple(weight.shape)} is divided by its spectral norm along a dimension that the "
                f"file does not show (one of {dims}), since its vectors fit none of them clearly: call the "
                "model in training mode before saving it, give package.module:callable, or make the weight "
                "permanent first (remove_spectral_norm, or remove_parametrizations)"
            )
    return weight / torch.dot(u, torch.mv(matrices[0], v))


def _spectral_dims(weight: Shape, u: Shape, v: Shape) -> list[int]:
    """Return the dimensions of a weight that can be the rows of the matrix with these singular vectors."""
    if len(weight) < 2 or len(u) != 1 or len(v) != 1:
        return []
    return [
        dim
        for dim, size in enumerate(weight)
        if size == u[0] and math.prod(weight[:dim] + weight[dim + 1 :]) == v[0]
    ]


# How rarely unrelated vectors may be taken for those of a matrix.
_RARE = 1e-6
# More entries than these are no further evidence, since the entries of real vectors are not independent.
_MOST_ENTRIES = 8


def _chance(matrix: Tensor, u: Tensor, v: Tensor) -> float:
    """Return at most how often random vectors would fit the power iteration's equations as well as these.

    A random direction in n dimensions lies within a distance d of a given one with a chance below d^(n-1).
    """
    matrix, u, v = matrix.double(), u.double(), v.double()
    chance = 1.0
    for vector, expected in ((u, matrix @ v), (v, matrix.T @ u)):
        distance = float((vector / vector.norm() - expected / expected.norm()).norm())
        if distance < 1:  # false for NaN
            chance *= max(distance, torch.finfo(torch.float32).eps) ** (min(len(vector), _MOST_ENTRIES) - 1)
    return chance


# Settings of peft's LoRA under which the change is no longer the scaled product of the two factors.
_OTHER_LORA = (
    "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens",
    "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config", "layer_replication",
)  # fmt: skip


def adapted(pieces: Pieces) -> Tensor:
    """Return a layer's own weight plus what peft's LoRA adds to it."""
    tensors, adapter = pieces.tensors, pieces.adapter
    own = [name for name in tensors if name.startswith(("lora_A.", "lora_B.")) and name.endswith("weight")]
    names = sorted({name.split(".")[1] for name in own if name.startswith("lora_A.")} - {"weight"})
    if not set(tensors) <= {*own, "weight"}:
        shown = sorted(tensors)[:_MOST_KEYS] + (["..."] if len(tensors) > _MOST_KEYS else [])
        raise UnknownWeightError(
            f"has an adapter of another kind than plain LoRA of peft ({', '.join(shown)}): merge it first "
            "(merge_and_unload)"
        )
    if "weight" not in tensors:
        raise UnknownWeightError(
            "is not in the file, which holds only its adapter: merge it into the model first"
        )
    if not own:
        raise UnknownWeightError(
            "has an adapter, of which nothing is in the file: merge it first (merge_and_unload)"
        )
    needed = ("r", "lora_alpha")
    if len(names) != 1 or adapter.get("peft_type") != "LORA" or not all(key in adapter for key in needed):
        raise UnknownWeightError(
            "has an adapter, whose scaling is not in the file: merge it first (merge_and_unload), or put the "
            "file beside its adapter_config.json"
        )
    others = [key for key in _OTHER_LORA if adapter.get(key)]
    if others:
        raise UnknownWeightError(
            f"has an adapter with other settings than plain LoRA's ({', '.join(others)}): merge it first"
        )
    rank, alpha = adapter["r"], adapter["lora_alpha"]
    if not all(isinstance(number, (int, float)) for number in (rank, alpha)) or rank <= 0:
        raise UnknownWeightError(
            f"has an adapter whose r, {rank!r}, and lora_alpha, {alpha!r}, give no scaling"
        )
    base = tensors["weight"]
    down, up = (tensors.get(f"{side}.{names[0]}.weight") for side in ("lora_A", "lora_B"))
    change = _product(down, up, rank)
    if change is not None and pieces.is_transposed:
        change = change.transpose(0, 1)
    if change is None or change.shape != base.shape:
        shown_tensors = ", ".join(
            f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(tensors.items())
        )
        raise UnknownWeightError(
            f"has an adapter of rank {rank} that does not fit ({shown_tensors}): merge it first"
        )
    weight: Tensor = base + change * (alpha / (math.sqrt(rank) if adapter.get("use_rslora") else rank))
    return weight


_MOST_KEYS = 8


def _product(down: Tensor | None, up: Tensor | None, rank: float) -> Tensor | None:
    """Return LoRA's ``B A`` as (out, in, *kernel); None for factors of another rank or of two dtypes."""
    if down is None or up is None or min(down.dim(), up.dim()) < 2 or down.dtype != up.dtype:
        return None
    up = up.flatten(1)  # that of a convolution has a kernel of size 1
    return torch.tensordot(up, down, dims=1) if up.shape[1] == down.shape[0] == rank else None
