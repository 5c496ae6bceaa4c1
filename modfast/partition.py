"""Partitions: which cluster each row and each column of a weight belongs to."""

from __future__ import annotations

import html
import operator
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .arguments import check_count
from .arrays import as_tensor, require_whole, to_int64
from .display import html_table
from .files import read_arrays, write_arrays

Labels: TypeAlias = Tensor | np.ndarray[Any, Any] | Iterable[int]

_INTEGER_DTYPES = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
)


def read_labels(name: str, labels: Labels, num_clusters: int) -> Tensor:
    """Check labels, and return a contiguous int64 copy."""
    require_whole(name, labels)
    pair = isinstance(labels, tuple) and len(labels) == 2
    if pair and isinstance(labels[0], (Tensor, np.ndarray)) and labels[0].ndim:  # type: ignore[index]
        raise ValueError(
            f"{name} must be labels alone, got a pair such as unit_labels returns, of labels and the number "
            "of clusters: give its first part"
        )
    try:
        tensor = as_tensor(name, labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a 1-D sequence of integers, got {type(labels).__name__}") from error
    if tensor.dim() != 1 or tensor.layout != torch.strided:
        raise ValueError(f"{name} must be 1-D and dense, got shape {tuple(tensor.shape)}, {tensor.layout}")
    # An empty list has no dtype of its own, and holds nothing that could be wrong.
    if tensor.dtype not in _INTEGER_DTYPES and tensor.numel() > 0:
        raise ValueError(f"{name} must hold integers, got dtype {tensor.dtype}")
    # Made in inference mode, the labels could never be saved for a backward pass.
    with torch.inference_mode(False):
        result = to_int64(name, tensor, f"in [-1, {num_clusters - 1}]")
        result = result.clone(memory_format=torch.contiguous_format)
    if result.numel() > 0 and not result.is_meta:
        low, high = (int(value) for value in torch.aminmax(result))
        if low < -1 or high >= num_clusters:
            bad = low if low < -1 else high
            raise ValueError(f"{name} must lie in [-1, {num_clusters - 1}], got {bad}")
    return result


class Partition:
    """A cluster for every row and every column of a weight. Immutable.

    Args:
        row_labels: for each row (output neuron or channel) its cluster, in ``[0, num_clusters)``, or -1
            for "in no cluster": its weights always count as crossing. A tensor, NumPy array, sequence or
            iterator of integers of any type; a copy is kept, as an int64 tensor on the same device.
        col_labels: the same for each column (input neuron or channel).
        num_clusters: how many clusters there are; a cluster may be empty.

    Raises:
        ValueError: a label is no integer or out of range, or ``num_clusters`` is no positive integer.
        TypeError: the labels are a ``DTensor``.

    Example:
        >>> partition = Partition([0, 0, 1], [0, 1, 1, -1], num_clusters=2)
        >>> partition.shape
        (3, 4)
        >>> partition.mask().int().tolist()
        [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]]
    """

    __slots__ = ("__weakref__", "col_labels", "num_clusters", "row_labels")

    row_labels: Tensor
    col_labels: Tensor
    num_clusters: int

    def __init__(self, row_labels: Labels, col_labels: Labels, num_clusters: int) -> None:
        count = check_count("num_clusters", num_clusters)
        rows = read_labels("row_labels", row_labels, count)
        cols = read_labels("col_labels", col_labels, count)
        if rows.device != cols.device:
            raise ValueError(
                f"row_labels and col_labels must be on one device, got {rows.device} and {cols.device}"
            )
        self._set(rows, cols, count)

    def _set(self, rows: Tensor, cols: Tensor, count: int) -> None:
        object.__setattr__(self, "num_clusters", count)
        object.__setattr__(self, "row_labels", rows)
        object.__setattr__(self, "col_labels", cols)

    def _like(self, rows: Tensor, cols: Tensor) -> Partition:
        """A partition with labels made from its own, unchecked: a check would wait for the device."""
        partition = Partition.__new__(Partition)
        partition._set(rows, cols, self.num_clusters)
        return partition

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Partition is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Partition is immutable: cannot delete {name}")

    def __reduce__(self) -> tuple[type[Partition], tuple[Tensor, Tensor, int]]:
        return Partition, (self.row_labels, self.col_labels, self.num_clusters)

    def __repr__(self) -> str:
        return f"Partition(shape={self.shape}, num_clusters={self.num_clusters})"

    def _repr_html_(self) -> str:
        if self.row_labels.is_meta:
            return f"<pre>{html.escape(repr(self))}</pre>"
        rows = [[cluster, *sizes] for cluster, sizes in enumerate(self.sizes().tolist())]
        none = [int((labels < 0).sum()) for labels in (self.row_labels, self.col_labels)]
        if any(none):
            rows.append(["none", *none])
        return html_table(repr(self), ("cluster", "rows", "columns"), rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        return (
            self.num_clusters == other.num_clusters
            and torch.equal(self.row_labels.cpu(), other.row_labels.cpu())
            and torch.equal(self.col_labels.cpu(), other.col_labels.cpu())
        )

    def __hash__(self) -> int:
        return hash(
            (
                self.num_clusters,
                self.row_labels.cpu().numpy().tobytes(),
                self.col_labels.cpu().numpy().tobytes(),
            )
        )

    @classmethod
    def blocks(cls, shape: Sequence[int], num_clusters: int) -> Partition:
        """Contiguous, near-equal blocks along both sides, sized as ``torch.tensor_split`` does.

        Args:
            shape: a weight's ``(out, in)``; further sizes (a convolution's kernel) are ignored.
            num_clusters: at most the smaller side.

        Raises:
            ValueError: ``shape`` is no pair of sizes, or ``num_clusters`` exceeds either of them.

        Example:
            >>> Partition.blocks((5, 4), 2).row_labels.tolist()
            [0, 0, 0, 1, 1]
        """
        count = check_count("num_clusters", num_clusters)
        try:
            rows, cols = (operator.index(size) for size in tuple(shape)[:2])
        except (TypeError, ValueError) as error:
            raise ValueError(f"shape must be a weight's (out, in), got {shape!r}") from error
        if rows < 0 or cols < 0:
            raise ValueError(f"shape must hold sizes that are not negative, got {shape!r}")
        if count > min(rows, cols):
            raise ValueError(
                f"num_clusters must be at most {min(rows, cols)} for shape {(rows, cols)}, got {count}"
            )

        def side(size: int) -> Tensor:
            small, larger = divmod(size, count)
            sizes = torch.tensor([small + 1] * larger + [small] * (count - larger), device="cpu")
            return torch.repeat_interleave(torch.arange(count, device="cpu"), sizes)

        return cls(side(rows), side(cols), count)

    @property
    def shape(self) -> tuple[int, int]:
        """The ``(out, in)`` of the weights it fits."""
        return self.row_labels.shape[0], self.col_labels.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the labels are."""
        return self.row_labels.device

    def mask(self) -> Tensor:
        """Which weights stay inside a cluster: bool, ``(out, in)``."""
        rows, cols = self.row_labels[:, None], self.col_labels[None, :]
        return (rows == cols) & (rows >= 0)

    def sizes(self) -> Tensor:
        """How many rows and how many columns each cluster has: int64, ``(num_clusters, 2)``."""
        counted = [
            torch.bincount(labels[labels >= 0], minlength=self.num_clusters)
            for labels in (self.row_labels, self.col_labels)
        ]
        return torch.stack(counted, dim=1)

    def to(self, device: torch.device | str | int) -> Partition:
        """This partition with its labels on ``device``; itself if they already are."""
        rows = self.row_labels.to(device=device)
        if rows is self.row_labels:
            return self
        return self._like(rows, self.col_labels.to(device=device))

    def transpose(self) -> Partition:
        """The partition of the transposed weight."""
        return self._like(self.col_labels, self.row_labels)

    def row_order(self) -> Tensor:
        """The stable permutation that brings the rows of a cluster together; unassigned rows come last."""
        return self._order(self.row_labels)

    def col_order(self) -> Tensor:
        """The stable permutation that brings the columns of a cluster together; unassigned ones come last."""
        return self._order(self.col_labels)

    def _order(self, labels: Tensor) -> Tensor:
        return torch.where(labels < 0, self.num_clusters, labels).argsort(stable=True)


# A Partition in a checkpoint, such as Lightning's hyperparameters, is loaded by
# torch.load(weights_only=True).
torch.serialization.add_safe_globals([Partition])

_PACKED_FORMAT = 1


def pack_partitions(mapping: Mapping[str, Partition]) -> Tensor:
    """Pack partitions by name into one int64 tensor on the CPU, of a length set by names and shapes.

    A ``state_dict`` with this tensor can be saved in any format for tensors.

    Example:
        >>> unpack_partitions(pack_partitions({"fc2": Partition.blocks((64, 64), 4)}))
        {'fc2': Partition(shape=(64, 64), num_clusters=4)}
    """
    parts = [torch.tensor([_PACKED_FORMAT, len(mapping)], device="cpu")]
    for name, partition in mapping.items():
        encoded = list(name.encode())
        parts.append(
            torch.tensor([len(encoded), *partition.shape, partition.num_clusters, *encoded], device="cpu")
        )
        parts += [partition.row_labels.cpu(), partition.col_labels.cpu()]
    return torch.cat(parts)


def unpack_partitions(packed: Tensor) -> dict[str, Partition]:
    """The inverse of :func:`pack_partitions`.

    Raises:
        ValueError: ``packed`` does not hold packed partitions.
    """
    problem = "packed must be partitions as modfast packs them"
    if not isinstance(packed, Tensor) or packed.dtype != torch.int64 or packed.dim() != 1 or len(packed) < 2:
        raise ValueError(f"{problem}, got {reprlib.repr(packed)}")
    numbers = packed.detach().cpu()
    version, count = numbers[:2].tolist()
    if version != _PACKED_FORMAT:
        raise ValueError(f"{problem}, got format {version}")
    mapping: dict[str, Partition] = {}
    place = 2
    for _ in range(count):
        head = numbers[place : place + 4].tolist()
        if len(head) < 4 or min(head) < 0 or place + 4 + sum(head[:3]) > len(numbers):
            raise ValueError(f"{problem}, got a tensor that is cut off or damaged")
        name_length, rows, cols, num_clusters = head
        sizes = [name_length, rows, cols]
        encoded, row_labels, col_labels = numbers[place + 4 : place + 4 + sum(sizes)].split(sizes)
        try:
            name = bytes(encoded.tolist()).decode()
        except ValueError as error:
            raise ValueError(f"{problem}, got a damaged name ({error})") from error
        mapping[name] = Partition(row_labels, col_labels, num_clusters)
        place += 4 + sum(sizes)
    return mapping


_FORMAT = "modfast partitions 1"


def save_partitions(path: str | os.PathLike[str], mapping: Mapping[str, Partition]) -> None:
    """Save partitions by name: a NumPy ``.npz`` archive without pickled objects, whole or not at all.

    Args:
        path: the file; it is replaced if it exists.
        mapping: name (of a layer or parameter) to :class:`Partition`.

    Raises:
        ValueError: a name is no string, or a value no :class:`Partition`.
        TypeError: ``mapping`` is no mapping.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "partitions.npz")
        >>> save_partitions(path, {"fc2": Partition.blocks((64, 64), 4)})
        >>> load_partitions(path)
        {'fc2': Partition(shape=(64, 64), num_clusters=4)}
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must map names to Partition, got {type(mapping).__name__}")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    entries = []
    for index, (name, partition) in enumerate(mapping.items()):
        if not isinstance(name, str) or not isinstance(partition, Partition):
            raise ValueError(f"mapping must map names to Partition, got {name!r}: {type(partition).__name__}")
        entries.append({"name": name, "num_clusters": partition.num_clusters})
        arrays[f"rows_{index}"] = partition.row_labels.cpu().numpy()
        arrays[f"cols_{index}"] = partition.col_labels.cpu().numpy()
    write_arrays(path, _FORMAT, entries, arrays)


def load_partitions(path: str | os.PathLike[str]) -> dict[str, Partition]:
    """Load what :func:`save_partitions` wrote. Runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: the file is truncated, damaged or no partitions file.
    """
    with read_arrays(path, _FORMAT, "partitions file") as (entries, arrays):
        return {
            str(entry["name"]): Partition(arrays[f"rows_{i}"], arrays[f"cols_{i}"], entry["num_clusters"])
            for i, entry in enumerate(entries)
        }
