"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import optimize, stats

from modfast.arguments import Integer, Number, check


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
    # A power of two changes no bit of the result. Without it squares of large numbers overflow, and those of
    # small ones vanish.
    scale = math.ldexp(1.0, math.frexp(max(map(abs, numbers)))[1] - 1)
    scaled = [number / scale for number in numbers]
    mean = math.fsum(scaled) / count
    if count == 1:
        return mean * scale, None
    variance = math.fsum((number - mean) ** 2 for number in scaled) / (count - 1)
    quantile = float(stats.t.ppf((1.0 + confidence) / 2.0, count - 1))
    return mean * scale, quantile * math.sqrt(variance / count) * scale


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


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the paired t-test that ``a`` and ``b`` have the same mean.

    It is the chance of a difference at least as large as the one seen, to either side, if the true one were
    0: below 0.05 where the 95% interval of :func:`paired_interval` excludes 0. Choose the interval to say how
    large a difference is, and this, corrected by :func:`holm`, to test several differences together.

    Args:
        a: Finite numbers, one for each seed.
        b: As many finite numbers, for the same seeds in the same order.

    Returns:
        The p-value, in [0, 1]; None for a single seed. Where the differences have no scatter but rounding, it
        is the limit of ever smaller scatter: 0, or 1 if their mean is rounding as well.

    Raises:
        ValueError: As :func:`paired_interval`.

    Source:
        Student, "The probable error of a mean", Biometrika 6 (1908).

    Example:
        >>> f"{paired_p_value([3.0, 4.0, 5.0], [1.0, 1.0, 1.0]):.4f}"
        '0.0351'
        >>> paired_p_value([2.0, 2.0], [1.0, 1.0]), paired_p_value([2.0], [1.0])
        (0.0, None)
    """
    effect = effect_size(a, b)
    if effect is not None:
        return float(2.0 * stats.t.sf(abs(effect) * math.sqrt(len(a)), len(a) - 1))
    mean, half_width = paired_interval(a, b)
    if half_width is None:
        return None
    return 0.0 if abs(mean) > 1e-12 * max(abs(value) for value in (*a, *b)) else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct the p-values of several tests for their number, by Holm's method.

    Reject where the corrected value is at most 0.05: then the chance that even one of the hypotheses that are
    true is rejected is at most 5 %, however many these are and whatever the tests share. Bonferroni's method
    guarantees the same and never rejects more; uncorrected tests reject one in twenty true hypotheses each.

    Args:
        p_values: In [0, 1], one for each test in any order. None stands for a test that could not be made; it
            does not count.

    Returns:
        The corrected values in the same order, each at least the original and at most 1; None where that is
        None. The i-th smallest of m is multiplied by m - i + 1, and raised to the largest of those before.

    Raises:
        ValueError: A value is neither None nor a number in [0, 1].

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
        (1979).

    Example:
        >>> holm([0.03, 0.01, None, 0.04])
        [0.06, 0.03, None, 0.06]
    """
    for position, value in enumerate(p_values):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(
                f"p_values must be numbers in [0, 1], or None, got {value!r} at position {position}"
            )
    ordered = sorted((float(value), index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(ordered):
        highest = max(highest, min((len(ordered) - rank) * value, 1.0))
        adjusted[index] = highest
    return adjusted


def detectable_effect(
    count: int, comparisons: int = 1, power: float = 0.8, confidence: float = 0.95
) -> float:
    """Return the smallest effect that a paired t-test with so many seeds finds as often as asked.

    An undecided test says little about effects below this. To plan an experiment, raise ``count`` until the
    result is as small as the effect that would matter.

    Args:
        count: The number of seeds, 2 or more.
        comparisons: How many tests share the error: each is made at the level
            ``(1 - confidence) / comparisons``, as in Bonferroni's method and in the first step of Holm's. 1
            for a single test.
        power: How often the effect is to be found, above 0 and below 1.
        confidence: 1 minus the chance of a false finding, above 0 and below 1.

    Returns:
        The absolute value of Cohen's d_z (see :func:`effect_size`): the mean difference in units of the
        differences' standard deviation over seeds. It is 0 if chance alone finds something that often.

    Raises:
        ValueError: An argument is out of range.

    Source:
        Cohen, "Statistical power analysis for the behavioral sciences" (1988), chapter 2; the power of the
        two-sided test is that of the noncentral t distribution, without an approximation.

    Example:
        >>> round(detectable_effect(10), 4)
        0.996
        >>> round(detectable_effect(5), 2), round(detectable_effect(5, comparisons=8), 2)
        (1.68, 2.98)
    """
    check("count", count, Integer(2))
    check("comparisons", comparisons, Integer(1))
    check("power", power, Number(0, 1))
    check("confidence", confidence, Number(0, 1))
    freedom = count - 1
    critical = float(stats.t.isf((1.0 - confidence) / comparisons / 2.0, freedom))

    def excess(effect: float) -> float:
        shift = effect * math.sqrt(count)
        # The lower tail as the upper one of the mirrored distribution: SciPy's own lower tail turns into NaN.
        tails = (stats.nct.sf(critical, freedom, sign * shift) for sign in (1.0, -1.0))
        return float(sum(tails)) - power

    if excess(0.0) >= 0.0:
        return 0.0
    above = critical / math.sqrt(count)  # found about half of the time: a start far in the tail is slow
    while excess(above) < 0.0:
        above *= 2.0
    return float(optimize.brentq(excess, 0.0, above))
