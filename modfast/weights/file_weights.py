"""Finds the weights of layers in a file of tensors by the names of parameters, without the model.

A file says less than a model. The length of a bias, the factors of an adapter or the ``config.json`` of
transformers show whether a matrix is stored as (in, out); the names that PyTorch and peft give to tensors
show how a weight is computed. What the file does not show is an error or is reported: it is not guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modfast.layers.layer import Layer
from modfast.layers.names import join

from .computed import Computed, Pieces, UnknownWeightError, adapted, computed_in
from .orientation import Kept, Orientation
from .parameter_names import LayerNames, layers_in
from .tensor_files import TensorFile, beside
from .transformers_model import KnownModel, UnknownModelError, known_model

# Reads a tensor: all of it, or its entry at a place.
_Read = Callable[[int | None], Tensor]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# What packages that quantise call the tensor that replaces a weight.
_PACKED = ("qweight", "weight_packed", "W_q", "_weight_qdata")
# Dtypes of tensors that are no weights: positions, indices, masks.
_NO_WEIGHTS = (torch.int64, torch.bool)
# MXFP4 stores a stack as two tensors, whose names end in these.
_BLOCKS, _SCALES = "_blocks", "_scales"


@dataclass(frozen=True)
class FoundWeight:
    """A layer's weight, not read yet.

    Attributes:
        name: the layer's canonical name.
        parameter_name: the canonical name of the weight itself.
        shape: ``(out, in, *kernel)``; the stored shape if the weight cannot be read.
        is_default: whether it is chosen if no layers are named: biases of two dimensions and stacks are not.
        read: returns the weight as ``(out, in, *kernel)``, or raises.
        memory: equal for weights that share their memory; None for a weight that shares it with no other.
        other_names: further names that choose it: those in the file, if the model has others.
        is_assumed: whether it is only usual, but not shown by the file, that it is stored as (out, in).
        why_unmatched: why the name is the file's and may differ from that in the transformers model; None if
            the name is the model's, or if no such model belongs to the file.
    """

    name: str
    parameter_name: str
    shape: tuple[int, ...]
    is_default: bool
    read: Callable[[], Tensor]
    memory: object = None
    other_names: tuple[str, ...] = ()
    is_assumed: bool = False
    why_unmatched: str | None = None


def file_weights(file: TensorFile) -> list[FoundWeight]:
    """Return every weight of at least two dimensions in a file, in the file's order.

    Raises:
        ValueError: two tensors could be the same weight, the file has adapters other than LoRA, or a file
            beside it is damaged.
    """
    return _Reader(file).weights()


class _Reader:
    """Reads the weights of one file, layer by layer."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self.adapter = beside(file.path, "adapter_config.json")
        self.layers = layers_in(file, self.adapter)
        self.computed = {layer: _computed_in(names, file) for layer, names in self.layers.items()}
        config = beside(file.path, "config.json")
        self.orientation = Orientation(file, self.layers, self.adapter, config)
        self.model, self.why_unmatched = self.find_model(config)

    def find_model(self, config: Mapping[str, Any]) -> tuple[KnownModel | None, str | None]:
        """Return the file's transformers model, if known, and why a weight may not be matched to it."""
        if not {"model_type", "architectures"} & set(config):
            return None, None
        shapes = {}
        for layer, names in self.layers.items():
            for rest, name in self.wholes(layer, names).items():
                if len(self.file.shape(name)) >= 2 and self.file.dtype(name) in _FLOATS:
                    shapes[join(layer, rest)] = self.file.shape(name)
        try:
            return known_model(config, shapes), "transformers keeps it in other pieces, or does not have it"
        except UnknownModelError as error:
            return None, str(error)

    def wholes(self, layer: str, names: LayerNames) -> dict[str, str]:
        """Return the tensors that show the shapes of what a layer has in memory, by its attributes."""
        computed, pieces = self.computed[layer], _pieces(self.computed[layer])
        wholes = {rest: name for rest, name in names.tensors.items() if rest not in pieces}
        for attribute, one in computed.items():
            if one.whole is not None:
                wholes[attribute] = names.tensors[one.names[one.whole]]
        return wholes

    def weights(self) -> list[FoundWeight]:
        weights: list[FoundWeight] = []
        for layer, names in self.layers.items():
            computed, pieces = self.computed[layer], _pieces(self.computed[layer])
            # A tensor in pieces takes the place of the first of them.
            first = {next(iter(one.names.values())): attribute for attribute, one in computed.items()}
            for rest, name in names.tensors.items():
                if rest in first:
                    weights += self.computed_weights(layer, first[rest], computed[first[rest]])
                elif rest not in pieces and not names.is_adapted:
                    weights += self.stored_weights(layer, rest, name)
        for name, times in Counter(weight.name for weight in weights).items():
            if times > 1:
                raise ValueError(f"{self.file.path} holds two weights that can be {name!r}: take one out")
        return weights

    # --- tensors that are weights

    def stored_weights(self, layer: str, rest: str, name: str) -> list[FoundWeight]:
        """Return the weights that a tensor holds: none, one, or those of a stack."""
        shape = self.file.shape(name)
        reason = self.why_refused(layer, rest, name)
        if reason is not None:
            # 64-bit integers and booleans pack nothing: they are listed, but not chosen by default.
            is_weight = rest == "weight" and self.file.dtype(name) not in _NO_WEIGHTS
            is_default = is_weight or rest in _PACKED or rest.startswith("_packed_params")
            weight_name = (
                (layer or rest) if is_default or rest == "weight" else join(layer, rest).removesuffix(_BLOCKS)
            )
            read = self.refusal(weight_name, reason)
            return [FoundWeight(weight_name, join(layer, rest), shape, is_default, read)]
        if len(shape) < 2 or 0 in shape or self.file.dtype(name) not in _FLOATS:
            return []
        return self.weights_in(layer, rest, shape, partial(self.file.read, name), self.file.memory(name))

    def weights_in(
        self, layer: str, rest: str, shape: tuple[int, ...], read: _Read, memory: object = None
    ) -> list[FoundWeight]:
        """Return the weights in a tensor: one, or those of a stack.

        Args:
            layer: the canonical name of the tensor's layer.
            rest: the attribute of the layer that is the tensor.
            shape: the stored shape.
            read: returns the whole tensor, as stored, or its entry at a place.
            memory: a key of its memory.
        """
        model_layers = self.known(layer, rest)
        if model_layers:
            return [self.known_weight(one, layer, rest, shape, read, memory) for one in model_layers]
        parameter_name = join(layer, rest)
        if rest != "weight" and len(shape) != 3:
            weight = FoundWeight(parameter_name, parameter_name, shape, False, partial(read, None), memory)
            return [replace(weight, why_unmatched=self.why_unmatched)]
        if rest == "weight":
            weight = FoundWeight(layer or parameter_name, parameter_name, shape, True, partial(read, None))
            return [replace(self.oriented(weight, layer, rest), memory=memory)]
        return [
            self.oriented(
                FoundWeight(f"{parameter_name}[{i}]", parameter_name, shape[1:], False, partial(read, i)),
                layer,
                rest,
            )
            for i in range(shape[0])
        ]

    def why_refused(self, layer: str, rest: str, name: str) -> str | None:
        """Return why a tensor that takes a weight's place cannot be read; None for other tensors."""
        shape, dtype = self.file.shape(name), self.file.dtype(name)
        unreadable = self.file.unreadable(name)
        if unreadable is not None:
            return unreadable if len(shape) != 1 else None
        others = self.layers[layer].tensors
        if rest.endswith(_BLOCKS) and rest.removesuffix(_BLOCKS) + _SCALES in others:
            return f"is packed or quantised (blocks of {dtype} with scales)"
        if rest in _PACKED:
            return f"is packed or quantised ({dtype})"
        if len(shape) < 2 or dtype in _FLOATS or (dtype in _NO_WEIGHTS and rest != "weight"):
            return None
        # The other tensors of a packed weight are reported with it, not by themselves.
        is_scale = rest.endswith(_SCALES) and rest.removesuffix(_SCALES) + _BLOCKS in others
        belongs = is_scale or (rest != "weight" and set(_PACKED) & set(others))
        return None if belongs else f"is packed or quantised ({dtype})"

    def computed_weights(self, layer: str, attribute: str, computed: Computed) -> list[FoundWeight]:
        """Return the weights in a tensor that the file holds in pieces: none, one, or those of a stack."""
        tensors = self.layers[layer].tensors
        names = {key: tensors[rest] for key, rest in computed.names.items()}
        weight_name = (layer or attribute) if attribute == "weight" else join(layer, attribute)
        shape: tuple[int, ...] = ()
        if computed.whole is not None:
            whole = names[computed.whole]
            shape, reason = self.file.shape(whole), self.why_refused(layer, "weight", whole)
            if reason is not None:
                if computed.names[computed.whole] != "weight":
                    reason = f"cannot be computed: {whole!r} {reason}"
                is_default, refuse = attribute == "weight", self.refusal(weight_name, reason)
                return [FoundWeight(weight_name, join(layer, attribute), shape, is_default, refuse)]
            if len(shape) < 2 or 0 in shape:
                return []
        is_transposed = bool(self.kept(layer, attribute, shape).is_transposed)

        def read(place: int | None = None) -> Tensor:
            pieces = {key: self.file.read(name) for key, name in names.items()}
            try:
                tensor = computed.how(Pieces(pieces, self.adapter, is_transposed))
            except UnknownWeightError as error:
                raise self.error(weight_name, str(error)) from None
            return tensor if place is None else tensor[place]

        return self.weights_in(layer, attribute, shape, read)

    # --- what the model knows

    def known(self, layer: str, rest: str) -> list[Layer]:
        return [] if self.model is None else self.model.layers(join(layer, rest))

    def known_weight(
        self,
        model_layer: Layer,
        layer: str,
        rest: str,
        shape: tuple[int, ...],
        read: _Read,
        memory: object,
    ) -> FoundWeight:
        """Return a weight whose names and orientation the model knows."""
        place = model_layer.place
        shape, memory = (shape, memory) if place is None else (shape[1:], None)
        is_default = model_layer.attribute == "weight" and not model_layer.is_ambiguous
        stack = join(layer, rest)
        weight_name = layer if rest == "weight" and layer else stack
        if place is not None:
            weight_name = f"{stack}[{place}]"
        weight = FoundWeight(weight_name, stack, shape, is_default, partial(read, place), memory)
        parameter_name = model_layer.parameter_name if place is None else model_layer.name.rpartition("[")[0]
        weight = self.named(weight, model_layer.name or "weight", parameter_name)
        return self.turned(weight, Kept(model_layer.stored_transposed))

    def named(self, weight: FoundWeight, name: str, parameter_name: str) -> FoundWeight:
        """Return a weight under the model's names, with those in the file as ``other_names``."""
        others = (weight.name, weight.parameter_name)
        return replace(weight, name=name, parameter_name=parameter_name, other_names=others)

    # --- how weights are stored

    def oriented(self, weight: FoundWeight, layer: str, rest: str) -> FoundWeight:
        """Return as (out, in, ...) a weight that may be stored as (in, out, ...) and is not in the model."""
        weight = self.turned(weight, self.kept(layer, rest, weight.shape))
        return replace(weight, why_unmatched=self.why_unmatched)

    def turned(self, weight: FoundWeight, kept: Kept) -> FoundWeight:
        """Return a weight as (out, in, *kernel), given how it is stored."""
        if kept.is_transposed is None:
            reason = (
                f"has shape {weight.shape}: whether it is kept as (out, in) or, as others are, as (in, out) "
                "does not show. Give the folder with the model's config.json, choose other layers, or give "
                "package.module:callable"
            )
            return replace(weight, read=self.refusal(weight.name, reason))
        if not kept.is_transposed or len(weight.shape) < 2:
            return replace(weight, is_assumed=kept.is_assumed)
        (first, second, *kernel), read = weight.shape, weight.read
        shape = (second, first, *kernel)
        return replace(weight, shape=shape, read=lambda: read().transpose(0, 1).contiguous())

    def kept(self, layer: str, rest: str, shape: tuple[int, ...]) -> Kept:
        model_layers = self.known(layer, rest)
        if model_layers:
            return Kept(model_layers[0].stored_transposed)
        return self.orientation.kept(layer, rest, shape)

    # --- reading

    def refusal(self, layer: str, reason: str) -> Callable[[], Tensor]:
        def refuse() -> Tensor:
            raise self.error(layer, reason)

        return refuse

    def error(self, layer: str, reason: str) -> ValueError:
        return ValueError(f"{self.file.path}: the weight of layer {layer!r} {reason}")


def _computed_in(names: LayerNames, file: TensorFile) -> dict[str, Computed]:
    """Return the tensors that a layer computes, by their attributes; with an adapter, only its weight."""
    if names.is_adapted:
        pieces = {rest: rest for rest in names.tensors if rest != "bias"}
        return {"weight": Computed(adapted, pieces, "weight" if "weight" in pieces else None)}
    return computed_in({rest: file.shape(name) for rest, name in names.tensors.items()})


def _pieces(computed: Mapping[str, Computed]) -> set[str]:
    """Return the names that stand for pieces, and those of what is computed from them."""
    return set(computed) | {rest for one in computed.values() for rest in one.names.values()}
