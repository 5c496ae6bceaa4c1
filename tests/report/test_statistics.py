"""Means and intervals against values worked by hand and against SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modfast.report.statistics import (
    detectable_effect,
    effect_size,
    holm,
    mean_interval,
    paired_interval,
    paired_p_value,
)

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


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=20))
def test_p_value_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    if effect_size(a.tolist(), b.tolist()) is None:
        return
    assert paired_p_value(a.tolist(), b.tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)


def test_p_value_by_hand() -> None:
    # Differences 2, 3, 4: t = 3 / (1 / sqrt(3)). With 2 degrees of freedom P(|T| > t) is
    # 1 - t / sqrt(t^2 + 2).
    t = 3 * math.sqrt(3)
    expected = pytest.approx(1 - t / math.sqrt(t * t + 2), rel=1e-12)
    assert paired_p_value([3.0, 4.0, 5.0], [1.0, 1.0, 1.0]) == expected
    assert paired_p_value([1.0, 1.0, 1.0], [3.0, 4.0, 5.0]) == expected


def test_p_value_without_scatter() -> None:
    assert paired_p_value([0.5], [0.25]) is None
    assert paired_p_value([0.5, 0.75], [0.25, 0.5]) == 0.0
    assert paired_p_value([0.51, 0.71, 0.91], [0.50, 0.70, 0.90]) == 0.0
    assert paired_p_value([0.25, 0.25], [0.25, 0.25]) == 1.0
    assert paired_p_value([0.1 + 0.2] * 3, [0.3] * 3) == 1.0  # nothing but rounding
    assert paired_p_value([0.0, 0.0], [0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match=r"b must hold as many values as a \(2\), got 1"):
        paired_p_value([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # Times 4, 3, 2 and 1; 2 * 0.03 is raised to 3 * 0.025, and 0.04 to that as well.
    assert holm([0.03, 0.01, 0.04, 0.025]) == pytest.approx([0.075, 0.04, 0.075, 0.075])
    assert holm([0.5, 0.9, 0.4]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_does_not_count_what_was_not_tested() -> None:
    assert holm([None, 0.01, None, 0.04, None]) == [None, 0.02, None, 0.04, None]
    assert holm([None]) == [None]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    """As Holm wrote it: go up from the smallest, and stop at the first above its share of the level."""
    adjusted = holm(p_values)
    level = 0.05
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - rank) * p_values[index] > level:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(adjusted) if value <= level} == rejected
    # Between the original and Bonferroni's.
    for before, after in zip(p_values, adjusted, strict=True):
        assert before <= after <= min(len(p_values) * before, 1.0) or before == after


def test_holm_errs_as_rarely_as_it_says() -> None:
    generator = np.random.default_rng(0)
    trials = 1000
    erred = 0
    for _ in range(trials):
        # Eight true hypotheses whose samples share a part, as claims on the same circuits do.
        samples = generator.normal(size=(8, 4)) + generator.normal(size=4)
        p_values = [paired_p_value(sample.tolist(), [0.0] * 4) for sample in samples]
        erred += min(holm(p_values)) <= 0.05
    # At most 50 expected, standard deviation 7: four of them above. Uncorrected tests err far more often.
    assert erred <= 78


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_holm_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(
        ValueError, match=r"p_values must be numbers in \[0, 1\], or None, got .* at position 1"
    ):
        holm([0.5, bad])


def power_by_integration(effect: float, count: int, level: float) -> float:
    """The power of the two-sided paired t-test, over the distribution of the sample's standard deviation."""
    freedom = count - 1
    critical = stats.t.isf(level / 2, freedom)
    deviations = (np.arange(200_000) + 0.5) / 200_000
    ratio = np.sqrt(stats.chi2.ppf(deviations, freedom) / freedom)
    shift = effect * math.sqrt(count)
    either = stats.norm.sf(critical * ratio - shift) + stats.norm.cdf(-critical * ratio - shift)
    return float(either.mean())


@pytest.mark.parametrize(
    ("count", "comparisons", "power"), [(2, 1, 0.8), (3, 8, 0.8), (5, 20, 0.5), (10, 1, 0.95), (34, 2, 0.8)]
)
def test_detectable_effect_has_its_power(count: int, comparisons: int, power: float) -> None:
    effect = detectable_effect(count, comparisons, power)
    assert power_by_integration(effect, count, 0.05 / comparisons) == pytest.approx(power, abs=1e-4)


def test_detectable_effect_as_tabulated() -> None:
    assert detectable_effect(10) == pytest.approx(0.9960, abs=5e-5)
    # G*Power: 34 pairs find d_z = 0.5 with power 0.8077775, so that a little less is found with that of 0.8.
    assert detectable_effect(34, power=0.8077775) == pytest.approx(0.5, abs=1e-6)
    # The normal approximation, 1.9600 + 0.8416 standard errors, is right for many.
    assert detectable_effect(100_000) * math.sqrt(100_000) == pytest.approx(2.8016, abs=1e-3)


def test_detectable_effect_shrinks_with_seeds_and_grows_with_comparisons() -> None:
    by_count = [detectable_effect(count) for count in (2, 3, 5, 20, 200)]
    assert by_count == sorted(by_count, reverse=True)
    by_tests = [detectable_effect(5, comparisons) for comparisons in (1, 2, 8, 100)]
    assert by_tests == sorted(by_tests)
    assert detectable_effect(5, power=0.9) > detectable_effect(5) > detectable_effect(5, confidence=0.9)
    assert detectable_effect(5, power=0.04) == 0.0  # chance alone does that


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 1}, "count must be an integer of at least 2, got 1"),
        ({"count": 5.0}, "count must be an integer of at least 2, got 5.0"),
        ({"count": 5, "comparisons": 0}, "comparisons must be a positive integer, got 0"),
        ({"count": 5, "power": 1.0}, "power must be a number between 0 and 1, both excluded, got 1.0"),
        (
            {"count": 5, "confidence": 95},
            "confidence must be a number between 0 and 1, both excluded, got 95",
        ),
    ],
)
def test_detectable_effect_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detectable_effect(**arguments)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 95, math.nan])
def test_bad_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must be above 0 and below 1, got"):
        mean_interval([1.0, 2.0], confidence)
    with pytest.raises(ValueError, match="confidence"):
        paired_interval([1.0, 2.0], [1.0, 2.0], confidence)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_no_scale_overflows_or_vanishes(scale):
    mean, half_width = mean_interval([scale * value for value in (1.0, 2.0, 4.0)])
    expected_mean, expected_width = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(scale * expected_mean)
    assert half_width == pytest.approx(scale * expected_width)


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
