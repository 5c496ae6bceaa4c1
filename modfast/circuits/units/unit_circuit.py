"""Unit circuits: which units of a network a task needs."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast.arguments import UNIT_METHODS
from modfast.arrays import require_plain
from modfast.display import html_table
from modfast.files import read_arrays, write_arrays
from modfast.layers.plain_copy import plain_copy
from modfast.network.ablation import ABLATIONS, Ablation, Mean, Zero

_FORMAT = "modfast unit circuits 1"
_WHAT = "unit circuits file"

# The attributes that are plain values, each with the function that converts it.
_VALUES: dict[str, Callable[[Any], Any]] = {
    "name": str,
    "method": str,
    "ablation": str,
    "tolerance": float,
    "num_examples": operator.index,
    "num_passes": operator.index,
    "metric_before": float,
    "metric_after": float,
}


@dataclass(frozen=True, eq=False, repr=False)
class UnitCircuit:
    """The units that a task needs, with the metric before and after all others are ablated.

    Two unit circuits are equal if all attributes are.

    Attributes:
        kept: bool, ``(num_units,)``, on the CPU: True for the circuit's units, and for those that were not
            asked for, which are never ablated.
        scores: float64, ``(num_units,)``: how much the metric falls if a unit is ablated, by attribution; NaN
            for units that were not asked for.
        spaces: the ranges of the units by name, as in :class:`modfast.Network`.
        method: how it was chosen, ``"attribution"`` or ``"greedy"``.
        ablation: ``"zero"``, ``"mean"`` or ``"resample"``.
        tolerance: by how much the metric was allowed to fall.
        num_examples: the number of examples that it was chosen on.
        num_passes: how often these examples went through the model, or through a part of it, to choose it.
        metric_before: the metric of the whole model on these examples.
        metric_after: the metric if all units outside are ablated.
        reads: layer name to the units that its columns read, int64, ``(in,)``, or ``(out, in / groups)``.
        means: for ``ablation="mean"`` layer name to the value of each column, float64, ``(in,)``; else empty.
        name: of the task; may be empty.
    """

    kept: Tensor
    scores: Tensor
    spaces: Mapping[str, slice]
    method: str
    ablation: str
    tolerance: float
    num_examples: int
    num_passes: int
    metric_before: float
    metric_after: float
    reads: Mapping[str, Tensor] = field(default_factory=dict)
    means: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        for name, convert in _VALUES.items():
            value = getattr(self, name)
            if convert is str and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, got {value!r}")
            try:
                object.__setattr__(self, name, convert(value))
            except (TypeError, ValueError):
                raise TypeError(f"{name} must be a number, got {value!r}") from None
        for name, allowed in (("method", UNIT_METHODS), ("ablation", ABLATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name, dtype in (("kept", torch.bool), ("scores", torch.float64)):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.dim() != 1:
                raise ValueError(f"{name} must be a 1-D tensor of {dtype}, got {_described(tensor)}")
            require_plain(name, tensor)
            # Copies, so that the caller may change the given tensors.
            object.__setattr__(self, name, tensor.detach().to("cpu", copy=True))
        if len(self.kept) != len(self.scores):
            raise ValueError(
                f"kept and scores must have one length, got {len(self.kept)}, {len(self.scores)}"
            )
        if not self.asked.any():
            raise ValueError("scores must be numbers for at least one unit, all are NaN")
        if not bool((self.kept | self.asked).all()):
            raise ValueError("kept must hold all units that were not asked for, whose scores are NaN")
        if not isinstance(self.spaces, Mapping):
            raise TypeError(f"spaces must be a mapping, got {type(self.spaces).__name__}")
        for name, space in self.spaces.items():
            inside = isinstance(name, str) and isinstance(space, slice) and space.step in (None, 1)
            if not inside or not 0 <= space.start <= space.stop <= len(self.kept):
                raise ValueError(
                    f"spaces must be ranges within {len(self.kept)} units, got {name!r}: {space}"
                )
        object.__setattr__(self, "spaces", dict(self.spaces))
        object.__setattr__(self, "reads", _copies("reads", self.reads, torch.int64))
        object.__setattr__(self, "means", _copies("means", self.means, torch.float64))
        for name, units in self.reads.items():
            if units.numel() and not 0 <= int(units.min()) <= int(units.max()) < len(self.kept):
                raise ValueError(f"reads must name units below {len(self.kept)}, those of {name!r} do not")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnitCircuit):
            return NotImplemented
        return (
            all(getattr(self, name) == getattr(other, name) for name in (*_VALUES, "spaces"))
            and torch.equal(self.kept, other.kept)
            and torch.equal(self.scores.nan_to_num(math.inf), other.scores.nan_to_num(math.inf))
            and _same(self.reads, other.reads)
            and _same(self.means, other.means)
        )

    def __hash__(self) -> int:
        return hash((self.name, self.method, self.ablation, self.metric_after, self.num_units))

    @property
    def asked(self) -> Tensor:
        """bool, ``(num_units,)``: the units that may be ablated."""
        return ~self.scores.isnan()

    @property
    def num_units(self) -> int:
        """How many of the units that were asked for it keeps."""
        return int((self.kept & self.asked).sum())

    def __repr__(self) -> str:
        # One line, since circuits come in lists.
        name = f"{self.name!r}: " if self.name else ""
        return (
            f"UnitCircuit({name}{self.num_units:,} of {int(self.asked.sum()):,} units, "
            f"metric {self.metric_before:.4g} -> {self.metric_after:.4g}, {self.method}, "
            f"{self.ablation} ablation)"
        )

    def _repr_html_(self) -> str:
        rows = [
            [space, int((self.kept & self.asked)[units].sum()), int(self.asked[units].sum()), share]
            for space, share in self.sizes.items()
            for units in [self.spaces[space]]
        ]
        return html_table(repr(self), ("space", "kept", "units", "share"), rows)

    @property
    def size(self) -> float:
        """The share of the units that were asked for that it keeps."""
        return self.num_units / int(self.asked.sum())

    @property
    def sizes(self) -> dict[str, float]:
        """The share that it keeps in each space of which units were asked for."""
        counts = {name: int(self.asked[space].sum()) for name, space in self.spaces.items()}
        return {
            name: int((self.kept & self.asked)[self.spaces[name]].sum()) / count
            for name, count in counts.items()
            if count
        }

    def apply(self, model: nn.Module) -> AblatedModel:
        """Return a copy of the model in which all units outside the circuit are ablated.

        Args:
            model: the one that the circuit was found in, or one like it. It is not changed.

        Returns:
            A module that is called as the model is. Its ``model`` is the copy, in its plainest form, with the
            weights unchanged: units are ablated where they are read.

        Raises:
            ValueError: the circuit was found with ``"resample"``, which depends on the inputs: use
                :func:`ablate_units`; ``reads`` or ``means`` lack what it takes; or the model has no such
                layers.
            TypeError: it is no ``nn.Module``.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if self.ablation == "resample":
            raise ValueError(
                'ablation="resample" takes values of other examples: use ablate_units(model, network, '
                '~circuit.kept, "resample", reference)'
            )
        self._check_that_all_are_read()
        return AblatedModel(plain_copy(model), self)

    def _check_that_all_are_read(self) -> None:
        """Raise unless it is known where all units outside are read, and what they are replaced by."""
        unread = ~self.kept
        for units in self.reads.values():
            unread[units] = False
        if unread.any():
            raise ValueError(
                f"reads must say which layers read the units outside the circuit, for {int(unread.sum())} of "
                f"them it names none, the first is {int(unread.nonzero()[0])}"
            )
        if self.ablation == "mean" and not self.means and not self.kept.all():
            raise ValueError('means must hold the means that units are replaced by, for ablation="mean"')

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a file; see :func:`save_unit_circuits`."""
        save_unit_circuits(path, [self])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> UnitCircuit:
        """Load from a file that holds one unit circuit; raises as :func:`load_unit_circuits` does.

        Raises:
            ValueError: the file holds several.
        """
        circuits = load_unit_circuits(path)
        if len(circuits) != 1:
            raise ValueError(
                f"path: {os.fspath(path)!r} must hold one unit circuit, it holds {len(circuits)}"
            )
        return circuits[0]


class AblatedModel(nn.Module):
    """A model in which units are ablated whenever it is called; made by :meth:`UnitCircuit.apply`."""

    def __init__(self, model: nn.Module, circuit: UnitCircuit) -> None:
        super().__init__()
        self.model = model
        self._reads = dict(circuit.reads)
        self._ablated, self._means = ~circuit.kept, dict(circuit.means)
        self._ablation()  # raises now what it would raise later
        self.train(model.training)

    def _ablation(self) -> Ablation:
        baseline = Mean(self._reads, self._means) if self._means else Zero()
        return Ablation(self.model, self._reads, self._ablated, baseline)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the units ablated."""
        with self._ablation():
            return self.model(*args, **kwargs)


def _described(value: object) -> str:
    return f"{value.dtype}, {value.dim()}-D" if isinstance(value, Tensor) else type(value).__name__


def _copies(argument: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"{argument} must be a mapping, got {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            raise ValueError(f"{argument} must map names to tensors of {dtype}, got {name!r}")
        require_plain(f"{argument}[{name!r}]", tensor)
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def save_unit_circuits(path: str | os.PathLike[str], circuits: Iterable[UnitCircuit]) -> None:
    """Save unit circuits: a NumPy ``.npz`` archive without pickled objects, whole or not at all.

    Args:
        path: the file; it is replaced if it exists.
        circuits: any number.

    Raises:
        TypeError: one is no :class:`UnitCircuit`.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "units.npz")
        >>> kept, scores = torch.tensor([True, False]), torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> circuit = UnitCircuit(kept, scores, {"0": slice(0, 2)}, "greedy", "zero", 0.1, 10, 3, -0.5, -0.6)
        >>> save_unit_circuits(path, [circuit])
        >>> load_unit_circuits(path)[0].sizes
        {'0': 0.5}
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    entries = []
    for index, circuit in enumerate(circuits):
        if not isinstance(circuit, UnitCircuit):
            raise TypeError(f"circuits must hold UnitCircuit, got {type(circuit).__name__}")
        arrays[f"kept_{index}"] = np.packbits(circuit.kept.numpy())
        arrays[f"scores_{index}"] = circuit.scores.numpy()
        layers: dict[str, list[str]] = {"reads": list(circuit.reads), "means": list(circuit.means)}
        for kind, tensors in (("reads", circuit.reads), ("means", circuit.means)):
            for place, tensor in enumerate(tensors.values()):
                arrays[f"{kind}_{index}_{place}"] = tensor.numpy()
        spaces = {name: [space.start, space.stop] for name, space in circuit.spaces.items()}
        entries.append({"spaces": spaces, **layers, **{key: getattr(circuit, key) for key in _VALUES}})
    write_arrays(path, _FORMAT, entries, arrays)


def load_unit_circuits(path: str | os.PathLike[str]) -> list[UnitCircuit]:
    """Load what :func:`save_unit_circuits` wrote. Runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: the file is truncated, damaged or no unit circuits file.
    """
    with read_arrays(path, _FORMAT, _WHAT) as (entries, arrays):
        return [_read(index, entry, arrays) for index, entry in enumerate(entries)]


def _read(index: int, entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> UnitCircuit:
    scores = np.asarray(arrays[f"scores_{index}"])
    packed = arrays[f"kept_{index}"]
    if packed.dtype != np.uint8 or packed.shape != ((len(scores) + 7) // 8,):
        raise ValueError(f"kept has {packed.shape} bytes of {packed.dtype} for {len(scores)} units")

    def stored(kind: str) -> dict[str, Tensor]:
        return {
            str(name): torch.from_numpy(np.asarray(arrays[f"{kind}_{index}_{place}"]))
            for place, name in enumerate(entry[kind])
        }

    return UnitCircuit(
        kept=torch.from_numpy(np.unpackbits(packed, count=len(scores)).astype(bool)),
        scores=torch.from_numpy(scores),
        spaces={str(name): slice(int(start), int(stop)) for name, (start, stop) in entry["spaces"].items()},
        reads=stored("reads"),
        means=stored("means"),
        **{key: entry[key] for key in _VALUES},
    )
