"""What the names in a file say: which layer a tensor belongs to, and what it is there.

Wrappers and peft's adapters put parts of their own into names, and so may a plain model: a module of its own
may be called ``module`` or ``base_layer``. So ``module.`` counts as a wrapper's only where everything has it,
and ``base_layer`` only in a file of peft, which other names show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modfast.layers.names import WRAPPING_PARTS, WRAPPING_PREFIXES, join

from .tensor_files import TensorFile

# How peft calls the parameters of its adapters, for all kinds of them. A plain model may use some of these
# words, so that they count in a file of peft only.
_ADAPTER_PARTS = (
    "lora_", "ia3_", "hada_", "lokr_", "oft_", "boft_", "fourierft_", "hra_", "vera_", "pvera_", "vblora_",
    "randlora_", "tinylora_", "unilora_", "delora_", "gralora_", "glora_", "adamss_", "beft_", "c3a_",
    "deft_",
    "frod_", "hira_", "lily_", "ln_tuning_", "miss_", "bone_", "shira_", "osf_", "peanut_", "poly_", "psoft_",
    "road_", "shadow_", "supertuning_", "waveft_", "trainable_tokens_", "token_adapter", "adaption_",
)  # fmt: skip
_PEFT_PREFIX = "base_model.model."
_BASE = "base_layer"
# Parts after which a name tells only how a layer's weight is kept.
_KEPT_AS = ("parametrizations", "_packed_params")


@dataclass
class LayerNames:
    """The names of a layer's tensors.

    Attributes:
        tensors: the file's name of each tensor, by what it is called in the layer: ``{"weight": ...}``.
        is_adapted: whether peft's adapters take part in its weight.
    """

    tensors: dict[str, str] = field(default_factory=dict)
    is_adapted: bool = False


def layers_in(file: TensorFile, adapter: Mapping[str, Any]) -> dict[str, LayerNames]:
    """The tensors of a file by the canonical names of their layers, in its order.

    Args:
        file: the file.
        adapter: the ``adapter_config.json`` beside it; empty where there is none.

    Raises:
        ValueError: two tensors claim one place, or the file is of an adapter other than LoRA.
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
    found: dict[str, LayerNames] = defaultdict(LayerNames)
    for name, canonical in _trained_copies(names).items():
        layer, rest, is_adapted = _split(canonical, wraps if is_peft else set(), is_peft)
        if is_peft and _is_shared_by_adapters(unwrapped[name]):
            continue  # it stands outside of the model
        of_layer = found[layer]
        if rest in of_layer.tensors:
            raise ValueError(
                f"{file.path} holds {of_layer.tensors[rest]!r} and {name!r}, of which only one can be "
                f"{join(layer, rest)!r}: take out the other"
            )
        of_layer.tensors[rest] = name
        of_layer.is_adapted |= is_adapted
    return found


def _parts(name: str) -> list[str]:
    return name.split(".")


def _places(parts: list[str], part: str) -> list[int]:
    return [i for i, each in enumerate(parts) if each == part]


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in _parts(name) if part == _BASE or part not in WRAPPING_PARTS)


def _without_prefixes(names: dict[str, str], file: TensorFile) -> dict[str, str]:
    """Names without the prefix of a wrapper, which everything has but for what belongs to the wrapper itself.

    That are counters, and what peft's adapters of all layers share.
    """
    held = [name for name in names if file.shape(name) and not _is_shared_by_adapters(names[name])]
    while prefix := next(
        (each for each in WRAPPING_PREFIXES if held and all(names[name].startswith(each) for name in held)),
        None,
    ):
        names = {name: canonical.removeprefix(prefix) for name, canonical in names.items()}
    return names


def _is_shared_by_adapters(name: str) -> bool:
    """Whether a tensor stands beside peft's ``base_model.model``."""
    parts = _parts(name)
    while parts and parts[0] == "module":
        parts = parts[1:]
    return len(parts) > 1 and parts[0] == "base_model" and parts[1].startswith(_ADAPTER_PARTS)


def _is_peft(names: Mapping[str, str], wraps: set[str], file: TensorFile) -> bool:
    """Whether a file was written by peft: its prefix, LoRA's own words or what stands beside a base layer."""
    if file.path.name.startswith("adapter_model."):
        return True
    if any(_PEFT_PREFIX in name for name in file.names):
        return True
    parts = [_parts(canonical) for canonical in names.values()]
    if any(_is_lora(part) for each in parts for part in each):
        return True
    beside = [each[i:] for each in parts for i in range(len(each)) if ".".join(each[:i]) in wraps]
    return any(each[0].startswith(_ADAPTER_PARTS) or each[1:2] == ["default"] for each in beside)


def _is_lora(part: str) -> bool:
    """Whether a part of a name is LoRA's, whatever package has put it there."""
    return part == "lora" or part.startswith("lora_")


def _trained_copies(names: Mapping[str, str]) -> dict[str, str]:
    """Of a module that peft trains as a whole, the trained copy under the module's name."""
    copied = {canonical.split(".original_module.")[0] for canonical in names.values()} & {
        canonical.split(".modules_to_save.")[0] for canonical in names.values()
    }
    found = {}
    for name, canonical in names.items():
        module, marker, rest = canonical.partition(".modules_to_save.")
        if marker and module in copied:
            found[name] = f"{module}.{rest.partition('.')[2]}"  # without the adapter's name
            continue
        module, marker, _ = canonical.partition(".original_module.")
        if not (marker and module in copied):
            found[name] = canonical
    return found


def _split(name: str, wraps: Iterable[str], is_peft: bool) -> tuple[str, str, bool]:
    """A tensor's layer, what it is called there, and whether an adapter's names surround it."""
    parts = _parts(name)
    for place, part in enumerate(parts):
        layer = ".".join(parts[:place])
        # LoRA's words are known anywhere; those of other adapters in peft's files.
        if _is_lora(part) or (is_peft and (layer in wraps or part.startswith(_ADAPTER_PARTS))):
            return layer, ".".join(each for each in parts[place:] if each != _BASE), True
        if part in _KEPT_AS:
            return layer, ".".join(parts[place:]), False
    return ".".join(parts[:-1]), parts[-1], False
