"""Welch's test against SciPy's."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from ddp_train.compare.student import quantile, two_sided, welch


@pytest.mark.parametrize("sizes", [(2, 2), (2, 9), (3, 5), (10, 4), (200, 50)])
@pytest.mark.parametrize("apart", [0.0, 0.5, 20.0])
def test_like_scipy(sizes: tuple[int, int], apart: float) -> None:
    draw = random.Random(f"{sizes} {apart}")
    first = [draw.gauss(0, 1) for _ in range(sizes[0])]
    second = [draw.gauss(apart, 3) for _ in range(sizes[1])]
    found, expected = welch(first, second), stats.ttest_ind(second, first, equal_var=False)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.freedom == pytest.approx(expected.df, rel=1e-12)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("freedom", [1.0, 1.3, 2.0, 7.5, 30.0, 1e4])
def test_the_distribution(freedom: float) -> None:
    assert quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    for t in (0.0, 1e-9, 0.3, -2.0, 40.0):
        assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-8, abs=1e-15)


def test_nothing_is_said_without_a_spread() -> None:
    assert welch([1.0], [1.0, 2.0]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) is None
    assert welch([1.0, 1.0], [2.0, 3.0]) is not None
