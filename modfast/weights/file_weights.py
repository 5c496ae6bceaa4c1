"""The weights of layers in a file of tensors: by the names of parameters alone, without the model.

A file tells less than a model. Whether a matrix is kept as (in, out) shows in the length of its bias, or in
the ``config.json`` of transformers; by what a weight is computed shows in the names that PyTorch and peft
give. What the file cannot tell is an error, not a guess.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modfast.layers.names import WRAPPING_PARTS, WRAPPING_PREFIXES, join

from .tensor_files import TensorFile, beside

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Models of transformers with Conv1D, and how its layers are called there.
_CONV1D_MODELS = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_encoder", "clvp_decoder"}
)
_CONV1D_NAMES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})

# Parameters of packages that quantise, and what they put in the place of a weight.
_PACKED = ("qweight", "weight_packed", "W_q", "_packed_params")
_PACKED_DTYPES = (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class FoundWeight:
    """A layer's weight, not read yet.

    Attributes:
        name: the layer's canonical name.
        parameter_name: the canonical name of the weight itself.
        shape: ``(out, in, *kernel)``, or as it is kept where that cannot be read.
        is_default: whether it is meant where none is named: biases of two dimensions and stacks are not.
        read: gives the weight, as ``(out, in, *kernel)``, or raises.
        memory: the same for weights that are tied; None for one that shares its memory with no other.
    """

    name: str
    parameter_name: str
    shape: tuple[int, ...]
    is_default: bool
    read: Callable[[], Tensor]
    memory: object = None


def file_weights(file: TensorFile) -> list[FoundWeight]:
    """Every weight of at least two dimensions in a file, in its order."""
    return _Reader(file).weights()


class _Reader:
    """The parameters of a file by layer."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        # What the file calls each parameter, by layer and by the rest of its canonical name.
        self.layers: dict[str, dict[str, str]] = defaultdict(dict)
        for name, canonical in _canonical(file).items():
            layer, rest = _split(canonical)
            if rest in self.layers[layer]:
                raise ValueError(
                    f"{file.path} holds {self.layers[layer][rest]!r} and {name!r}, of which only one can be "
                    f"{canonical!r}: take out the other"
                )
            self.layers[layer][rest] = name
        self.conv1d = _model_types(beside(file.path, "config.json")) & _CONV1D_MODELS
        self.adapter = beside(file.path, "adapter_config.json")
        seen = [self.seen_transposed(layer, "weight") for layer in self.layers]
        self.has_transposed = {dims for transposed, dims in seen if transposed}

    def weights(self) -> list[FoundWeight]:
        found: list[FoundWeight] = []
        for layer, parameters in self.layers.items():
            computed = _how_computed(parameters)
            if computed is not None:
                found.append(self.computed_weight(layer, parameters, computed))
            for rest, name in parameters.items():
                if computed is None or not _is_piece(rest):
                    found += self.stored_weights(layer, rest, name)
        return found

    def stored_weights(self, layer: str, rest: str, name: str) -> list[FoundWeight]:
        """What a tensor comes to: nothing, a weight, or a stack of them."""
        shape, dtype = self.file.shape(name), self.file.dtype(name)
        parameter_name = join(layer, rest)
        own = rest == "weight"
        if rest in _PACKED or (own and len(shape) >= 2 and dtype in _PACKED_DTYPES):
            reason = f"is packed or quantised ({dtype})"
            return [FoundWeight(layer or rest, parameter_name, shape, True, self.refusal(layer, reason))]
        if len(shape) < 2 or 0 in shape or dtype not in _FLOATS:
            return []
        if len(shape) == 3 and not own:
            return [
                FoundWeight(
                    f"{parameter_name}[{place}]", parameter_name, shape[1:], False, self.one_of(name, place)
                )
                for place in range(shape[0])
            ]
        called = layer if own and layer else parameter_name
        memory = self.file.memory(name)
        if not own:
            return [FoundWeight(called, parameter_name, shape, False, lambda: self.file.read(name), memory)]
        oriented = self.oriented(called, parameter_name, layer, shape, lambda: self.file.read(name))
        return [replace(oriented, memory=memory)]

    def computed_weight(self, layer: str, parameters: Mapping[str, str], how: _How) -> FoundWeight:
        largest = max(
            (
                self.file.shape(name)
                for rest, name in parameters.items()
                if _is_piece(rest) and "lora" not in rest
            ),
            key=math.prod,
            default=(),
        )
        tensors = {rest: name for rest, name in parameters.items() if _is_piece(rest)}
        config = self.adapter

        def read() -> Tensor:
            try:
                return how({rest: self.file.read(name) for rest, name in tensors.items()}, config)
            except _UnknownError as error:
                raise self.error(layer, str(error)) from None

        return self.oriented(layer or "weight", join(layer, "weight"), layer, largest, read)

    def oriented(
        self, called: str, parameter_name: str, layer: str, shape: tuple[int, ...], read: Callable[[], Tensor]
    ) -> FoundWeight:
        """A weight that may be kept as (in, out, ...)."""
        transposed, _ = self.seen_transposed(layer, "weight", shape)
        if transposed is None and len(shape) == 2 and self.conv1d:
            transposed = layer.rpartition(".")[2] in _CONV1D_NAMES
        if transposed is None and len(shape) in self.has_transposed and self.bias_length(layer) is not None:
            reason = (
                f"has shape {shape}: whether it is kept as (out, in) or, as others in the file, as (in, out) "
                "does not show. Give the folder with the model's config.json, choose other layers, or give "
                "package.module:callable"
            )
            return FoundWeight(called, parameter_name, shape, True, self.refusal(layer, reason))
        if not transposed:
            return FoundWeight(called, parameter_name, shape, True, read)
        turned = (shape[1], shape[0], *shape[2:])
        return FoundWeight(called, parameter_name, turned, True, lambda: read().transpose(0, 1).contiguous())

    def bias_length(self, layer: str) -> int | None:
        name = self.layers[layer].get("bias")
        shape = () if name is None else self.file.shape(name)
        return shape[0] if len(shape) == 1 else None

    def seen_transposed(
        self, layer: str, rest: str, shape: tuple[int, ...] | None = None
    ) -> tuple[bool | None, int]:
        """Whether the bias, a number for each output, shows that outputs come second; None if not."""
        if shape is None:
            name = self.layers[layer].get(rest)
            shape = () if name is None else self.file.shape(name)
        outputs = self.bias_length(layer)
        if len(shape) < 2 or outputs not in shape[:2] or shape[0] == shape[1]:
            return None, len(shape)
        return outputs == shape[1], len(shape)

    def one_of(self, name: str, place: int) -> Callable[[], Tensor]:
        return lambda: self.file.read(name, place)

    def refusal(self, layer: str, reason: str) -> Callable[[], Tensor]:
        def refuse() -> Tensor:
            raise self.error(layer, reason)

        return refuse

    def error(self, layer: str, reason: str) -> ValueError:
        return ValueError(f"{self.file.path}: the weight of layer {layer!r} {reason}")


def _canonical(file: TensorFile) -> dict[str, str]:
    """Of every name in a file the one that the parameter has in the plain model."""
    names = {name: _without_wrappers(name) for name in file.names}
    # A prefix is a wrapper's if everything has it but for counters of the wrapper itself.
    held = [name for name in file.names if file.shape(name)]
    while prefix := next(
        (each for each in WRAPPING_PREFIXES if held and all(names[name].startswith(each) for name in held)),
        None,
    ):
        names = {name: canonical.removeprefix(prefix) for name, canonical in names.items()}
    # Of a module that peft trains as a whole the trained copy counts.
    trained = set(names.values())
    return {
        name: canonical
        for name, canonical in names.items()
        if ".original_module." not in canonical or canonical.replace(".original_module.", ".") not in trained
    }


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part not in WRAPPING_PARTS]
    if "modules_to_save" in parts:
        place = parts.index("modules_to_save")
        del parts[place : place + 2]  # with the adapter's name
    return ".".join(parts)


def _split(name: str) -> tuple[str, str]:
    """A parameter's layer, and what it is called there."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part in ("parametrizations", "lora_A", "lora_B", "lora_magnitude_vector"):
            return ".".join(parts[:place]), ".".join(parts[place:])
    return ".".join(parts[:-1]), parts[-1]


def _model_types(config: Mapping[str, Any]) -> set[str]:
    """The types of a model of transformers and of those that it is made of."""
    found = {config["model_type"]} if isinstance(config.get("model_type"), str) else set()
    for part in config.values():
        found |= _model_types(part) if isinstance(part, dict) else set()
    return found


# --- Weights that are computed


class _UnknownError(Exception):
    """A file does not tell how a weight is computed."""


_How = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]


def _is_piece(rest: str) -> bool:
    """Whether a parameter is one that a layer's weight may be computed from."""
    return rest.startswith(("weight", "lora_", "parametrizations.weight."))


def _how_computed(parameters: Mapping[str, str]) -> _How | None:
    """By what a layer's weight is computed, if it is."""
    if any(rest.startswith("lora_") for rest in parameters):
        return _adapted
    if any(rest.startswith("parametrizations.weight.") for rest in parameters):
        return _parametrised
    if "weight_orig" in parameters:
        return _pruned if "weight_mask" in parameters else _spectral
    if "weight_g" in parameters and "weight_v" in parameters:
        return _normed
    return None


def _pruned(tensors: Mapping[str, Tensor], adapter: Mapping[str, Any]) -> Tensor:
    """As ``torch.nn.utils.prune`` computes it."""
    original = tensors["weight_orig"]
    return tensors["weight_mask"].to(original.dtype) * original


def _normed(tensors: Mapping[str, Tensor], adapter: Mapping[str, Any]) -> Tensor:
    """As the hook of ``torch.nn.utils.weight_norm`` computes it."""
    return _weight_norm(tensors["weight_g"], tensors["weight_v"])


def _weight_norm(lengths: Tensor, directions: Tensor) -> Tensor:
    """``g v / |v|``: the one dimension of g that is not 1 tells which are summed over."""
    alike = lengths.dim() in (0, directions.dim())
    if not alike or any(
        size not in (1, whole) for size, whole in zip(lengths.shape, directions.shape, strict=False)
    ):
        raise _UnknownError(
            f"is computed from {tuple(lengths.shape)} and {tuple(directions.shape)}, which is no weight_norm"
        )
    kept = [dim for dim, size in enumerate(lengths.shape) if size > 1]
    if len(kept) > 1:
        raise _UnknownError(
            f"is computed from lengths of shape {tuple(lengths.shape)}, which is no weight_norm"
        )
    # One row only: its length is that of the whole.
    dim = kept[0] if kept else (0 if lengths.dim() and directions.shape[0] == 1 else -1)
    return torch._weight_norm(directions, lengths, dim)


def _spectral(tensors: Mapping[str, Tensor], adapter: Mapping[str, Any]) -> Tensor:
    """As the hook of ``torch.nn.utils.spectral_norm`` computes it."""
    missing = [name for name in ("weight_u", "weight_v") if name not in tensors]
    if missing:
        raise _UnknownError(
            f"is computed from weight_orig and something that the file lacks ({', '.join(missing)})"
        )
    return _over_spectral_norm(tensors["weight_orig"], tensors["weight_u"], tensors["weight_v"])


def _over_spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``W / u^T W v``, W being flattened to a matrix from its first dimension, or from its second."""
    best: tuple[float, Tensor] | None = None
    for dim in (0, 1) if weight.dim() > 2 else (0,):
        matrix = weight.transpose(0, dim).flatten(1)
        if matrix.shape != (len(u), len(v)):
            continue
        product = matrix @ v
        sigma = torch.dot(u, product)
        # Of the right one u is nearly the direction of W v: a step of the power iteration made it that.
        closeness = float(sigma.abs() / product.norm().clamp(min=1e-30))
        if best is None or closeness > best[0]:
            best = closeness, sigma
    if best is None:
        raise _UnknownError(
            f"of shape {tuple(weight.shape)} does not fit its vectors of {len(u)} and {len(v)}"
        )
    return weight / best[1]


def _parametrised(tensors: Mapping[str, Tensor], adapter: Mapping[str, Any]) -> Tensor:
    """As the parametrizations of PyTorch compute it, which are known by the names of their tensors."""
    start = "parametrizations.weight."
    pieces = {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}
    if set(pieces) == {"original0", "original1"}:
        return _weight_norm(pieces["original0"], pieces["original1"])
    if set(pieces) == {"original", "0._u", "0._v"}:
        return _over_spectral_norm(pieces["original"], pieces["0._u"], pieces["0._v"])
    raise _UnknownError(
        f"is computed by a parametrization that the file does not tell (from {sorted(pieces)}): give "
        "package.module:callable, or remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
    )


def _adapted(tensors: Mapping[str, Tensor], adapter: Mapping[str, Any]) -> Tensor:
    """The layer's own weight plus what peft's LoRA adds to it."""
    others = [name for name in tensors if not name.startswith(("lora_A.", "lora_B.", "weight"))]
    names = sorted({name.split(".")[1] for name in tensors if name.startswith("lora_A.")} - {"weight"})
    if "weight" not in tensors:
        raise _UnknownError("is not in the file, which holds only its adapter: merge it into the model first")
    if others or any(name.endswith(".bias") for name in tensors):
        raise _UnknownError(f"has an adapter of another kind than plain LoRA ({', '.join(sorted(tensors))})")
    needed = ("r", "lora_alpha")
    if len(names) != 1 or adapter.get("peft_type") != "LORA" or not all(key in adapter for key in needed):
        raise _UnknownError(
            "has an adapter, whose scaling is not in the file: merge it first (merge_and_unload), or put the "
            "file beside its adapter_config.json"
        )
    if any(adapter.get(key) for key in ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias")):
        raise _UnknownError("has an adapter with settings of its own for each layer: merge it first")
    down, up = (tensors[f"{side}.{names[0]}.weight"] for side in ("lora_A", "lora_B"))
    if down.dim() > 2:
        change = torch.tensordot(up.flatten(1), down, dims=1)
    else:
        change = up @ down
        change = change.T if adapter.get("fan_in_fan_out") else change
    rank = math.sqrt(adapter["r"]) if adapter.get("use_rslora") else adapter["r"]
    weight: Tensor = tensors["weight"] + change * (adapter["lora_alpha"] / rank)
    return weight
