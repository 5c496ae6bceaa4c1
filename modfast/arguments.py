"""Constraints on arguments that are numbers or choices, as data: which values are allowed, and in words.

A constraint answers ``value in constraint``, and its text ends the sentence "... must be".
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class Integer:
    """Whole numbers from ``low`` to ``high``, both included; without ``high`` there is no largest one.

    Example:
        >>> str(Integer(1)), str(Integer(0)), str(Integer(1, 8))
        ('a positive integer', 'an integer of at least 0', 'an integer in [1, 8]')
        >>> 3 in Integer(1), 3.0 in Integer(1), True in Integer(1)
        (True, False, False)
    """

    low: int
    high: int | None = None

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral):
            return False
        return int(value) >= self.low and (self.high is None or int(value) <= self.high)

    def __str__(self) -> str:
        if self.high is not None:
            return f"an integer in [{self.low}, {self.high}]"
        return "a positive integer" if self.low == 1 else f"an integer of at least {self.low}"


@dataclass(frozen=True)
class Number:
    """Finite numbers above ``low``, or from ``low`` on if ``included``, and below ``high``.

    Example:
        >>> str(Number(0)), str(Number(0, included=True))
        ('a finite number above 0', 'a finite number of at least 0')
        >>> str(Number(0, 1))
        'a number between 0 and 1, both excluded'
    """

    low: float
    high: float = math.inf
    included: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer beyond all floats
            return False
        return (
            math.isfinite(number)
            and (self.low < number or (self.included and number == self.low))
            and number < self.high
        )

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"a number between {self.low} and {self.high}, both excluded"
        return f"a finite number {'of at least' if self.included else 'above'} {self.low}"


@dataclass(frozen=True)
class Share:
    """Numbers above 0 and up to 1.

    Example:
        >>> 1 in Share(), 0.0 in Share(), str(Share())
        (True, False, 'a number above 0 and at most 1')
    """

    def __contains__(self, value: object) -> bool:
        return value in Number(0) and value <= 1  # type: ignore[operator]  # a number, as the first says

    def __str__(self) -> str:
        return "a number above 0 and at most 1"


@dataclass(frozen=True)
class OneOf:
    """One of a few values.

    Example:
        >>> str(OneOf(("abs", "square")))
        "one of ('abs', 'square')"
    """

    values: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.values

    def __str__(self) -> str:
        return f"one of {self.values}"


@dataclass(frozen=True)
class Flag:
    """True or False.

    Example:
        >>> str(Flag()), True in Flag(), 1 in Flag()
        ('True or False', True, False)
    """

    def __contains__(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class NoneOr:
    """What another constraint allows, or None.

    Example:
        >>> str(NoneOr(Integer(1))), None in NoneOr(Integer(1))
        ('None or a positive integer', True)
    """

    other: Constraint

    def __contains__(self, value: object) -> bool:
        return value is None or value in self.other

    def __str__(self) -> str:
        return f"None or {self.other}"


@dataclass(frozen=True)
class Distinct:
    """At least one value, each of them allowed by another constraint, none twice.

    Example:
        >>> str(Distinct(Integer(0)))
        'one or more, none of them twice, each an integer of at least 0'
    """

    each: Constraint

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Collection) or isinstance(value, str):
            return False
        return len(value) == len(set(value)) > 0 and all(one in self.each for one in value)

    def __str__(self) -> str:
        return f"one or more, none of them twice, each {self.each}"


Constraint = Integer | Number | Share | OneOf | Flag | NoneOr | Distinct

SEED = Integer(0, 2**63 - 1)
"""What PyTorch's generators take."""

THREADS = NoneOr(Integer(1, 4096))
"""Numbers of threads: with tens of thousands the system ends the process, which no program can prevent."""

SIZE = Integer(1, 2**63 - 1)
"""What PyTorch takes as a number of images, such as the size of a batch."""


def check(name: str, value: object, allowed: Constraint, where: str = "") -> None:
    """Raises unless a constraint allows the value.

    Args:
        name: the argument's name, for the message.
        value: the value that a user gave.
        allowed: the constraint.
        where: what the constraint depends on, for the message: ``" for shape (3, 4)"``.

    Raises:
        ValueError: the constraint does not allow the value.

    Example:
        >>> check("num_clusters", 9, Integer(1, 4), " for 4 nodes")
        Traceback (most recent call last):
        ValueError: num_clusters must be an integer in [1, 4] for 4 nodes, got 9
    """
    if value not in allowed:
        raise ValueError(f"{name} must be {allowed}{where}, got {_shown(value)}")


def _shown(value: object) -> str:
    """The value in one line: a tensor that was given for a number may have thousands."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"an integer of {int(value).bit_length()} bits"  # type: ignore[call-overload]
    return text if len(text) <= 200 else f"{' '.join(text[:150].split())} ... {' '.join(text[-30:].split())}"


def check_count(name: str, value: object) -> int:
    """Return the value as an int, if it is a count that the kernels can hold in 32 bits.

    Raises:
        ValueError: the value is no positive integer below ``2**31 - 1``.
    """
    check(name, value, Integer(1))
    check(name, value, Integer(1, 2**31 - 2))
    return operator.index(value)  # type: ignore[arg-type]


def check_callback(name: str, value: object) -> None:
    """Raises unless the value is None or can be called: early, not after the first part of long work.

    Raises:
        TypeError: it is something else.

    Example:
        >>> check_callback("progress", print)
        >>> check_callback("progress", 3)
        Traceback (most recent call last):
        TypeError: progress must be None or a function, got int
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be None or a function, got {type(value).__name__}")


def check_fields(config: object, allowed: Mapping[str, Constraint]) -> None:
    """Raises unless each of these attributes has an allowed value; the message names the first that has not.

    Raises:
        ValueError: an attribute has another value.
    """
    for name, constraint in allowed.items():
        check(name, getattr(config, name), constraint)


# The choices of several rooms, here so that the command line can name them before PyTorch is imported.

CRITERIA = ("loss", "loss_and_accuracy", "balanced")
"""What must not get worse in a circuit, see :func:`modfast.find_circuit`."""

UNIT_METHODS = ("attribution", "greedy")
"""How a circuit of units is found, see :func:`modfast.find_unit_circuit`."""

MODELS = "auto, cnn, cnn4, cnn-large, mlp, mlp4, package.module:callable"
"""What :func:`modfast.models.build_model` accepts, in words."""
