"""The weights of layers in a file of tensors: by the names of parameters, without the model.

A file tells less than a model. Whether a matrix is kept as (in, out) shows in the length of its bias, in the
factors of an adapter, or in the ``config.json`` of transformers; by what a weight is computed shows in the
names that PyTorch and peft give. What the file cannot tell is an error, or is said: not a guess.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modfast.layers.layer import Layer
from modfast.layers.names import join

from .computed import How, Pieces, UnknownWeightError, adapted, how_computed, is_piece
from .orientation import Kept, Orientation
from .parameter_names import LayerNames, layers_in
from .tensor_files import TensorFile, beside
from .transformers_model import KnownModel, UnknownModelError, known_model

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Parameters of packages that quantise, and what they put in the place of a weight.
_PACKED = ("qweight", "weight_packed", "W_q", "_weight_qdata")
# Numbers that are no weights: positions, indices, masks.
_NO_WEIGHTS = (torch.int64, torch.bool)
# MXFP4 keeps a stack as two tensors of these endings.
_BLOCKS, _SCALES = "_blocks", "_scales"


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
        other_names: what it may be called as well: its names in the file, where the model has others.
        is_assumed: whether nothing but custom says that it is kept as (out, in).
        why_unmatched: of a model of transformers, why the name is the file's and perhaps not the model's;
            None where the name is the model's, or no such model is known of.
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
    """Every weight of at least two dimensions in a file, in its order.

    Raises:
        ValueError: two tensors claim one place, the file has adapters other than LoRA, or a file beside it is
            damaged.
    """
    return _Reader(file).weights()


class _Reader:
    """The parameters of a file by layer."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self.adapter = beside(file.path, "adapter_config.json")
        self.layers = layers_in(file, self.adapter)
        config = beside(file.path, "config.json")
        self.orientation = Orientation(file, self.layers, self.adapter, config)
        self.model, self.why_unmatched = self.find_model(config)

    def find_model(self, config: Mapping[str, Any]) -> tuple[KnownModel | None, str | None]:
        """The model of transformers that this is the file of, or why it is not known."""
        if not {"model_type", "architectures"} & set(config):
            return None, None
        shapes = {}
        for layer, names in self.layers.items():
            largest = _largest(names, self.file)
            kept = {"weight": largest} if _how(names) and largest is not None else names.tensors
            for rest, name in kept.items():
                if len(self.file.shape(name)) >= 2 and self.file.dtype(name) in _FLOATS:
                    shapes[join(layer, rest)] = self.file.shape(name)
        try:
            return known_model(config, shapes), "transformers keeps it in other pieces, or does not have it"
        except UnknownModelError as error:
            return None, str(error)

    def weights(self) -> list[FoundWeight]:
        found: list[FoundWeight] = []
        for layer, names in self.layers.items():
            how = _how(names)
            if how is not None:
                found.append(self.computed_weight(layer, names, how))
            for rest, name in names.tensors.items():
                if how is None or not (names.is_adapted or is_piece(rest)):
                    found += self.stored_weights(layer, rest, name)
        for name, times in Counter(each.name for each in found).items():
            if times > 1:
                raise ValueError(f"{self.file.path} holds two weights that can be {name!r}: take one out")
        return found

    # --- tensors that are weights

    def stored_weights(self, layer: str, rest: str, name: str) -> list[FoundWeight]:
        """What a tensor comes to: nothing, a weight, or a stack of them."""
        shape = self.file.shape(name)
        reason = self.why_refused(layer, rest, name)
        if reason is not None:
            # Integers of full length pack nothing: they are told, and in nobody's way.
            is_weight = rest == "weight" and self.file.dtype(name) not in _NO_WEIGHTS
            is_default = is_weight or rest in _PACKED or rest.startswith("_packed_params")
            called = (
                (layer or rest) if is_default or rest == "weight" else join(layer, rest).removesuffix(_BLOCKS)
            )
            read = self.refusal(called, reason)
            return [FoundWeight(called, join(layer, rest), shape, is_default, read)]
        if len(shape) < 2 or 0 in shape or self.file.dtype(name) not in _FLOATS:
            return []
        known = self.known(layer, rest)
        if known:
            return [self.known_weight(each, layer, rest, name) for each in known]
        parameter_name = join(layer, rest)
        if rest != "weight" and len(shape) != 3:
            read, memory = (lambda: self.file.read(name)), self.file.memory(name)
            found = FoundWeight(parameter_name, parameter_name, shape, False, read, memory)
            return [replace(found, why_unmatched=self.why_unmatched)]
        if rest == "weight":
            called = layer or parameter_name
            found = FoundWeight(called, parameter_name, shape, True, lambda: self.file.read(name))
            return [replace(self.oriented(found, layer, rest), memory=self.file.memory(name))]
        return [
            self.oriented(
                FoundWeight(f"{parameter_name}[{i}]", parameter_name, shape[1:], False, self.one_of(name, i)),
                layer,
                rest,
            )
            for i in range(shape[0])
        ]

    def why_refused(self, layer: str, rest: str, name: str) -> str | None:
        """Why a tensor that takes a weight's place cannot be read; None for others."""
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
        # What belongs to a packed weight is said with it.
        is_scale = rest.endswith(_SCALES) and rest.removesuffix(_SCALES) + _BLOCKS in others
        belongs = is_scale or (rest != "weight" and set(_PACKED) & set(others))
        return None if belongs else f"is packed or quantised ({dtype})"

    def computed_weight(self, layer: str, names: LayerNames, how: How) -> FoundWeight:
        tensors = {
            rest: name
            for rest, name in names.tensors.items()
            if (names.is_adapted and rest != "bias") or is_piece(rest)
        }
        largest = _largest(names, self.file)
        shape = () if largest is None else self.file.shape(largest)
        found = FoundWeight(layer or "weight", join(layer, "weight"), shape, True, self.refusal(layer, ""))
        base = names.tensors.get("weight")
        if base is not None and (reason := self.why_refused(layer, "weight", base)):
            return replace(found, read=self.refusal(layer, reason))

        def read(is_transposed: bool) -> Tensor:
            pieces = {rest: self.file.read(name) for rest, name in tensors.items()}
            try:
                return how(Pieces(pieces, self.adapter, is_transposed))
            except UnknownWeightError as error:
                raise self.error(layer, str(error)) from None

        kept = self.kept(layer, "weight", shape)
        found = replace(found, read=lambda: read(bool(kept.is_transposed)))
        known = self.known(layer, "weight")
        if known:
            own = (known[0].name, known[0].parameter_name)
            return self.turned(self.named(found, *own), kept)
        return replace(self.turned(found, kept), why_unmatched=self.why_unmatched)

    # --- what the model tells

    def known(self, layer: str, rest: str) -> list[Layer]:
        return [] if self.model is None else self.model.layers(join(layer, rest))

    def known_weight(self, known: Layer, layer: str, rest: str, name: str) -> FoundWeight:
        """A weight of which the model tells how it is kept."""
        shape = self.file.shape(name)[0 if known.place is None else 1 :]
        read = (lambda: self.file.read(name)) if known.place is None else self.one_of(name, known.place)
        memory = self.file.memory(name) if known.place is None else None
        is_default = known.attribute == "weight" and not known.is_ambiguous
        stack = join(layer, rest)
        called = layer if rest == "weight" and layer else stack
        if known.place is not None:
            called = f"{stack}[{known.place}]"
        found = FoundWeight(called, stack, shape, is_default, read, memory)
        of_model = known.parameter_name if known.place is None else known.name.rpartition("[")[0]
        return self.turned(self.named(found, known.name or "weight", of_model), Kept(known.stored_transposed))

    def named(self, found: FoundWeight, name: str, parameter_name: str) -> FoundWeight:
        """A weight under the names that the model has for it."""
        others = (found.name, found.parameter_name)
        return replace(found, name=name, parameter_name=parameter_name, other_names=others)

    # --- how weights are kept

    def oriented(self, found: FoundWeight, layer: str, rest: str) -> FoundWeight:
        """A weight that may be kept as (in, out, ...), and that the model does not tell about."""
        found = self.turned(found, self.kept(layer, rest, found.shape))
        return replace(found, why_unmatched=self.why_unmatched)

    def turned(self, found: FoundWeight, kept: Kept) -> FoundWeight:
        """A weight as (out, in, *kernel), from one as it is kept."""
        if kept.is_transposed is None:
            reason = (
                f"has shape {found.shape}: whether it is kept as (out, in) or, as others are, as (in, out) "
                "does not show. Give the folder with the model's config.json, choose other layers, or give "
                "package.module:callable"
            )
            return replace(found, read=self.refusal(found.name, reason))
        if not kept.is_transposed or len(found.shape) < 2:
            return replace(found, is_assumed=kept.is_assumed)
        shape, read = found.shape, found.read
        turned = (shape[1], shape[0], *shape[2:])
        return replace(found, shape=turned, read=lambda: read().transpose(0, 1).contiguous())

    def kept(self, layer: str, rest: str, shape: tuple[int, ...]) -> Kept:
        known = self.known(layer, rest)
        return Kept(known[0].stored_transposed) if known else self.orientation.kept(layer, rest, shape)

    # --- reading

    def one_of(self, name: str, place: int) -> Callable[[], Tensor]:
        return lambda: self.file.read(name, place)

    def refusal(self, layer: str, reason: str) -> Callable[[], Tensor]:
        def refuse() -> Tensor:
            raise self.error(layer, reason)

        return refuse

    def error(self, layer: str, reason: str) -> ValueError:
        return ValueError(f"{self.file.path}: the weight of layer {layer!r} {reason}")


def _how(names: LayerNames) -> How | None:
    """By what a layer's weight is computed, if it is."""
    return adapted if names.is_adapted else how_computed(names.tensors)


def _largest(names: LayerNames, file: TensorFile) -> str | None:
    """Of the pieces of a computed weight the one that has its shape."""
    pieces = [name for rest, name in names.tensors.items() if is_piece(rest)]
    return max(pieces, key=lambda name: math.prod(file.shape(name)), default=None)
