"""Which unit each number of a computation is of: marks, parameters, and which marks are the same unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# No unit: of a number that no weight has made, or that mixes several units (a mean over all of them).
NONE, MIXED = -1, -2

# A number may lie in two spaces at once: a channel of an image, and a place of it. Each has its own marks.
SPACES = 2


@dataclass(frozen=True, eq=False)
class Marks:
    """What is known of each number of a tensor.

    Attributes:
        spaces: ``SPACES`` tensors of the tensor's shape, int64: in each space a mark, ``NONE`` or ``MIXED``.
        origin: the same shape: from which number of which source (an input, a table) the number comes, by
            :class:`Sources`; ``NONE`` if from none. It tells which units a source has, once a weight reads
            it.
    """

    spaces: tuple[Tensor, ...]
    origin: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.origin.shape

    @property
    def marked(self) -> bool:
        """Whether a number has a unit, or mixes several."""
        return any(not is_all(space, NONE) for space in self.spaces)

    def each(self, change: Callable[[Tensor], Tensor]) -> Marks:
        """Change the marks of each space, and the origins, alike."""
        return Marks(tuple(map(change, self.spaces)), change(self.origin))

    def expand(self, shape: Sequence[int]) -> Marks:
        """Repeat, as broadcasting does."""
        return self.each(lambda layer: layer.expand(tuple(shape)))


def unknown(shape: Sequence[int], value: int = NONE) -> Marks:
    """Marks of numbers of which nothing is known; or that mix several units, with ``MIXED``."""
    none = torch.tensor(NONE, device="cpu").expand(tuple(shape))
    return Marks((torch.tensor(value, device="cpu").expand(tuple(shape)), *[none] * (SPACES - 1)), none)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter as an operator sees it: transposed, sliced, or as it is.

    Attributes:
        name: of the parameter.
        index: for each dimension of the parameter, of the value's shape: the index along it of each number.
        moved: whether an operator has moved its numbers.
        routed: whether the computation chose matrices of a stack by what the input is (experts); the indices
            along the first dimension say nothing then.
    """

    name: str
    index: tuple[Tensor, ...]
    moved: bool = False
    routed: bool = False

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.index[0].shape

    def flat(self, sizes: Sequence[int]) -> Tensor:
        """The place of each number in the flattened parameter of these sizes."""
        place = torch.zeros((), dtype=torch.int64, device="cpu")
        for index, size in zip(self.index, sizes, strict=True):
            place = place * size + index
        return place


def as_stored(name: str, shape: Sequence[int]) -> Weight:
    """A parameter whose numbers lie as they are stored."""
    index = []
    for dim, size in enumerate(shape):
        along = [1] * len(shape)
        along[dim] = size
        index.append(torch.arange(size, device="cpu").reshape(along).expand(tuple(shape)))
    return Weight(name, tuple(index))


@dataclass(frozen=True, eq=False)
class Routed:
    """What is known of a tensor whose numbers come from one of several experts: the marks for each."""

    experts: tuple[Marks, ...]


Value: TypeAlias = Marks | Weight | Routed | None
"""What is known of a tensor; None of numbers that have no units, as integers."""


def thin(tensor: Tensor) -> Tensor:
    """Without the repetitions of an expanded tensor: these dimensions have size 1."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def is_all(tensor: Tensor, value: int) -> bool:
    """Whether all numbers are this one."""
    return bool((thin(tensor) == value).all())


def varies(tensor: Tensor, dim: int) -> bool:
    """Whether neighbours along a dimension differ."""
    tensor = thin(tensor)
    size = tensor.shape[dim]
    return size > 1 and bool((tensor.narrow(dim, 1, size - 1) != tensor.narrow(dim, 0, size - 1)).any())


def lies_along(space: Tensor) -> set[int]:
    """The dimensions along which neighbours are of different units."""
    space, found = thin(space), set()
    for dim in range(space.dim()):
        size = space.shape[dim]
        if size > 1:
            one, other = space.narrow(dim, 0, size - 1), space.narrow(dim, 1, size - 1)
            if bool(((one >= 0) & (other >= 0) & (one != other)).any()):
                found.add(dim)
    return found


class Units:
    """Marks of the rows and columns of weights, and which of them are the same unit."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[np.ndarray[Any, Any]] = []
        self._gates: list[tuple[np.ndarray[Any, Any], Callable[[], Exception] | None]] = []

    def new(self, number: int) -> Tensor:
        """Return marks that no other has, ``(number,)``."""
        marks = torch.arange(self.count, self.count + number, device="cpu")
        self.count += number
        return marks

    def join(self, one: Tensor, other: Tensor) -> None:
        """Note that marks at the same places, broadcast against each other, are the same unit."""
        pairs = met(one, other)
        if pairs.size:
            self._pairs.append(pairs)

    def join_all(self, marks: Tensor) -> Tensor:
        """Note that all marks of each row, ``(n, m)``, are one unit; return a new mark for each, ``(n,)``.

        Rows with the same marks get the same new one.
        """
        rows, place = marks.unique(dim=0, return_inverse=True)
        some = self.new(len(rows))
        self.join(some[:, None], rows)
        return some[place]

    def gate(self, one: Tensor, several: Tensor, error: Callable[[], Exception] | None) -> None:
        """Note that each number of ``one`` meets several units.

        They are the same unit if those several turn out to be one. If they do not, a factor stays a unit of
        its own; for anything else there is an error to raise.
        """
        pairs = met(one, several)
        if pairs.size:
            self._gates.append((pairs, error))

    def numbers(self) -> Tensor:
        """Return the unit of each mark; units are numbered in the order of their first mark."""
        least = self._components()
        gates = self._gates
        while gates:
            left = []
            for pairs, error in gates:
                gating, gated = pairs[0], least[pairs[1]]
                # A mark that meets one unit alone is that unit.
                first = {int(mark): int(unit) for mark, unit in zip(gating[::-1], gated[::-1], strict=True)}
                firsts = np.array([first[int(mark)] for mark in gating])
                several = set(gating[firsts != gated].tolist())
                alone = np.array([int(mark) not in several for mark in gating], dtype=bool)
                if alone.any():
                    self._pairs.append(pairs[:, alone])
                if several:
                    left.append((pairs[:, ~alone], error))
            if sum(p.shape[1] for p, _ in left) == sum(p.shape[1] for p, _ in gates):
                break
            gates, least = left, self._components()
        for _, error in gates:
            if error is not None:
                raise error()
        # The first of each component stands for it, so that the sorted ones are in order.
        _, units = np.unique(least, return_inverse=True)
        return torch.from_numpy(units)

    def _components(self) -> np.ndarray[Any, Any]:
        pairs = np.concatenate(self._pairs, axis=1) if self._pairs else np.empty((2, 0), dtype=np.int64)
        return components(self.count, pairs)


def met(one: Tensor, other: Tensor) -> np.ndarray[Any, Any]:
    """The different pairs of marks that meet, broadcast against each other, ``(2, n)``."""
    one, other = torch.broadcast_tensors(one, other)
    for dim, size in enumerate(one.shape):
        if size > 1 and one.stride(dim) == 0 and other.stride(dim) == 0:
            one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
    both = (one >= 0) & (other >= 0) & (one != other)
    pairs = torch.stack([one[both], other[both]])
    return torch.unique(pairs, dim=1).numpy() if pairs.numel() else pairs.numpy()


def components(count: int, pairs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return for each of ``count`` things the least one that pairs, ``(2, n)``, connect it with."""
    least = np.arange(count)
    while True:
        one, other = least[pairs[0]], least[pairs[1]]
        apart = one != other
        if not apart.any():
            return least
        one, other = one[apart], other[apart]
        np.minimum.at(least, np.maximum(one, other), np.minimum(one, other))
        while (least[least] != least).any():
            least = least[least]


@dataclass
class Source:
    """A tensor that no weight has made: an input, a table of positions, a constant.

    Attributes:
        key: the operation of the graph that it comes from.
        base: the first of its origins.
        shape: its shape.
        reads: for each weight that reads its numbers, the dimensions of the source along which it does.
        meetings: how often its numbers meet others.
        lost: where its numbers went if they cannot be followed there, with the reason.
    """

    key: str
    base: int
    shape: tuple[int, ...]
    reads: list[frozenset[int]]
    meetings: int = 0
    lost: Exception | None = None


class Sources:
    """The sources of a run, and the units that an earlier run found them to have.

    A source has no units until a weight reads it. A run notes which do, and along which dimensions; the next
    one gives these marks from the start, so that they meet what else the source is added to or multiplied by.

    Args:
        seeds: for each source the dimensions along which its units lie, a set for each space.
    """

    def __init__(self, seeds: dict[str, list[frozenset[int]]]) -> None:
        self.seeds = seeds
        self.all: list[Source] = []
        self._bases: list[int] = []
        self._end = 0

    def make(self, key: str, shape: Sequence[int], units: Units) -> Marks:
        """Return the marks of a source, which has them only if an earlier run found so."""
        shape = tuple(shape)
        number = int(np.prod(shape, dtype=np.int64))
        origin = torch.arange(self._end, self._end + number, device="cpu").reshape(shape)
        if number:
            self.all.append(Source(key, self._end, shape, []))
            self._bases.append(self._end)
            self._end += number
        spaces = list(unknown(shape).spaces)
        # A run that knew less may have seen units where now others lie, so that the dimension is cut.
        seeds = [dims for dims in self.seeds.get(key, []) if not dims or any(shape[dim] > 1 for dim in dims)]
        for space, dims in enumerate(seeds):
            along = [size if dim in dims else 1 for dim, size in enumerate(shape)]
            spaces[space] = units.new(int(np.prod(along, dtype=np.int64))).reshape(along).expand(shape)
        return Marks(tuple(spaces), origin)

    def of(self, origin: Tensor) -> Iterator[Source]:
        """The sources from which numbers come."""
        found = thin(origin)
        found = found[found >= 0]
        if found.numel():
            bases = torch.tensor(self._bases, device="cpu")
            for place in (torch.searchsorted(bases, found, right=True) - 1).unique().tolist():
                yield self.all[place]

    def read(self, origin: Tensor) -> None:
        """Note that a weight reads numbers along the last dimension."""
        for source in self.of(origin):
            inside = (origin >= source.base) & (origin < source.base + int(np.prod(source.shape)))
            places = torch.unravel_index((origin - source.base).where(inside, 0), source.shape)
            dims = set()
            for dim, place in enumerate(places):
                both = inside[..., 1:] & inside[..., :-1]
                along = bool(((place[..., 1:] != place[..., :-1]) & both).any())
                # A single number is read: it lies along what it was cut from.
                cut = origin.shape[-1] == 1 and len(place[inside].unique()) < source.shape[dim]
                if along or cut:
                    dims.add(dim)
            source.reads.append(frozenset(dims))

    def found(self) -> dict[str, list[frozenset[int]]] | None:
        """The units of the sources, if a run with them would tell more than this one; else None.

        Raises:
            CannotFollowError: a weight reads a source whose numbers also go where they cannot be followed.
        """
        seeds = dict(self.seeds)
        for source in self.all:
            if source.reads and source.lost is not None:
                raise source.lost
            if len(source.reads) + source.meetings < 2:
                continue
            known = list(seeds.get(source.key, []))
            for dims in source.reads:
                known = _with(known, dims)
            if known:
                seeds[source.key] = known
        return None if seeds == self.seeds else seeds


def _with(known: list[frozenset[int]], dims: frozenset[int]) -> list[frozenset[int]]:
    """Add a set of dimensions to those of which each space has one: what overlaps is one space."""
    if not dims and known:
        return known
    for place, each in enumerate(known):
        if each & dims or not each:
            known = [*known[:place], each & dims or dims, *known[place + 1 :]]
            return known
    return [*known, dims]
