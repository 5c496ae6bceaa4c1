"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """Return the mean of ``values`` and half the width of its confidence interval (Student's t).

    The interval is ``mean ± t * s / sqrt(n)``, where ``s`` is the sample's standard deviation (over
    ``n - 1``) and ``t`` the quantile ``(1 + confidence) / 2`` of Student's distribution with ``n - 1``
    degrees of freedom: it assumes independent values, about normally distributed.

    Args:
        values: At least one finite number, one for each seed.
        confidence: Share of such intervals that hold the true mean, above 0 and below 1.

    Returns:
        ``(mean, half_width)`` in the unit of ``values``; ``half_width`` is None for a single value,
        because one seed says nothing about the spread.

    Raises:
        ValueError: ``values`` is empty or not finite, or ``confidence`` is out of range.

    Source:
        Student, "The probable error of a mean", Biometrika 6 (1908).

    Example:
        >>> mean, half_width = mean_interval([0.96, 0.97, 0.98])
        >>> f"{mean:.3f} ± {half_width:.3f}"
        '0.970 ± 0.025'
        >>> mean_interval([0.5])
        (0.5, None)
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence!r}")
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("values must hold at least one number, got none")
    for position, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"values must be finite, got {number} at position {position}")
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count == 1:
        return mean, None
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    quantile = float(stats.t.ppf((1.0 + confidence) / 2.0, count - 1))
    return mean, quantile * math.sqrt(variance / count)


def paired_interval(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> tuple[float, float | None]:
    """Return the mean of the differences ``a - b`` and half the width of its confidence interval.

    Pairing removes what both values of a seed share (its data order, its initial weights), so the
    interval is as narrow as the comparison deserves.

    Args:
        a: Finite numbers, one for each seed.
        b: As many finite numbers, for the same seeds in the same order.
        confidence: As in :func:`mean_interval`.

    Returns:
        ``(mean, half_width)`` of ``a - b``, as :func:`mean_interval` gives them.

    Raises:
        ValueError: ``a`` and ``b`` differ in length, or :func:`mean_interval` refuses the differences.

    Example:
        >>> mean, half_width = paired_interval([3.0, 5.0, 7.0], [2.0, 4.0, 6.0])
        >>> mean, half_width
        (1.0, 0.0)
    """
    if len(a) != len(b):
        raise ValueError(f"b must hold as many values as a ({len(a)}), got {len(b)}")
    if not len(a):
        raise ValueError("a must hold at least one number, got none")
    for name, values in (("a", a), ("b", b)):
        for position, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value} at position {position}")
    return mean_interval([float(x) - float(y) for x, y in zip(a, b, strict=True)], confidence)


def effect_size(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Cohen's d_z: the mean of the differences ``a - b`` in units of their standard deviation.

    It compares a difference with its scatter over seeds, whereas an interval also narrows with the number of
    seeds. About 0.2 is called small, 0.8 large.

    Args:
        a: Finite numbers, one for each seed.
        b: As many finite numbers, for the same seeds in the same order.

    Returns:
        The effect size; None for a single seed, or if the differences have no scatter but rounding.

    Raises:
        ValueError: As :func:`paired_interval`.

    Source:
        Cohen, "Statistical power analysis for the behavioral sciences" (1988), 2.3.5.

    Example:
        >>> effect_size([3.0, 4.0, 5.0], [1.0, 1.0, 1.0])
        3.0
    """
    mean, half_width = paired_interval(a, b)
    if half_width is None:
        return None
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (len(differences) - 1))
    largest = max(abs(value) for value in (*a, *b))
    return mean / deviation if deviation > 1e-12 * largest else None
