"""Computes weights that a file holds in pieces; the names of the pieces show how."""

from __future__ import annotations

import math
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
        tensors: the tensors, by their names within the layer.
        adapter: the ``adapter_config.json`` beside the file.
        is_transposed: whether the layer stores its weight as (in, out).
    """

    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Any]
    is_transposed: bool


How = Callable[[Pieces], Tensor]


def is_piece(rest: str) -> bool:
    """Whether a layer's weight may be computed from the parameter of this name."""
    return rest.startswith(("weight", "parametrizations.weight."))


def how_computed(parameters: Mapping[str, object]) -> How | None:
    """Return the function that computes a layer's weight; None if the weight is stored as such."""
    if any(rest.startswith("parametrizations.weight.") for rest in parameters):
        return _parametrised
    if "weight_orig" in parameters:
        return _pruned if "weight_mask" in parameters else _spectral
    if "weight_g" in parameters and "weight_v" in parameters:
        return _normed
    return None


def _pruned(pieces: Pieces) -> Tensor:
    """Compute a weight as ``torch.nn.utils.prune`` does."""
    original = pieces.tensors["weight_orig"]
    return pieces.tensors["weight_mask"].to(original.dtype) * original


def _normed(pieces: Pieces) -> Tensor:
    """Compute a weight as the hook of ``torch.nn.utils.weight_norm`` does."""
    return _weight_norm(pieces.tensors["weight_g"], pieces.tensors["weight_v"])


def _weight_norm(lengths: Tensor, directions: Tensor) -> Tensor:
    """Return ``g v / |v|``, the norm being over all dimensions except the one in which g is not 1."""
    alike = lengths.dim() in (0, directions.dim())
    if not alike or any(
        size not in (1, whole) for size, whole in zip(lengths.shape, directions.shape, strict=False)
    ):
        raise UnknownWeightError(
            f"is computed from {tuple(lengths.shape)} and {tuple(directions.shape)}, which is no weight_norm"
        )
    not_summed = [dim for dim, size in enumerate(lengths.shape) if size > 1]
    if len(not_summed) > 1:
        raise UnknownWeightError(
            f"is computed from lengths of shape {tuple(lengths.shape)}, which is no weight_norm"
        )
    # The norm of a single row is that of the whole.
    dim = not_summed[0] if not_summed else (0 if lengths.dim() and directions.shape[0] == 1 else -1)
    return torch._weight_norm(directions, lengths, dim)


def _spectral(pieces: Pieces) -> Tensor:
    """Compute a weight as the hook of ``torch.nn.utils.spectral_norm`` does."""
    tensors = pieces.tensors
    missing = [name for name in ("weight_u", "weight_v") if name not in tensors]
    if missing:
        raise UnknownWeightError(
            f"is computed from weight_orig and something that the file lacks ({', '.join(missing)})"
        )
    return _over_spectral_norm(tensors["weight_orig"], tensors["weight_u"], tensors["weight_v"])


def _over_spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ``W / u^T W v``, W being a matrix with W's first dimension as rows, or its second."""
    best: tuple[float, Tensor] | None = None
    for dim in (0, 1) if weight.dim() > 2 else (0,):
        matrix = weight.transpose(0, dim).flatten(1)
        if matrix.shape != (len(u), len(v)):
            continue
        product = matrix @ v
        sigma = torch.dot(u, product)
        # With the right rows u nearly has the direction of W v, from the last step of the power iteration.
        closeness = float(sigma.abs() / product.norm().clamp(min=1e-30))
        if best is None or closeness > best[0]:
            best = closeness, sigma
    if best is None:
        raise UnknownWeightError(
            f"of shape {tuple(weight.shape)} does not fit its vectors of {len(u)} and {len(v)}"
        )
    return weight / best[1]


def _parametrised(pieces: Pieces) -> Tensor:
    """Compute a weight as PyTorch's own parametrizations do, known by the names of their tensors."""
    start = "parametrizations.weight."
    own = {name.removeprefix(start): part for name, part in pieces.tensors.items() if name.startswith(start)}
    if set(own) == {"original0", "original1"}:
        return _weight_norm(own["original0"], own["original1"])
    if set(own) == {"original", "0._u", "0._v"}:
        return _over_spectral_norm(own["original"], own["0._u"], own["0._v"])
    raise UnknownWeightError(
        f"is computed by a parametrization that the file does not tell (from {sorted(own)}): give "
        "package.module:callable, or remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
    )


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
