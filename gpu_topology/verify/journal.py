"""The journal that each rank of verify's job writes before and after every step, so that a hanging job shows where.

One file of JSON lines per rank, in a folder that FOLDER_VARIABLE names. The ranks write, verify reads afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "GPU_TOPOLOGY_VERIFY"
"""Variable with the job's folder. It also marks the job's processes, since the folder's name is used only once."""

KINDS = ("start", "init", "compute", "copy", "send", "sum", "done")
"""Kinds of step in order: import of torch, communicator, matrix products, CUDA copies, sends, all-reduce, end."""


class Refused(Exception):
    """The rank's torch cannot do the job at all; recorded as a message without a traceback."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a rank; `a` and `b` are the ranks of a copy or send from a to b."""

    kind: str
    a: int | None = None
    b: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A finished step. `problem`: what was wrong with the data; `gb_s`: 10^9 bytes per second; `tflop_s`: 10^12
    operations per second."""

    step: Step
    problem: str | None = None
    gb_s: float | None = None
    tflop_s: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """The content of a rank's journal.

    results     the finished steps
    open        the step that the rank was in when it wrote last, None between steps
    failed      the exception that ended the rank
    unreadable  the first line that a journal cannot have
    """

    results: tuple[Result, ...] = ()
    open: Step | None = None
    failed: str | None = None
    unreadable: str | None = None

    @property
    def done(self) -> bool:
        """Whether the rank finished."""
        return any(result.step.kind == "done" for result in self.results)


class Journal:
    """The file of one rank. Every line is written out before the step continues, since the rank may die in it."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = _path(folder, rank).open("w", buffering=1, encoding="utf-8")

    def begin(self, step: Step) -> None:
        """Record the start of a step; call it before the step."""
        self._write({"begin": step.kind, "a": step.a, "b": step.b})

    def end(
        self, step: Step, problem: str | None = None, gb_s: float | None = None, tflop_s: float | None = None
    ) -> None:
        """Record the end of a step with its results; call it after the step."""
        speeds = {"gb_s": gb_s, "tflop_s": tflop_s}
        self._write({"end": step.kind, "a": step.a, "b": step.b, "problem": problem, **speeds})

    def fail(self, message: str) -> None:
        """Record the exception that ends the rank; call it before the rank exits."""
        self._write({"failed": message})

    def _write(self, line: dict[str, object]) -> None:
        """Append one line of JSON."""
        self._file.write(json.dumps(line) + "\n")


def read_record(folder: Path, rank: int) -> Record:
    """A rank's journal; an empty record where it wrote none. Never raises."""
    try:
        text = _path(folder, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Record()
    results: list[Result] = []
    current: Step | None = None
    failed: str | None = None
    # The last piece is empty, or a line that the rank did not finish.
    for line in text.split("\n")[:-1]:
        try:
            entry = _parse(line)
        except (ValueError, TypeError, LookupError, RecursionError):
            return Record(tuple(results), current, failed, unreadable=line[:200])
        if isinstance(entry, str):
            failed = entry
        elif isinstance(entry, Result):
            results.append(entry)
            current = None
        else:
            current = entry
    return Record(tuple(results), current, failed)


def _parse(line: str) -> Step | Result | str:
    """The step, result or failure of a line. Errors: ValueError, KeyError."""
    entry = json.loads(line)
    if "failed" in entry:
        return str(entry["failed"])
    a, b = entry["a"], entry["b"]
    kind = entry.get("begin", entry.get("end"))
    if kind not in KINDS or not all(place is None or isinstance(place, int) for place in (a, b)):
        raise ValueError(line)
    step = Step(kind, a, b)
    if "begin" in entry:
        return step
    problem = entry["problem"]
    speeds = (None if speed is None else float(speed) for speed in (entry["gb_s"], entry.get("tflop_s")))
    return Result(step, None if problem is None else str(problem), *speeds)


def _path(folder: Path, rank: int) -> Path:
    """The journal of a rank."""
    return folder / f"rank-{rank}.jsonl"
