"""What went wrong in a run, in one screen: which rank, how it ended, its last words, where the logs are.

`elastic.py` fills in the facts, this module words them. It imports no torch.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

__all__ = ["Failure", "Outcome", "exit_status", "in_words", "last_lines", "show"]

TAIL_LINES = 20
TAIL_BYTES = 64 * 1024
USER_ERROR_STATUS = 2

MEANINGS = {
    signal.SIGKILL: "killed from outside: by the kernel when memory ran out, by a job manager, or by a person",
    signal.SIGSEGV: "invalid memory access in native code",
    signal.SIGBUS: "a memory-mapped file could not be read: often a full /dev/shm or disk",
    signal.SIGABRT: "aborted in native code: its message stands above",
    signal.SIGILL: "an instruction that this processor does not have",
    signal.SIGTERM: "asked to end from outside",
    signal.SIGINT: "interrupted from outside",
}


@dataclass(frozen=True)
class Failure:
    """A rank that failed. `code`: Popen's returncode (-n for signal n); `logs` is empty for a rank on the screen."""

    rank: int
    host: str
    code: int
    logs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `status` is for the shell.

    `first`: the rank that failed first; `also`: ranks that failed after it, before they were asked to end;
    `message`: what the engine itself said, where no rank failed.
    """

    status: int
    first: Failure | None = None
    also: tuple[int, ...] = ()
    message: str | None = None
    attempts: int = 1


def exit_status(code: int) -> int:
    """The shell's status for a returncode: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def in_words(code: int) -> str:
    """A returncode for a person: `exit code 7`, `SIGKILL (signal 9): killed from outside ...`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        known = signal.Signals(-code)
    except ValueError:
        return f"signal {-code}"
    meaning = MEANINGS.get(known)
    return f"{known.name} (signal {-code})" + (f": {meaning}" if meaning else "")


def last_lines(path: Path, count: int = TAIL_LINES) -> list[str]:
    """The last `count` lines of a log that are not blank at its end; [] where there is none. Never raises."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.rstrip().splitlines()[-count:]


def show(console: Console, outcome: Outcome) -> None:
    """Print the summary; nothing after a success, one line where the program has explained itself."""
    if outcome.message is not None:
        console.print(f"[red]error:[/red] {escape(outcome.message)}", highlight=False, soft_wrap=True)
    failure = outcome.first
    if failure is None:
        return
    words = _last_words(failure)
    if failure.code == USER_ERROR_STATUS and (explained := _explanation(failure, words)) is not None:
        if explained:
            console.print(Text(explained), soft_wrap=True)
        return
    _show_failure(console, outcome, failure, words)


def _last_words(failure: Failure) -> list[str]:
    """The end of the rank's stderr, or of its stdout where stderr is empty."""
    return next((lines for log in reversed(failure.logs) if (lines := last_lines(log))), [])


def _explanation(failure: Failure, words: list[str]) -> str | None:
    """The program's own `error:` line; empty when it is on the screen already, None when there is none."""
    if not failure.logs:
        return ""
    if not words:
        # All ranks end so when rank 0 alone says why.
        return f"rank {failure.rank} on {failure.host}: {in_words(failure.code)}, without a word"
    return next((line for line in reversed(words) if "error:" in line), None)


def _show_failure(console: Console, outcome: Outcome, failure: Failure, words: list[str]) -> None:
    console.print()
    console.rule(f"[bold red]rank {failure.rank} failed[/bold red]", align="left", style="red")
    facts = [("rank", f"{failure.rank} on {failure.host}"), ("ended by", in_words(failure.code))]
    if outcome.also:
        facts.append(("after it", "ranks " + ", ".join(map(str, outcome.also)) + " failed as well"))
    if outcome.attempts > 1:
        facts.append(("attempts", f"{outcome.attempts}; this is the last one"))
    for name, value in facts:
        console.print(Text(f"{name:>9}  ", style="dim") + Text(value), soft_wrap=True)
    for line in words:
        console.print(Text("  │ " + line), soft_wrap=True)
    where = "its output stands above" if not failure.logs else "\n           ".join(map(str, failure.logs))
    console.print(Text(f"{'output':>9}  ", style="dim") + Text(where), soft_wrap=True)
