"""Whether a process is short of CPU time: it would run, and the machine has no core for it.

A rank of a busy machine may take seconds to answer, and looks like one whose native code holds Python's lock. What the
kernel's scheduler says of its threads tells the two apart: who holds the lock either sleeps or has the CPU, and who
waits for it wakes up every 5 ms to ask for it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RUNNABLE = "R"
ENOUGH_S = 0.05
"""Ten times the interval after which Python hands its lock to another thread: who ran for so long has kept it."""
REQUESTS = 10
"""Who has had the CPU so many times while it waited for Python's lock has asked for it often enough."""
WAITED = 0.2
"""The least share of the time for which a thread must have waited for a CPU, to be short of it."""
SETTLED_S = 0.3
"""How long the thread that is to answer may take after another one had its turn."""


class _Thread(NamedTuple):
    """A letter of proc_pid_stat(5); seconds on a CPU, seconds of waiting for one, how many times it has had one."""

    state: str = ""
    ran_s: float = 0.0
    waited_s: float = 0.0
    times: int = 0


class Scheduling:
    """What the threads of a process have been given since this was made. `asked`: the thread that is to answer, 0
    where that is not known. Never raises."""

    def __init__(self, pid: int, asked: int) -> None:
        self._pid, self._asked = pid, asked
        self._begin(_threads(pid), since_s=0.0)

    def _begin(self, threads: dict[int, _Thread], *, since_s: float) -> None:
        self._before, self._begun, self._since_s = threads, time.monotonic(), since_s
        self._always: set[int] | None = None

    def starved(self) -> bool:
        """Whether the thread that is to answer has hardly had the CPU, or one of the others, which may hold Python's
        lock, has wanted to run each time that this was called and hardly did, or did only just now."""
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
            # It had its turn, and may have handed the lock over: the thread that asked for it has yet to have its own.
            self._begin(now, since_s=SETTLED_S)
            return True
        asked, before = now.get(self._asked, _Thread()), self._earlier(self._asked)
        waited = asked.waited_s - before.waited_s > WAITED * passed
        return bool(self._always) or passed < self._since_s or (waited and asked.times - before.times < REQUESTS)

    def _earlier(self, thread: int) -> _Thread:
        return self._before.get(thread, _Thread())


def _threads(pid: int) -> dict[int, _Thread]:
    found = {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError, IndexError):
                found[int(entry.name)] = _thread(entry)
    return found


def _thread(entry: Path) -> _Thread:
    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
    state = fields[0].decode()
    with suppress(OSError, ValueError):
        ran_ns, waited_ns, times = map(int, (entry / "schedstat").read_bytes().split())
        return _Thread(state, ran_ns / 1e9, waited_ns / 1e9, times)
    # A kernel without schedstat counts in hundredths of a second.
    return _Thread(state, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
