"""Measures several ways of doing the same work in turns, on a machine that may be busy.

Every round measures each case once, in a new random order. A round is thrown away if other processes took more than a
tenth of the CPUs during it, as the kernel accounts it. What counts is the ratio within a round: its median and
quartiles are reported. A case that is measured twice (A/A) shows the noise.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil

LIMIT = 0.10
"""Share of the machine's CPU time that other processes may take before a window counts as disturbed."""
FEWEST = 5
"""Fewer clean rounds than this do not count as a measurement."""
PATIENCE = 3
"""How many times the wanted number of rounds may be tried."""


@dataclass
class Window:
    """One measured stretch of time. `others`: the share of all CPU time that went to other processes, 0 to 1."""

    others: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether the window may be counted."""
        return self.others <= LIMIT


@contextmanager
def watched(ours: Callable[[], float] = lambda: 0.0) -> Iterator[Window]:
    """Account for the time inside the block. Children must have ended, and been waited for, before its end; `ours`: CPU
    seconds so far of child processes that live on."""
    window = Window()
    busy, total, own = *machine_seconds(), sum(os.times()[:4]) + ours()
    yield window
    busy_after, total_after, own_after = *machine_seconds(), sum(os.times()[:4]) + ours()
    elapsed = max(total_after - total, 1e-9)
    window.others = max(0.0, (busy_after - busy) - (own_after - own)) / elapsed


def machine_seconds() -> tuple[float, float]:
    """Busy and total CPU seconds since boot (proc_stat(5): user nice system idle iowait irq softirq steal)."""
    times = psutil.cpu_times()[:8]
    return sum(times) - times[3] - times[4], sum(times)


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least two values."""
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def rounded(self, digits: int) -> dict[str, float]:
        """The rounded figures, JSON-ready."""
        return {name: round(value, digits) for name, value in asdict(self).items()}

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

    @property
    def cases(self) -> list[str]:
        """The names of the cases, in their order; none without a round."""
        return list(self.rounds[0]) if self.rounds else []

    def values(self, case: str) -> Spread:
        """What a case measured, over the rounds."""
        return Spread.of(found[case] for found in self.rounds)

    def ratio(self, case: str, base: str) -> Spread:
        """`case` divided by `base` within each round."""
        return Spread.of(found[case] / found[base] for found in self.rounds)

    def difference(self, case: str, base: str) -> Spread:
        """`case` minus `base` within each round."""
        return Spread.of(found[case] - found[base] for found in self.rounds)

    def rows(self, base: str, form: str, relation: Callable[[str, str], Spread], relation_form: str) -> list[list[str]]:
        """A row for each case: its name, its figure, and its `ratio` or `difference` to `base`."""
        return [[case, f"{self.values(case):{form}}", f"{relation(case, base):{relation_form}}"] for case in self.cases]

    def rounded(self, digits: int | None = None) -> list[dict[str, float]]:
        """The rounds, JSON-ready."""
        return [{case: round(figure, digits) for case, figure in found.items()} for found in self.rounds]

    def best(self, cases: list[str]) -> str:
        """The case with the highest median."""
        return max(cases, key=lambda name: self.values(name).median)

    def account(self) -> dict[str, Any]:
        """What belongs to the figures: how many rounds they rest on, or why there are none."""
        counted: dict[str, Any] = {"clean_rounds": len(self.rounds), "disturbed_rounds": self.disturbed}
        if not self.enough:
            counted["not_measured"] = f"{len(self.rounds)} undisturbed rounds, {FEWEST} are needed"
        return counted


def take_turns(cases: Mapping[str, Callable[[], float]], rounds: int, *, unit: str) -> Turns:
    """Measure each case in `rounds` clean rounds, or until three times as many have been tried.

    A case does its work and returns its figure, in `unit` (only shown). Processes that it starts must have
    ended, and been waited for, when it returns. One round before the first is not counted.
    """
    draw = random.Random(0)
    for work in cases.values():
        work()

    def measure() -> dict[str, float]:
        """Measure each case once, in a random order."""
        measured = {name: cases[name]() for name in draw.sample(sorted(cases), len(cases))}
        return {name: measured[name] for name in cases}  # in the order of the cases, for the reader

    return take_figures(measure, rounds, unit=unit)


def take_figures(
    measure: Callable[[], dict[str, float]], rounds: int, *, unit: str, ours: Callable[[], float] = lambda: 0.0
) -> Turns:
    """Like `take_turns`, but one call of `measure` returns the figures of all cases. Every call counts, the first too.
    `ours`: CPU seconds so far of processes that take part and live on."""
    clean: list[dict[str, float]] = []
    disturbed = 0
    while len(clean) < rounds and len(clean) + disturbed < PATIENCE * rounds:
        with watched(ours) as window:
            found = measure()
        figures = ", ".join(f"{name} {figure:,.4g}" for name, figure in found.items())
        print(f"{figures} {unit}" + ("" if window.clean else f" (disturbed: {window.others:.0%})"), file=sys.stderr)
        if window.clean:
            clean.append(found)
        else:
            disturbed += 1
            time.sleep(0.5)
    return Turns(clean, disturbed)
