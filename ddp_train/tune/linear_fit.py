"""Straight lines through measurements: what costs a fixed part and a part for each sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope * x."""

    intercept: float
    slope: float

    def __call__(self, x: float) -> float:
        """y at x."""
        return self.intercept + self.slope * x


def fit(points: Iterable[tuple[float, float]]) -> Line | None:
    """The line of least squares through (x, y); None where there are fewer than two different x."""
    known = list(points)
    if len({x for x, _ in known}) < 2:
        return None
    mean_x = sum(x for x, _ in known) / len(known)
    mean_y = sum(y for _, y in known) / len(known)
    spread = sum((x - mean_x) ** 2 for x, _ in known)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in known) / spread
    return Line(mean_y - slope * mean_x, slope)
