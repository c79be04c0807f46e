"""A record of a run for other programs: JSON Lines, one object for each event, written immediately.

docs/events.md lists the events and their keys.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from ddp_core.errors import OptionError

STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Opened by its name, a file that standard output leads to would be truncated, and overwritten by what ranks print."""
USER_ERROR_STATUS = 2

Value = str | int | float | bool | None | Mapping[str, "Value"] | Sequence["Value"]


class EventLog:
    """Writes events, from any thread. A write error ends the record in that file, not the run."""

    def __init__(self, path: str | None, hear: Callable[[Mapping[str, Value]], None] | None = None) -> None:
        """`path`: the file, "-" for standard output, None for no record; `hear`: called with every event too. Errors:
        OptionError."""
        self._hear = hear
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._files: dict[int, str] = {} if path is None else {_open(path): "--json-events"}

    def append_to(self, path: Path) -> None:
        """From now on, add the events to this file too. A file that cannot be written leads to a note, not an error."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(path, flags, 0o666)
            with self._lock:
                self._files[file] = str(path)
            # A launcher that was killed may have left half a line.
            if (size := os.fstat(file).st_size) and os.pread(file, 1, size - 1) != b"\n":
                _write_all(file, b"\n")
        except OSError as error:
            print(f"note: {path}: {error.strerror}; the run has no record there", file=sys.stderr)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, SystemExit):
            self.end(error.code if isinstance(error.code, int) else 1)
        elif error is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            self.end(128 + signal.SIGINT if interrupted else USER_ERROR_STATUS, message=str(error))
        with self._lock:
            for file in [*self._files]:
                self._close(file)

    def write(self, event: str, at_ms: float | None = None, /, **facts: Value) -> None:
        """Write an event. `at_ms`: when it happened, in milliseconds of the monotonic clock; None is now."""
        now_ms = time.monotonic() * 1000
        at_ms = now_ms if at_ms is None else at_ms
        when = datetime.now(UTC) - timedelta(milliseconds=now_ms - at_ms)
        head: dict[str, Value] = {
            "event": event,
            "time": when.isoformat(timespec="milliseconds"),
            "monotonic_ms": round(at_ms, 3),
        }
        record = {**head, **facts}
        if self._hear is not None:
            self._hear(record)
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            for file, name in [*self._files.items()]:
                try:
                    _write_all(file, line)
                except OSError as error:
                    print(f"note: {name}: {error.strerror}; the record ends here", file=sys.stderr)
                    self._close(file)

    def end(self, status: int, **facts: Value) -> None:
        """Write the last event: the launcher ends with this status."""
        self.write("end", status=status, seconds=round(time.monotonic() - self._begin, 3), **facts)

    def _close(self, file: int) -> None:
        """Close a file. Lock held."""
        del self._files[file]
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    """Write all bytes. Errors: OSError."""
    while data:
        data = data[os.write(file, data) :]


def _open(path: str) -> int:
    """The descriptor to write to. Errors: OptionError."""
    if path in STANDARD_OUTPUT:
        # From now on descriptor 1 leads to standard error, so that standard output gets nothing but events.
        file = os.dup(1)
        os.dup2(2, 1)
        return file
    try:
        # O_NONBLOCK: opening a named pipe without a reader would block the launcher.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        fifo = _is_fifo(path)
        raise OptionError(f"--json-events {path!r}: {'nobody reads this pipe' if fifo else error.strerror}") from None
    os.set_blocking(file, True)
    return file


def _is_fifo(path: str) -> bool:
    """Whether the path is a named pipe."""
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False
