"""Finds out whether a file stores a weight as (out, in) or as (in, out).

The bias of a layer has one number for each output, and the second factor of a LoRA adapter one row. For
models of transformers ``config.json`` says which layers are stored as (in, out). A weight for which nothing
shows it is taken as it stands and reported as assumed, or refused if others of its kind are stored as
(in, out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .parameter_names import LayerNames
from .tensor_files import TensorFile

# Models of transformers with Conv1D, and the names of its layers there.
_CONV1D_MODELS = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_encoder", "clvp_decoder"}
)
_CONV1D_NAMES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
# Models whose stacks of experts are stored as (experts, in, out), and the names of these stacks.
_TRANSPOSED_STACK_MODELS = frozenset(
    {"gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text"}
)
_TRANSPOSED_STACK_NAMES = frozenset({"gate_up_proj", "down_proj"})

_STACK, _MATRIX = "stack", "matrix"


class Kept(NamedTuple):
    """How a weight is stored.

    Attributes:
        is_transposed: whether it is stored as (in, out, ...); None if that cannot be known.
        is_assumed: whether that is only usual, but not shown by the file.
    """

    is_transposed: bool | None
    is_assumed: bool = False


class Orientation:
    """How the weights of a file are stored, as far as the file and its settings show.

    Args:
        file: the file.
        layers: the names of the file's tensors, by layer.
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
        """Return how a weight is stored.

        Args:
            layer: the layer's canonical name.
            rest: ``"weight"``, or the name of a stack within the layer.
            shape: the stored shape; for a stack that of one matrix.
        """
        if len(shape) < 2:
            return Kept(False)
        kind, bias = _kind(rest, shape), self._bias_length(layer, rest)
        seen = self._seen(layer, rest, shape)
        if seen is not None:
            # A weight of three dimensions may be no convolution's: nn.Bilinear has (out, in, in).
            return Kept(seen, not seen and len(shape) == 3)
        if kind == _STACK and self._model_types & _TRANSPOSED_STACK_MODELS:
            return Kept(rest in _TRANSPOSED_STACK_NAMES)
        if kind == _MATRIX and self._model_types & _CONV1D_MODELS:
            return Kept(layer.rpartition(".")[2] in _CONV1D_NAMES)
        is_adapted = self._layers[layer].is_adapted
        if is_adapted and kind not in (_STACK, _MATRIX):
            return Kept(False)  # peft's LoRA supports no transposed convolutions
        if kind == _MATRIX and is_adapted and self._is_fan_in_fan_out:
            return Kept(None)  # at least one layer is stored as (in, out), but which is unknown
        if kind not in (_STACK, _MATRIX) and bias == shape[0] != shape[1]:
            return Kept(False, True)  # or a transposed convolution with groups, which is rare
        if kind in self._transposed_kinds and (kind == _STACK or bias is not None):
            return Kept(None)
        return Kept(False, kind != _MATRIX)  # without a bias a matrix is nn.Linear's: Conv1D has one

    def _seen(self, layer: str, rest: str, shape: tuple[int, ...]) -> bool | None:
        """Whether outputs are the second dimension, by what the file shows; None if it shows nothing."""
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
        # A convolution has as many outputs as rows; a transposed one has its columns times its groups.
        may_be_plain = outputs == first
        groups = 0 if outputs is None or outputs % second else outputs // second
        may_be_transposed = groups > 0 and first % groups == 0
        return may_be_transposed if may_be_plain != may_be_transposed else None

    def _bias_length(self, layer: str, rest: str) -> int | None:
        """Return the number of outputs that a bias shows, or a stack's biases; None without one."""
        tensors, bias = self._layers[layer].tensors, "bias" if rest == "weight" else f"{rest}_bias"
        # A bias that is computed is as long as the longest of its pieces.
        names = [bias, f"{bias}_orig", f"{bias}_v"]
        names += [f"parametrizations.{bias}.{piece}" for piece in ("original", "original1")]
        name = next((tensors[name] for name in names if name in tensors), None)
        shape = () if name is None else self._file.shape(name)
        return shape[-1] if len(shape) == (1 if rest == "weight" else 2) else None

    def _adapter_sides(self, layer: str) -> tuple[int, int] | None:
        """Return the (out, in) that the factors of a LoRA adapter show, if there are both."""
        shapes = {
            rest.partition(".")[0]: self._file.shape(name)
            for rest, name in self._layers[layer].tensors.items()
            if rest.startswith(("lora_A.", "lora_B.")) and len(self._file.shape(name)) == 2
        }
        return (shapes["lora_B"][0], shapes["lora_A"][1]) if len(shapes) == 2 else None


def _kind(rest: str, shape: tuple[int, ...]) -> str:
    """Return what kind of weight this is: a file may store weights of one kind alike."""
    if rest != "weight":
        return _STACK
    return _MATRIX if len(shape) == 2 else f"convolution of {len(shape) - 2} dimensions"


def _model_types(config: Mapping[str, Any]) -> set[str]:
    """Return the types of a transformers model and of the models that it contains."""
    types = {config["model_type"]} if isinstance(config.get("model_type"), str) else set()
    for part in config.values():
        types |= _model_types(part) if isinstance(part, dict) else set()
    return types
