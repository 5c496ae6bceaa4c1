"""Whether a file keeps a weight as (out, in) or as (in, out): what shows it, and what does not.

The bias of a layer has a number for each output, and so has the second factor of a LoRA adapter. Of models of
transformers the ``config.json`` tells. Where nothing does, a weight is taken as it stands and that is said,
or it is refused, if others of its kind are kept as (in, out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .parameter_names import LayerNames
from .tensor_files import TensorFile

# Models of transformers with Conv1D, and how its layers are called there.
_CONV1D_MODELS = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_encoder", "clvp_decoder"}
)
_CONV1D_NAMES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
# Models whose stacks of experts are kept as (experts, in, out), and how they are called there.
_TRANSPOSED_STACK_MODELS = frozenset(
    {"gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text"}
)
_TRANSPOSED_STACK_NAMES = frozenset({"gate_up_proj", "down_proj"})

_STACK, _MATRIX = "stack", "matrix"


class Kept(NamedTuple):
    """How a weight is kept.

    Attributes:
        is_transposed: whether as (in, out, ...); None where that cannot be known.
        is_assumed: whether nothing but custom says so.
    """

    is_transposed: bool | None
    is_assumed: bool = False


class Orientation:
    """How the weights of a file are kept, as far as the file and its settings show.

    Args:
        file: the file.
        layers: its layers.
        adapter: the ``adapter_config.json`` beside it.
        config: the ``config.json`` beside it.
    """

    def __init__(
        self,
        file: TensorFile,
        layers: Mapping[str, LayerNames],
        adapter: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        self._file, self._layers = file, layers
        self._is_fan_in_fan_out = bool(adapter.get("fan_in_fan_out"))
        self._model_types = _model_types(config)
        seen: list[tuple[str, bool | None]] = []
        for layer, names in layers.items():
            for rest, name in names.tensors.items():
                shape = file.shape(name)
                if rest == "weight" or (len(shape) == 3 and f"{rest}_bias" in names.tensors):
                    shape = shape if rest == "weight" else shape[1:]
                    seen.append((_kind(rest, shape), self._seen(layer, rest, shape)))
        self._transposed_kinds = {kind for kind, is_transposed in seen if is_transposed}

    def kept(self, layer: str, rest: str, shape: tuple[int, ...]) -> Kept:
        """How a weight of that shape is kept; of a stack, the shape of one matrix.

        Args:
            layer: the layer's canonical name.
            rest: ``"weight"``, or what a stack is called in the layer.
            shape: as it is kept.
        """
        if len(shape) < 2:
            return Kept(False)
        kind, bias = _kind(rest, shape), self._bias_length(layer, rest)
        seen = self._seen(layer, rest, shape)
        if seen is not None:
            # Of three dimensions it may be no convolution's: nn.Bilinear has (out, in, in).
            return Kept(seen, not seen and len(shape) == 3)
        if kind == _STACK and self._model_types & _TRANSPOSED_STACK_MODELS:
            return Kept(rest in _TRANSPOSED_STACK_NAMES)
        if kind == _MATRIX and self._model_types & _CONV1D_MODELS:
            return Kept(layer.rpartition(".")[2] in _CONV1D_NAMES)
        is_adapted = self._layers[layer].is_adapted
        if is_adapted and kind not in (_STACK, _MATRIX):
            return Kept(False)  # peft's LoRA takes no transposed convolutions
        if kind == _MATRIX and is_adapted and self._is_fan_in_fan_out:
            return Kept(None)  # peft tells of one layer at least that it is kept as (in, out)
        if kind not in (_STACK, _MATRIX) and bias == shape[0] != shape[1]:
            return Kept(False, True)  # or a transposed convolution with groups, which is rare
        if kind in self._transposed_kinds and (kind == _STACK or bias is not None):
            return Kept(None)
        return Kept(False, kind != _MATRIX)  # two dimensions without a bias: nn.Linear has that, Conv1D not

    def _seen(self, layer: str, rest: str, shape: tuple[int, ...]) -> bool | None:
        """Whether the file shows that outputs come second; None if it does not show."""
        if len(shape) < 2 or 0 in shape:
            return None
        first, second = shape[:2]
        kind, outputs = _kind(rest, shape), self._bias_length(layer, rest)
        if kind in (_STACK, _MATRIX):
            if first == second:
                return None
            sides = self._adapter_sides(layer) if kind == _MATRIX else None
            if sides in ((first, second), (second, first)):
                return sides == (second, first)
            return outputs == second if outputs in (first, second) else None
        # A convolution has as many outputs as rows, a transposed one the columns times its groups.
        may_be_plain = outputs == first
        groups = 0 if outputs is None or outputs % second else outputs // second
        may_be_transposed = groups > 0 and first % groups == 0
        return may_be_transposed if may_be_plain != may_be_transposed else None

    def _bias_length(self, layer: str, rest: str) -> int | None:
        """How many outputs a layer has, which its bias tells; for a stack that of each matrix."""
        name = self._layers[layer].tensors.get("bias" if rest == "weight" else f"{rest}_bias")
        shape = () if name is None else self._file.shape(name)
        return shape[-1] if len(shape) == (1 if rest == "weight" else 2) else None

    def _adapter_sides(self, layer: str) -> tuple[int, int] | None:
        """The (out, in) that the factors of a LoRA adapter show."""
        shapes = {
            rest.partition(".")[0]: self._file.shape(name)
            for rest, name in self._layers[layer].tensors.items()
            if rest.startswith(("lora_A.", "lora_B.")) and len(self._file.shape(name)) == 2
        }
        return (shapes["lora_B"][0], shapes["lora_A"][1]) if len(shapes) == 2 else None


def _kind(rest: str, shape: tuple[int, ...]) -> str:
    """What a weight is: weights of one kind may be kept alike."""
    if rest != "weight":
        return _STACK
    return _MATRIX if len(shape) == 2 else f"convolution of {len(shape) - 2} dimensions"


def _model_types(config: Mapping[str, Any]) -> set[str]:
    """The types of a model of transformers and of those that it is made of."""
    found = {config["model_type"]} if isinstance(config.get("model_type"), str) else set()
    for part in config.values():
        found |= _model_types(part) if isinstance(part, dict) else set()
    return found
