"""Means and intervals against values worked by hand and against SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modfast.report.statistics import effect_size, mean_interval, paired_interval

finite = st.floats(-1e6, 1e6)

# SciPy 1.15, the last for Python 3.10, finds Student's quantiles by a search that ends within 2e-11 of them.
QUANTILE_ERROR = 1e-10


def test_by_hand() -> None:
    # Mean 2, standard deviation 1; with 2 degrees of freedom the quantile of p is, in closed form,
    # (2 p - 1) / sqrt(2 p (1 - p)): 4.3027 for p = 0.975.
    mean, half_width = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert half_width == pytest.approx(quantile / math.sqrt(3.0), rel=QUANTILE_ERROR)


def test_other_confidence_by_hand() -> None:
    # With 1 degree of freedom Student's distribution is Cauchy's: its 75% quantile is exactly 1.
    mean, half_width = mean_interval([0.0, 2.0], confidence=0.5)
    assert mean == 1.0
    assert half_width == pytest.approx(1.0, rel=QUANTILE_ERROR)


@given(st.lists(finite, min_size=2, max_size=30), st.floats(0.01, 0.999))
def test_agrees_with_scipy(values: list[float], confidence: float) -> None:
    mean, half_width = mean_interval(values, confidence)
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    expected = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * spread
    # Scale 1e6 in float64: the naive sums that this is held against are good to about 1e-9.
    assert mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-9)
    assert half_width == pytest.approx(expected, rel=1e-9, abs=1e-7)


def test_equal_values_have_no_spread() -> None:
    assert mean_interval([0.25, 0.25, 0.25]) == (0.25, 0.0)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.5]) == (0.5, None)
    assert paired_interval([0.5], [0.25]) == (0.25, None)


def test_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    trials = 400
    covered = 0
    for sample in generator.normal(3.0, 2.0, size=(trials, 4)):
        mean, half_width = mean_interval(sample.tolist(), 0.9)
        assert half_width is not None
        covered += abs(mean - 3.0) <= half_width
    # 360 expected, standard deviation 6: four of them to either side.
    assert 336 <= covered <= 384


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_paired_is_the_interval_of_the_differences(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert paired_interval(a, b) == mean_interval([x - y for x, y in pairs])


def test_pairing_removes_what_seeds_share() -> None:
    plain = [0.50, 0.70, 0.90]
    modular = [value + 0.01 for value in plain]
    mean, half_width = paired_interval(modular, plain)
    assert mean == pytest.approx(0.01)
    assert half_width == pytest.approx(0.0, abs=1e-12)


def test_effect_size_by_hand() -> None:
    # Differences 1, 2 and 6: mean 3, deviations -2, -1 and 3, so that the variance is 14 / 2.
    assert effect_size([1.0, 3.0, 9.0], [0.0, 1.0, 3.0]) == pytest.approx(3 / math.sqrt(7), rel=1e-15)
    assert effect_size([0.0, 1.0, 3.0], [1.0, 3.0, 9.0]) == pytest.approx(-3 / math.sqrt(7), rel=1e-15)


def test_effect_size_without_scatter() -> None:
    assert effect_size([0.5], [0.25]) is None
    assert effect_size([0.5, 0.75], [0.25, 0.5]) is None
    # The three differences are 0.01 but for rounding.
    assert effect_size([0.51, 0.71, 0.91], [0.50, 0.70, 0.90]) is None
    assert effect_size([0.0, 0.0], [0.0, 0.0]) is None
    with pytest.raises(ValueError, match=r"b must hold as many values as a \(2\), got 1"):
        effect_size([1.0, 2.0], [1.0])


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 95, math.nan])
def test_bad_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must be above 0 and below 1, got"):
        mean_interval([1.0, 2.0], confidence)
    with pytest.raises(ValueError, match="confidence"):
        paired_interval([1.0, 2.0], [1.0, 2.0], confidence)


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="values must hold at least one number"):
        mean_interval([])
    with pytest.raises(ValueError, match="values must be finite, got nan at position 1"):
        mean_interval([1.0, math.nan])
    with pytest.raises(ValueError, match=r"b must hold as many values as a \(2\), got 1"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="a must hold at least one number"):
        paired_interval([], [])
    with pytest.raises(ValueError, match="b must be finite, got inf at position 0"):
        paired_interval([1.0], [math.inf])
