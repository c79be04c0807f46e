"""Measuring several ways of doing the same work in turn, on a machine that may be busy.

Every round measures each case once, in a new random order, inside a watched window; a round in which other processes
took more than their share of the CPUs (see quiet.py) is thrown away. What counts is the ratio within a round, whose
median and quartiles are reported; a case that is measured twice (A/A) shows the noise.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.quiet import watched

FEWEST = 5
"""Fewer clean rounds than this are no measurement."""
PATIENCE = 3
"""How many times the wanted number of rounds may be tried."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least two values."""
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def rounded(self, digits: int) -> dict[str, float]:
        """JSON-ready."""
        return {
            "median": round(self.median, digits),
            "low": round(self.low, digits),
            "high": round(self.high, digits),
        }

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True)
class Turns:
    """The clean rounds: what each case measured, by name. `disturbed`: rounds that were thrown away."""

    rounds: list[dict[str, float]]
    disturbed: int

    @property
    def enough(self) -> bool:
        """Whether there are enough clean rounds to speak of a measurement."""
        return len(self.rounds) >= FEWEST

    def values(self, case: str) -> Spread:
        """What a case measured, over the rounds."""
        return Spread.of([found[case] for found in self.rounds])

    def ratio(self, case: str, base: str) -> Spread:
        """`case` divided by `base` within each round."""
        return Spread.of([found[case] / found[base] for found in self.rounds])

    def difference(self, case: str, base: str) -> Spread:
        """`case` less `base` within each round."""
        return Spread.of([found[case] - found[base] for found in self.rounds])

    def best(self, cases: list[str]) -> str:
        """The case with the highest median."""
        return max(cases, key=lambda name: self.values(name).median)

    def account(self) -> dict[str, object]:
        """What belongs beside the figures: how many rounds they rest on, or why they are none."""
        counted: dict[str, object] = {"clean_rounds": len(self.rounds), "disturbed_rounds": self.disturbed}
        if not self.enough:
            counted["not_measured"] = f"{len(self.rounds)} undisturbed rounds, {FEWEST} are needed"
        return counted


def take_turns(cases: Mapping[str, Callable[[], float]], rounds: int, *, unit: str, seed: int = 0) -> Turns:
    """Measure each case in `rounds` clean rounds, or until three times as many have been tried.

    A case does its work and returns its figure, in `unit` (which is only shown). Processes that it starts must have
    ended, and been waited for, when it returns. One round before the first is not counted.
    """
    draw = random.Random(seed)
    for work in cases.values():
        work()

    def measure() -> dict[str, float]:
        measured = {name: cases[name]() for name in draw.sample(sorted(cases), len(cases))}
        return {name: measured[name] for name in cases}  # for a reader, in the order of the cases

    return take_figures(measure, rounds, unit=unit)


def take_figures(measure: Callable[[], dict[str, float]], rounds: int, *, unit: str) -> Turns:
    """The same where one call of `measure` has the figures of all cases; none is made before the first."""
    clean: list[dict[str, float]] = []
    disturbed = 0
    while len(clean) < rounds and len(clean) + disturbed < PATIENCE * rounds:
        with watched() as window:
            found = measure()
        disturbed += not window.clean
        if window.clean:
            clean.append(found)
        words = ", ".join(f"{name} {figure:,.4g}" for name, figure in found.items())
        print(f"{words} {unit}" + ("" if window.clean else f" (disturbed: {window.others:.0%})"), file=sys.stderr)
        if not window.clean:
            time.sleep(0.5)
    return Turns(clean, disturbed)
