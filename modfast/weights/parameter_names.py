"""Reads from the names in a file which layer each tensor belongs to, and what it is within the layer.

Wrappers and peft's adapters add parts such as ``module`` and ``base_layer`` to names, but a plain model may
have modules with these names. So ``module.`` counts as a wrapper's only if all names have it, and
``base_layer`` as peft's only in a file that other names show to be peft's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modfast.layers.names import WRAPPING_PARTS, WRAPPING_PREFIXES, join

from .tensor_files import TensorFile

# The names that peft gives to the parameters of its adapters, of all kinds. A plain model may use some of
# these words, so they count only in a file of peft.
_ADAPTER_PARTS = (
    "lora_", "ia3_", "hada_", "lokr_", "oft_", "boft_", "fourierft_", "hra_", "vera_", "pvera_", "vblora_",
    "randlora_", "tinylora_", "unilora_", "delora_", "gralora_", "glora_", "adamss_", "beft_", "c3a_",
    "deft_",
    "frod_", "hira_", "lily_", "ln_tuning_", "miss_", "bone_", "shira_", "osf_", "peanut_", "poly_", "psoft_",
    "road_", "shadow_", "supertuning_", "waveft_", "trainable_tokens_", "token_adapter", "adaption_",
)  # fmt: skip
_PEFT_PREFIX = "base_model.model."
_BASE = "base_layer"
# Parts of a name after which the rest says how the layer's weight is stored.
_KEPT_AS = ("parametrizations", "_packed_params")


@dataclass
class LayerNames:
    """The names of a layer's tensors.

    Attributes:
        tensors: each tensor's name in the file, by its name within the layer: ``{"weight": ...}``.
        is_adapted: whether adapters take part in the layer's weight.
    """

    tensors: dict[str, str] = field(default_factory=dict)
    is_adapted: bool = False


def layers_in(file: TensorFile, adapter: Mapping[str, Any]) -> dict[str, LayerNames]:
    """Return the names of a file's tensors by the canonical name of their layer, in the file's order.

    Args:
        file: the file.
        adapter: the ``adapter_config.json`` beside it; empty where there is none.

    Raises:
        ValueError: two tensors have the same canonical name, or the file has adapters other than LoRA.
    """
    unwrapped = {name: _without_wrappers(name) for name in file.names}
    names = _without_prefixes(unwrapped, file)
    wraps = {".".join(parts[:i]) for parts in map(_parts, names.values()) for i in _places(parts, _BASE)}
    is_peft = _is_peft(names, wraps, file)
    kind = adapter.get("peft_type", "LORA")
    if is_peft and kind != "LORA":
        raise ValueError(
            f"{file.path} has adapters of peft's kind {kind} (adapter_config.json); of adapters only LORA "
            "can be read: merge it into the model first (merge_and_unload)"
        )
    layers: dict[str, LayerNames] = defaultdict(LayerNames)
    for name, canonical in _trained_copies(names).items():
        layer, rest, is_adapted = _split(canonical, wraps if is_peft else set(), is_peft)
        if is_peft and _is_shared_by_adapters(unwrapped[name]):
            continue  # it belongs to no layer of the model
        of_layer = layers[layer]
        if rest in of_layer.tensors:
            raise ValueError(
                f"{file.path} holds {of_layer.tensors[rest]!r} and {name!r}, of which only one can be "
                f"{join(layer, rest)!r}: take out the other"
            )
        of_layer.tensors[rest] = name
        of_layer.is_adapted |= is_adapted
    return layers


def _parts(name: str) -> list[str]:
    return name.split(".")


def _places(parts: list[str], part: str) -> list[int]:
    return [i for i, candidate in enumerate(parts) if candidate == part]


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in _parts(name) if part == _BASE or part not in WRAPPING_PARTS)


def _without_prefixes(names: dict[str, str], file: TensorFile) -> dict[str, str]:
    """Remove wrappers' prefixes from names.

    All tensors have such a prefix, except those that belong to the wrapper itself: counters, and tensors that
    peft's adapters share between layers.
    """
    held = [name for name in names if file.shape(name) and not _is_shared_by_adapters(names[name])]
    while prefix := next(
        (start for start in WRAPPING_PREFIXES if held and all(names[n].startswith(start) for n in held)),
        None,
    ):
        names = {name: canonical.removeprefix(prefix) for name, canonical in names.items()}
    return names


def _is_shared_by_adapters(name: str) -> bool:
    """Whether peft's adapters share a tensor between layers: its name is beside ``base_model.model``."""
    parts = _parts(name)
    while parts and parts[0] == "module":
        parts = parts[1:]
    return len(parts) > 1 and parts[0] == "base_model" and parts[1].startswith(_ADAPTER_PARTS)


def _is_peft(names: Mapping[str, str], wraps: set[str], file: TensorFile) -> bool:
    """Whether peft wrote a file, as shown by its prefix, LoRA's words or the names beside a base layer."""
    if file.path.name.startswith("adapter_model."):
        return True
    if any(_PEFT_PREFIX in name for name in file.names):
        return True
    parts = [_parts(canonical) for canonical in names.values()]
    if any(_is_lora(part) for name in parts for part in name):
        return True
    beside = [name[i:] for name in parts for i in range(len(name)) if ".".join(name[:i]) in wraps]
    return any(rest[0].startswith(_ADAPTER_PARTS) or rest[1:2] == ["default"] for rest in beside)


def _is_lora(part: str) -> bool:
    """Whether a part of a name is LoRA's, in peft or any other package."""
    return part == "lora" or part.startswith("lora_")


def _trained_copies(names: Mapping[str, str]) -> dict[str, str]:
    """Name the trained copy of a module that peft trains as a whole like the module; drop the original."""
    copied = {canonical.split(".original_module.")[0] for canonical in names.values()} & {
        canonical.split(".modules_to_save.")[0] for canonical in names.values()
    }
    trained = {}
    for name, canonical in names.items():
        module, marker, rest = canonical.partition(".modules_to_save.")
        if marker and module in copied:
            trained[name] = f"{module}.{rest.partition('.')[2]}"  # without the adapter's name
            continue
        module, marker, _ = canonical.partition(".original_module.")
        if not (marker and module in copied):
            trained[name] = canonical
    return trained


def _split(name: str, wraps: Iterable[str], is_peft: bool) -> tuple[str, str, bool]:
    """Return a tensor's layer, its name within the layer, and whether its name shows an adapter."""
    parts = _parts(name)
    for place, part in enumerate(parts):
        layer = ".".join(parts[:place])
        # LoRA's words count anywhere, those of other adapters only in peft's files.
        if _is_lora(part) or (is_peft and (layer in wraps or part.startswith(_ADAPTER_PARTS))):
            return layer, ".".join(word for word in parts[place:] if word != _BASE), True
        if part in _KEPT_AS:
            return layer, ".".join(parts[place:]), False
    return ".".join(parts[:-1]), parts[-1], False
