"""Whether a process lacks CPU time: it could run, and the machine has no free core.

A rank on a busy machine may take seconds to answer, and looks like one whose native code holds Python's lock. The
kernel's scheduler statistics tell the two apart: a thread that holds the lock either sleeps or has the CPU, and a
thread that waits for it wakes up every 5 ms to ask for it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RUNNABLE = "R"
ENOUGH_S = 0.05
"""Ten times the interval after which Python hands its lock over: a thread that ran for so long has kept the lock."""
REQUESTS = 10
"""A thread that had the CPU this many times while it waited for Python's lock has asked for the lock often enough."""
WAITED = 0.2
"""A thread that waited for a CPU for at least this share of the time lacks CPU time."""
SETTLED_S = 0.3
"""How long the answering thread may take after another thread had its turn."""


class _Thread(NamedTuple):
    """State letter of proc_pid_stat(5); seconds on a CPU, seconds spent waiting for one, number of turns on one."""

    state: str = ""
    ran_s: float = 0.0
    waited_s: float = 0.0
    times: int = 0


class Scheduling:
    """The CPU time of a process's threads since this object was made. `asked`: the thread that should answer, 0 where
    that is not known. Never raises."""

    def __init__(self, pid: int, asked: int) -> None:
        self._pid, self._asked = pid, asked
        self._begin(_threads(pid), since_s=0.0)

    def _begin(self, threads: dict[int, _Thread], *, since_s: float) -> None:
        """Count from these readings on; `since_s`: how long the verdict then stays "starved"."""
        self._before, self._begun, self._since_s = threads, time.monotonic(), since_s
        self._always: set[int] | None = None

    def starved(self) -> bool:
        """Whether the answering thread has hardly had the CPU; or whether another thread, which may hold Python's lock,
        was runnable at every call and hardly ran, or ran only just now."""
        now, passed = _threads(self._pid), time.monotonic() - self._begun
        enough_s = min(ENOUGH_S, passed / 2)
        ready = {
            thread
            for thread, one in now.items()
            if one.state == RUNNABLE and one.ran_s - self._earlier(thread).ran_s < enough_s
        }
        others = (self._always or set()) - {self._asked}
        self._always = ready if self._always is None else self._always & ready
        if any(one in now and now[one].state != RUNNABLE for one in others) and passed >= self._since_s:
            # It had its turn and may have handed the lock over: now the answering thread needs its turn.
            self._begin(now, since_s=SETTLED_S)
            return True
        asked, before = now.get(self._asked, _Thread()), self._earlier(self._asked)
        waited = asked.waited_s - before.waited_s > WAITED * passed
        return bool(self._always) or passed < self._since_s or (waited and asked.times - before.times < REQUESTS)

    def _earlier(self, thread: int) -> _Thread:
        """The thread's first reading; zeros for a new thread."""
        return self._before.get(thread, _Thread())


def _threads(pid: int) -> dict[int, _Thread]:
    """Thread id -> its reading, for every thread of a process."""
    found = {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError, IndexError):
                found[int(entry.name)] = _thread(entry)
    return found


def _thread(entry: Path) -> _Thread:
    """One reading of a thread, from /proc/PID/task/TID."""
    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
    state = fields[0].decode()
    with suppress(OSError, ValueError):
        ran_ns, waited_ns, times = map(int, (entry / "schedstat").read_bytes().split())
        return _Thread(state, ran_ns / 1e9, waited_ns / 1e9, times)
    # A kernel without schedstat counts in hundredths of a second.
    return _Thread(state, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
