"""What happens in a run, for machines: JSON Lines, one object for each event, written at once.

docs/events.md lists the events and their keys.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.failures import Attempt, Failure, exit_status, in_words, signal_name
from launcher.remedies import Remedy
from launcher.values import OptionError

__all__ = ["SCHEMA", "EventLog", "Value"]

SCHEMA = "ddp-launch-events/1"
STANDARD_OUTPUT = "-"
LAST_LINES = 40
USER_ERROR_STATUS = 2

Value = str | int | float | bool | None | Mapping[str, "Value"] | Sequence["Value"]


class EventLog:
    """Writes events, from any thread. A file that can no longer be written to ends the record, not the run."""

    def __init__(self, path: str | None) -> None:
        """`path`: the file, "-" for standard output, None for no record. Errors: OptionError."""
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._file = None if path is None else _open(path)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, SystemExit):
            self.end(error.code if isinstance(error.code, int) else 1)
        elif error is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            self.end(128 + signal.SIGINT if interrupted else USER_ERROR_STATUS, message=str(error))
        with self._lock:
            self._close()

    def write(self, event: str, at_ms: float | None = None, /, **facts: Value) -> None:
        """Add an event. `at_ms`: when it happened, milliseconds of the monotonic clock; None is now."""
        now_ms = time.monotonic() * 1000
        at_ms = now_ms if at_ms is None else at_ms
        when = datetime.now(UTC) - timedelta(milliseconds=now_ms - at_ms)
        head = {"event": event, "time": when.isoformat(timespec="milliseconds"), "monotonic_ms": round(at_ms, 3)}
        line = json.dumps({**head, **facts}).encode() + b"\n"
        with self._lock:
            if self._file is None:
                return
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError as error:
                print(f"note: --json-events: {error.strerror}; the record ends here", file=sys.stderr)
                self._close()

    def plan(self, plan: Mapping[str, Any], logs: Path) -> None:
        """A run is about to start. `plan`: as --dry-run --json prints it."""
        self.write("plan", schema=SCHEMA, host=socket.gethostname(), pid=os.getpid(), plan=plan, logs=str(logs))

    def end(self, status: int, **facts: Value) -> None:
        """The launcher ends with this status: the last event."""
        self.write("end", status=status, seconds=round(time.monotonic() - self._begin, 3), **facts)

    def attempt(self, number: int, ranks: Mapping[int, int], world_size: int, logs: Path) -> None:
        """The ranks of an attempt have started. `ranks`: rank -> process id, of this node."""
        pids = {str(rank): pid for rank, pid in ranks.items()}
        self.write("attempt", attempt=number, world_size=world_size, pids=pids, logs=str(logs))

    def rank_end(self, attempt: int, rank: int, code: int, ended_ms: float | None, *, stopped: bool) -> None:
        """A rank has ended, well or not. `code` is Popen's returncode."""
        self.write("rank-end", ended_ms, attempt=attempt, rank=rank, stopped=stopped, **_end(code))

    def failure(self, attempt: Attempt, remedy: Remedy | None) -> None:
        """An attempt has failed: its first failure, and what became of the other ranks."""
        first = attempt.first
        if first is None:
            return
        others = [other for other in attempt.failures if other is not first]
        self.write(
            "failure",
            first.ended_ms,
            attempt=attempt.number,
            rank=first.rank,
            host=first.host,
            **_end(first.code),
            words=in_words(first.code),
            error=first.words.error,
            last_lines=list(first.words.shown(LAST_LINES)),
            logs=[str(log) for log in first.logs],
            victims=_ranks(other for other in others if other.victim),
            failed_as_well=_ranks(other for other in others if not other.victim and not other.stopped),
            stopped=_ranks(other for other in others if not other.victim and other.stopped),
            remedy=None
            if remedy is None
            else {"name": remedy.name, "meaning": remedy.meaning, "advice": remedy.advice},
        )

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open(path: str) -> int:
    if path == STANDARD_OUTPUT:
        # What the program prints goes to standard error: the record stays pure.
        file = os.dup(1)
        os.dup2(2, 1)
        return file
    try:
        # Without a reader a named pipe would keep the launcher waiting.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        fifo = _is_fifo(path)
        raise OptionError(f"--json-events {path!r}: {'nobody reads this pipe' if fifo else error.strerror}") from None
    os.set_blocking(file, True)
    return file


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False


def _end(code: int) -> dict[str, Value]:
    """A returncode as its parts: of `exit_code` and `signal` one is null; `status` is the shell's."""
    return {
        "status": exit_status(code),
        "exit_code": code if code >= 0 else None,
        "signal": signal_name(code) if code < 0 else None,
    }


def _ranks(failures: Iterable[Failure]) -> list[int]:
    return sorted(failure.rank for failure in failures)
