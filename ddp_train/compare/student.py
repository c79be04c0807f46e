"""Welch's t test of two small samples, without SciPy: is the difference of two means more than their spread?

B. L. Welch, "The generalization of 'Student's' problem when several different population variances are involved",
Biometrika 34 (1947). The incomplete beta function is the continued fraction of DLMF 8.17.22, by Lentz's method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.95
_TINY, _STEPS, _ENOUGH = 1e-300, 500, 1e-15


@dataclass(frozen=True)
class Welch:
    """difference: of the means, second minus first; low, high: its 95% interval; p: two-sided p-value.

    freedom: degrees of freedom.
    """

    difference: float
    low: float
    high: float
    p: float
    freedom: float


def welch(first: Sequence[float], second: Sequence[float]) -> Welch | None:
    """Welch's t test. None where a sample has fewer than two values, or neither has any spread: no test is possible."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [stdev(values) ** 2 / len(values) for values in (first, second)]
    difference, squared = fmean(second) - fmean(first), sum(parts)
    if squared == 0:
        return None
    freedom = squared**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    error = math.sqrt(squared)
    reach = quantile(LEVEL, freedom) * error
    return Welch(difference, difference - reach, difference + reach, two_sided(difference / error, freedom), freedom)


def two_sided(t: float, freedom: float) -> float:
    """The chance of a |t| at least as large under Student's distribution."""
    return _beta(freedom / (freedom + t * t), freedom / 2, 0.5) if math.isfinite(t) else 0.0


def quantile(level: float, freedom: float) -> float:
    """The |t| within which a share `level` of Student's distribution is."""
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > 1 - level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / _far(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, _STEPS):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _far(1 + top * d)
            c = _far(1 + top / c)
            found *= c * d
        if abs(c * d - 1) < _ENOUGH:
            break
    return front * found


def _far(value: float) -> float:
    """`value`, or _TINY where it is too close to 0 to divide by."""
    return value if abs(value) > _TINY else _TINY
