"""Where a rank was when it ended, and whether it hung: from its last words. Pure.

The bundled trainer's watchdog writes them for a rank that can no longer speak; the trainer itself adds its place to an
error. tests/faults holds both ends to the same words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ddp_launch.failure.log_tail import LastWords

__all__ = ["Hang", "Place", "hang_in", "left_in", "place_in"]

PLACE = r"(?:step (?P<step>\d+) \(epoch (?P<epoch>\d+)\)|before the first step), (?P<phase>[a-z ]+)"
HUNG = re.compile(
    rf"^HungRank: rank \d+ has made no progress for (?P<seconds>[\d.]+) s \(.*?\): {PLACE}(?:; (?P<why>.*))?"
)
RAISED = re.compile(rf"^rank \d+ was at {PLACE}")
LAST = 40
LEFT = re.compile(r"^RankLeft: rank \d+ left early")


@dataclass(frozen=True)
class Place:
    """Where a rank of the bundled trainer was. `step` and `epoch` from 1; None before the first step."""

    phase: str
    step: int | None = None
    epoch: int | None = None

    def __str__(self) -> str:
        where = f"step {self.step} (epoch {self.epoch})" if self.step is not None else "before the first step"
        return f"{where}, {self.phase}"


@dataclass(frozen=True)
class Hang:
    """A rank that was ended since it made no progress. `stopped`: by a signal such as SIGSTOP; `why`: what else is
    known, empty for nothing; `stack`: its Python stack, as Python shows that of an error; empty where it gave none."""

    place: Place
    seconds: float
    why: str = ""
    stack: tuple[str, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether its process had been stopped."""
        return "SIGSTOP" in self.why


def hang_in(words: LastWords) -> Hang | None:
    """How the rank of these last words hung; None where it did not."""
    for line in _latest(words):
        if found := HUNG.match(line):
            before = words.traceback
            stack = before[: before.index(line)] if line in before else ()
            return Hang(_place(found), float(found["seconds"]), found["why"] or "", stack)
    return None


def place_in(words: LastWords) -> Place | None:
    """Where the rank was; None for a program that does not tell."""
    for line in _latest(words):
        if found := RAISED.match(line) or HUNG.match(line):
            return _place(found)
    return None


def left_in(words: LastWords) -> bool:
    """Whether this rank was ended since another one had left it."""
    return any(LEFT.match(line) for line in _latest(words))


def _latest(words: LastWords) -> tuple[str, ...]:
    """The last lines, latest first: behind an error torch may have added some of its own."""
    return words.lines[: -LAST - 1 : -1]


def _place(found: re.Match[str]) -> Place:
    if found["step"] is None:
        return Place(found["phase"].strip())
    return Place(found["phase"].strip(), int(found["step"]), int(found["epoch"]))
