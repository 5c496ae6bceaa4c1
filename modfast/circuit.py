"""Circuits: which weights of a network one class needs."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import CRITERIA as CRITERIA
from .arrays import require_plain
from .display import html_table
from .files import read_arrays, write_arrays
from .layers.layer import find_layer
from .layers.plain_copy import plain_copy

_FORMAT = "modfast circuits 1"
_WHAT = "circuits file"

# The attributes of a circuit that are numbers, each with the function that converts it.
_NUMBERS: dict[str, Callable[[Any], int | float]] = {
    "label": operator.index,
    "num_inputs": operator.index,
    **dict.fromkeys(("tolerance", "loss_before", "loss_after", "accuracy_before", "accuracy_after"), float),
}


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """The weights that one class needs, with the loss and accuracy before and after the others are removed.

    Two circuits are equal if all attributes are.

    Attributes:
        label: the class.
        masks: layer name, from the first layer to the last, to a bool tensor on the CPU in the shape of the
            layer's weight: True where the weight is kept. A weight that was zero already is not kept.
        criterion: ``"loss"``, ``"loss_and_accuracy"`` or ``"balanced"``, as in
            :func:`modfast.find_circuit`.
        tolerance: by how much the loss was allowed to rise, in nats.
        num_inputs: the number of inputs that the circuit was found on.
        loss_before: the mean loss of the whole model on these inputs, in nats.
        loss_after: the mean loss of the circuit alone.
        accuracy_before: the share of these inputs that the whole model classifies correctly. They are all of
            the class, except with ``"balanced"``: there an input counts as classified as the class if that is
            more probable than all other classes together.
        accuracy_after: the share that the circuit alone classifies correctly.
    """

    label: int
    masks: Mapping[str, Tensor]
    criterion: str
    tolerance: float
    num_inputs: int
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {CRITERIA}, got {self.criterion!r}")
        for name, number in _NUMBERS.items():
            try:
                object.__setattr__(self, name, number(getattr(self, name)))
            except (TypeError, ValueError):
                raise TypeError(f"{name} must be a number, got {getattr(self, name)!r}") from None
        if not isinstance(self.masks, Mapping):
            raise TypeError(f"masks must be a mapping, got {type(self.masks).__name__}")
        if not self.masks:
            raise ValueError("masks must hold at least one layer")
        for name, mask in self.masks.items():
            if not isinstance(name, str) or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise ValueError(f"masks must map names to bool tensors, got {name!r}: {type(mask).__name__}")
            require_plain(f"masks[{name!r}]", mask)
            if mask.layout != torch.strided or mask.is_meta:
                raise ValueError(
                    f"masks must be dense, got {name!r} of layout {mask.layout} on {mask.device}"
                )
            if not mask.numel():
                raise ValueError(f"masks must not be empty, got {name!r} of shape {tuple(mask.shape)}")
        # Copies, so that the caller may change the given masks.
        masks = {name: mask.detach().to("cpu", copy=True) for name, mask in self.masks.items()}
        object.__setattr__(self, "masks", masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return (
            all(getattr(self, name) == getattr(other, name) for name in ("criterion", *_NUMBERS))
            and list(self.masks) == list(other.masks)
            and all(torch.equal(mask, other.masks[name]) for name, mask in self.masks.items())
        )

    def __hash__(self) -> int:
        return hash((self.label, self.criterion, self.num_inputs, self.loss_after, *self.masks))

    def __repr__(self) -> str:
        # One line, since circuits come in lists.
        total = sum(mask.numel() for mask in self.masks.values())
        layers = f"{len(self.masks)} layer{'s' if len(self.masks) > 1 else ''}"
        return (
            f"Circuit(class {self.label}: {self.num_weights:,} of {total:,} weights in {layers}, "
            f"loss {self.loss_before:.3g} -> {self.loss_after:.3g}, "
            f"accuracy {self.accuracy_before:.3g} -> {self.accuracy_after:.3g})"
        )

    def _repr_html_(self) -> str:
        rows = [[name, _count(mask), mask.numel(), self.sizes[name]] for name, mask in self.masks.items()]
        return html_table(repr(self), ("layer", "kept", "weights", "share"), rows)

    @property
    def size(self) -> float:
        """Effective circuit size: the share of all weights of its layers that it keeps."""
        return self.num_weights / sum(mask.numel() for mask in self.masks.values())

    @property
    def sizes(self) -> dict[str, float]:
        """The share of weights that it keeps in each layer."""
        return {name: _count(mask) / mask.numel() for name, mask in self.masks.items()}

    @property
    def num_weights(self) -> int:
        """How many weights it keeps."""
        return sum(_count(mask) for mask in self.masks.values())

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model in which all other weights of the circuit's layers are zero.

        Args:
            model: the one that the circuit was found in, or one like it. It is not changed. The copy is in
                its plainest form: without wrappers such as ``DistributedDataParallel`` and adapters, and
                weights that the model computes (parametrised, pruned) are parameters.

        Raises:
            ValueError: the model lacks a layer, or a weight has another shape or cannot be read.
            TypeError: it is no ``nn.Module``, a weight is spread over processes (``DTensor``), or FSDP keeps
                the weights.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        masked = plain_copy(model)
        with torch.no_grad():
            for name, mask in self.masks.items():
                weight = find_layer(masked, name, "model").stored()
                if weight.shape != mask.shape:
                    raise ValueError(
                        f"model: the weight of layer {name!r} must have shape {tuple(mask.shape)}, "
                        f"got {tuple(weight.shape)}"
                    )
                # Selected, not multiplied: an infinite weight that is off must not become NaN.
                weight.copy_(torch.where(mask.to(weight.device), weight, 0.0))
        return masked

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a file; see :func:`save_circuits`."""
        save_circuits(path, [self])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Load from a file that holds one circuit; raises as :func:`load_circuits` does.

        Raises:
            ValueError: the file holds several.
        """
        circuits = load_circuits(path)
        if len(circuits) != 1:
            raise ValueError(f"path: {os.fspath(path)!r} must hold one circuit, it holds {len(circuits)}")
        return circuits[0]


def _count(mask: Tensor) -> int:
    # NumPy counts in one thread. On a busy machine PyTorch's threads wait for each other longer than that.
    return int(np.count_nonzero(mask.numpy()))


def save_circuits(path: str | os.PathLike[str], circuits: Iterable[Circuit]) -> None:
    """Save circuits: a NumPy ``.npz`` archive without pickled objects, whole or not at all.

    Args:
        path: the file; it is replaced if it exists.
        circuits: any number.

    Raises:
        TypeError: one is no :class:`Circuit`.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "circuits.npz")
        >>> masks = {"fc1": torch.eye(3, dtype=torch.bool)}
        >>> save_circuits(path, [Circuit(0, masks, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)])
        >>> load_circuits(path)[0].sizes
        {'fc1': 0.3333333333333333}
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    entries = []
    for index, circuit in enumerate(circuits):
        if not isinstance(circuit, Circuit):
            raise TypeError(f"circuits must hold Circuit, got {type(circuit).__name__}")
        numbers = {key: getattr(circuit, key) for key in ("criterion", *_NUMBERS)}
        entries.append({"layers": pack_masks(circuit.masks, arrays, f"mask_{index}"), **numbers})
    write_arrays(path, _FORMAT, entries, arrays)


def load_circuits(path: str | os.PathLike[str]) -> list[Circuit]:
    """Load what :func:`save_circuits` wrote. Runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: the file is truncated, damaged or no circuits file.
    """
    with read_arrays(path, _FORMAT, _WHAT) as (entries, arrays):
        return [_read_circuit(index, entry, arrays) for index, entry in enumerate(entries)]


def _read_circuit(index: int, entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> Circuit:
    masks = unpack_masks(entry["layers"], arrays, f"mask_{index}")
    return Circuit(masks=masks, **{key: entry[key] for key in ("criterion", *_NUMBERS)})


def pack_masks(
    masks: Mapping[str, Tensor], arrays: dict[str, np.ndarray[Any, Any]], prefix: str
) -> list[dict[str, Any]]:
    """Add masks to the arrays of a file, eight weights to a byte; return their names and shapes."""
    for place, mask in enumerate(masks.values()):
        arrays[f"{prefix}_{place}"] = np.packbits(mask.numpy())
    return [{"name": name, "shape": list(mask.shape)} for name, mask in masks.items()]


def unpack_masks(
    layers: Sequence[Mapping[str, Any]], arrays: Mapping[str, Any], prefix: str
) -> dict[str, Tensor]:
    """The inverse of :func:`pack_masks`."""
    masks = {}
    for place, layer in enumerate(layers):
        packed, shape = arrays[f"{prefix}_{place}"], layer["shape"]
        count = math.prod(shape)
        if packed.dtype != np.uint8 or packed.shape != ((count + 7) // 8,):
            raise ValueError(f"a mask of shape {tuple(shape)} has {packed.shape} bytes of {packed.dtype}")
        bits = np.unpackbits(packed, count=count).astype(bool)
        masks[str(layer["name"])] = torch.from_numpy(bits.reshape(shape))
    return masks
