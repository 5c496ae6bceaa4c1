"""How numbers are written for readers, in tables, pictures and pages alike."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from modfast.spectral.eigengap import GAP_ROUNDING

from .statistics import mean_interval

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"

# A cluster matters to a class from this many percentage points of accuracy on.
MARGIN = 10.0


def cell(mean: float, half_width: float | None, decimals: int, sign: str = "") -> str:
    """Write a mean, with the half width of its interval if there is one."""
    text = f"{mean:{sign}.{decimals}f}"
    return text if half_width is None else f"{text} ± {half_width:.{decimals}f}"


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending whole numbers in short.

    Example:
        >>> ranges([2, 4, 5, 6])
        '2, 4..6'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95% interval if there are several, and the seeds' values."""

    mean: float
    interval: float | None
    values: Sequence[float]


def estimate(values: Sequence[float | None], scale: float = 1.0) -> Estimate | None:
    """Return the estimate from the values that are not None; None if all are.

    Example:
        >>> estimate([0.5, None], 100.0)
        Estimate(mean=50.0, interval=None, values=[50.0])
    """
    known = [scale * value for value in values if value is not None]
    return Estimate(*mean_interval(known), known) if known else None


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values without None and NaN; None if none is left.

    Example:
        >>> average([0.25, None, 0.75, float("nan")])
        0.5
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def numbers(parts: Sequence[Mapping[str, Any] | None], scale: float = 1.0) -> list[str]:
    """Write the means and intervals of one row of a table, all with the same number of decimals.

    The widest interval has two digits, but the largest mean no more than four; without any interval it has
    three. The third part is a difference and has a sign.

    Args:
        parts: each with ``mean`` and ``interval``, either of which may be None.
        scale: the factor for all numbers.

    Example:
        >>> plain, modular = {"mean": 0.95667, "interval": 0.0379}, {"mean": 0.96, "interval": 0.0248}
        >>> numbers([plain, modular, {"mean": 0.0033, "interval": 0.0143}], 100.0)
        ['95.7 ± 3.8', '96.0 ± 2.5', '+0.3 ± 1.4']
        >>> numbers([{"mean": 0.00781, "interval": None}], 100.0)
        ['0.781']
    """
    known = [part for part in parts if part is not None and part["mean"] is not None]
    widest = scale * max((part["interval"] or 0.0 for part in known), default=0.0)
    largest = scale * max((abs(part["mean"]) for part in known), default=0.0)
    decimals = _decimals(largest, 3)
    if widest > 0.0:
        decimals = min(_decimals(widest, 2), _decimals(max(largest, widest), 4))
    texts = []
    for index, part in enumerate(parts):
        if part is None or part["mean"] is None:
            texts.append(NOTHING)
            continue
        text = _fixed(scale * part["mean"], decimals, signed=index == 2)
        if part["interval"] is not None:
            text += f" ± {scale * part['interval']:.{decimals}f}"
        texts.append(text)
    return texts


def _decimals(value: float, digits: int) -> int:
    """Return how many decimals give ``value`` this many digits."""
    return 0 if value == 0.0 else max(digits - 1 - math.floor(math.log10(value)), 0)


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    """Write a number with a true minus sign; what rounds to zero has no sign."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0.0:
        return text
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def percent(share: float | None) -> str:
    """Write a share in percent, with three digits.

    Example:
        >>> percent(0.0078125), percent(0.0), percent(0.01), percent(1.0)
        ('0.781 %', '0 %', '1.00 %', '100 %')
    """
    if share is None:
        return NOTHING
    return f"{_fixed(100 * share, _decimals(100 * abs(share), 3))} %"


def shuffled_gap(record: Mapping[str, Any]) -> float | None:
    """Return the largest gap in any shuffle of the weights, over all numbers of clusters that were tried."""
    return max(record["shuffled"]["largest_gaps"], default=None)


def is_unclear(gap: float | None, shuffled: float | None) -> bool:
    """Whether a gap is no larger than the largest one in shuffled weights, or one of them is unknown.

    Example:
        >>> is_unclear(0.4, 0.1), is_unclear(0.1, 0.1), is_unclear(0.4, None)
        (False, True, True)
    """
    return gap is None or shuffled is None or gap - GAP_ROUNDING < shuffled


def visible(name: str) -> str:
    r"""Return a name with the characters that no font has, such as line breaks, as Python writes them.

    Example:
        >>> visible("two\nlines"), visible("naïve")
        ('two\\nlines', 'naïve')
    """
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _INVISIBLE else each
        for each in name
    )


# Control characters, halves of surrogate pairs, and the separators of lines and paragraphs.
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")


def name_end(name: str, most: int = 34) -> str:
    """Return ``name``, or an ellipsis and its end, in at most ``most`` characters.

    Example:
        >>> name_end("features.block.conv", most=10)
        '…lock.conv'
    """
    name = visible(name)
    # Layers of one network differ in the ends of their names.
    return name if len(name) <= most else "…" + name[1 - most :]
