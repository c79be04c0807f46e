"""Runs steps one after the other, each under its own time limit and all within one budget.

A step that fails, hangs or cannot be started costs the others nothing but its time. What it prints is in one folder:
NAME.log, and NAME.json where a step prints JSON; `summary.json` and `summary.txt` are written anew after each step, so
that a session which is cut off leaves them too. Standard library alone.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

KILL_AFTER_S = 5
"""Seconds between the signal that asks a step to end and SIGKILL."""
OVER_ITS_LIMIT = (124, 137)
"""Exit statuses of `timeout`."""
_TAIL = 12


@dataclass(frozen=True)
class Step:
    """A command with its limit.

    needs_s: with fewer seconds left in the budget it is not begun. json: its stdout is a JSON document (or lines).
    """

    name: str
    command: tuple[str, ...]
    limit_s: int
    needs_s: int = 10
    environment: Mapping[str, str] = field(default_factory=dict)
    json: bool = False


@dataclass(frozen=True)
class Result:
    """The result of a step. status: its exit status; None where it was not begun, and `note` says why."""

    name: str
    status: int | None
    seconds: float
    limit_s: int
    command: str
    note: str = ""


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    budget_s: float,
    environment: Mapping[str, str],
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Run the steps in the current folder; one result each, in order.

    budget_s: from now on, the last step's end included. Ctrl-C ends the running step and leaves the others out.
    """
    began, results, interrupted = clock(), list[Result](), False
    for step in steps:
        left = budget_s - KILL_AFTER_S - (clock() - began)
        if interrupted or left < step.needs_s:
            note = "left out: interrupted" if interrupted else f"left out: {max(left, 0):.0f} s left"
            results.append(Result(step.name, None, 0.0, step.limit_s, shlex.join(step.command), note))
        else:
            print(f"== {step.name}", flush=True)
            results.append(_run(step, folder, min(step.limit_s, int(left)), environment))
            interrupted = results[-1].note == "interrupted"
            _show(results[-1], folder)
        _write(results, folder)
    return results


def _run(step: Step, folder: Path, limit_s: int, environment: Mapping[str, str]) -> Result:
    """One step under `timeout`, which ends the whole process group."""
    command = ["timeout", f"--kill-after={KILL_AFTER_S}", str(limit_s), *step.command]
    began, status, note = time.monotonic(), 127, ""
    with (folder / f"{step.name}.log").open("wb") as log:
        output = (folder / f"{step.name}.json").open("wb") if step.json else log
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env={**environment, **step.environment},
            )
            try:
                status = child.wait()
            except KeyboardInterrupt:
                child.terminate()  # `timeout` passes it on
                status, note = child.wait(), "interrupted"
        except OSError as error:
            note = str(error)
        finally:
            if output is not log:
                output.close()
    seconds = round(time.monotonic() - began, 1)
    status = 128 - status if status < 0 else status  # `timeout` is in the group that it kills
    if status in OVER_ITS_LIMIT and seconds >= limit_s:
        note = f"over its limit of {limit_s} s"
    return Result(step.name, status, seconds, limit_s, shlex.join(step.command), note)


def _show(result: Result, folder: Path) -> None:
    """Print a line for a step that is done; after a failure the end of its log too."""
    print(f"   status {result.status}, {result.seconds:.1f} s {result.note}".rstrip(), flush=True)
    if result.status != 0:
        lines = (folder / f"{result.name}.log").read_text(errors="replace").splitlines()
        print(*(f"   | {line[:200]}" for line in lines[-_TAIL:]), sep="\n", flush=True)


def table(results: Sequence[Result]) -> str:
    """The results as lines of text: step, status, seconds, limit."""
    rows = [("step", "status", "seconds", "limit", "")]
    for one in results:
        status = "-" if one.status is None else str(one.status)
        rows.append((one.name, status, f"{one.seconds:.1f}", str(one.limit_s), one.note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, *numbers, note in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join([*cells, note]).rstrip())
    return "\n".join(lines)


def exit_status(results: Sequence[Result]) -> int:
    """0 where every step ended with 0; 1 else, also where one was left out."""
    return int(any(result.status != 0 for result in results))


def _write(results: Sequence[Result], folder: Path) -> None:
    """Write both summaries."""
    document = {"schema": "ddp-gpu-session/1", "python": sys.version.split()[0], "steps": [asdict(r) for r in results]}
    for name, text in (("summary.json", json.dumps(document, indent=1)), ("summary.txt", table(results))):
        unfinished = folder / f".{name}"
        unfinished.write_text(text + "\n")
        unfinished.replace(folder / name)
