"""Paired tests against scipy called directly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gloss_graph.runs import holm, paired_test
from gloss_graph.runs.comparison import mean_interval

ONE = [0.91, 0.88, 0.95, 0.90, 0.93]
OTHER = [0.89, 0.89, 0.90, 0.86, 0.92]


def test_known_numbers() -> None:
    test = paired_test(ONE, OTHER)
    gaps = np.subtract(ONE, OTHER)
    expected = stats.ttest_rel(ONE, OTHER)
    assert test.pairs == 5
    assert test.difference == pytest.approx(0.022)
    assert test.p_t == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high))
    # In thousandths, so that 0.91 - 0.90 ties with 0.89 - 0.90.
    assert test.p_wilcoxon == stats.wilcoxon([20, -10, 50, 40, 10]).pvalue
    assert test.effect == pytest.approx(gaps.mean() / gaps.std(ddof=1))


def test_the_sign_is_that_of_the_first_series() -> None:
    one, other = paired_test(ONE, OTHER), paired_test(OTHER, ONE)
    assert other.difference == -one.difference
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert (other.p_t, other.p_wilcoxon) == pytest.approx((one.p_t, one.p_wilcoxon))


@pytest.mark.parametrize(("one", "other"), [([], []), ([0.5], [0.4])])
def test_fewer_than_two_pairs_say_nothing(one: list[float], other: list[float]) -> None:
    test = paired_test(one, other)
    assert test.pairs == len(one)
    values = [test.low, test.high, test.p_t, test.p_wilcoxon, test.effect]
    assert all(map(math.isnan, values))
    assert math.isnan(test.difference) == (not one)
    if one:
        assert test.difference == pytest.approx(0.1)


def test_no_difference_at_all() -> None:
    test = paired_test(ONE, ONE)
    assert test.difference == 0
    assert all(map(math.isnan, (test.p_t, test.p_wilcoxon, test.effect, test.low)))


def test_equal_differences_have_no_spread_to_test_against() -> None:
    """Also where rounding makes them differ in the last digit; the ranks still count."""
    test = paired_test([0.3, 0.2, 0.4], [0.2, 0.1, 0.3])
    assert test.difference == pytest.approx(0.1)
    assert all(map(math.isnan, (test.p_t, test.effect, test.low, test.high)))
    assert test.p_wilcoxon == stats.wilcoxon([1, 1, 1]).pvalue == 0.25


def test_some_equal_pairs_and_ties() -> None:
    test = paired_test([0.5, 0.6, 0.9, 0.7], [0.5, 0.5, 0.8, 0.9])
    assert test.p_wilcoxon == stats.wilcoxon([0, 1, 1, -2]).pvalue
    assert test.p_t == pytest.approx(stats.ttest_1samp([0, 1, 1, -2], 0).pvalue)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ([1.0], [1.0, 2.0], "'values' must pair with 'baseline'"),
        ([1.0, math.nan], [1.0, 2.0], "must be finite"),
        ([1.0, 2.0], [math.inf, 2.0], "must be finite"),
    ],
)
def test_bad_series(one: list[float], other: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_test(one, other)


def test_interval_of_a_mean() -> None:
    low, high = mean_interval(ONE)
    expected = stats.t.interval(0.95, 4, np.mean(ONE), stats.sem(ONE))
    assert (low, high) == pytest.approx(expected)
    assert all(map(math.isnan, mean_interval([0.5])))


def test_holm_on_a_worked_example() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([math.nan, 0.02, math.nan, 0.5])
    assert found[1::2] == pytest.approx([0.04, 0.5])
    assert math.isnan(found[0])
    assert math.isnan(found[2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        assert p <= found <= 1
        assert found <= max(len(p_values) * p, max(corrected)) + 1e-12
    places = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[places]) >= 0).all()
    smallest = int(places[0])
    assert corrected[smallest] == pytest.approx(min(1, len(p_values) * p_values[smallest]))
