"""Whether a process is short of CPU time, of real processes: one that sleeps, one that computes, one without a core."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ddp_launch.stall.scheduling import Scheduling

CORE = min(os.sched_getaffinity(0))
PINNED = f"import os\nos.sched_setaffinity(0, [{CORE}])\n"
BUSY = "while True: pass"


@contextmanager
def running(code: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.5)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def starved(pid: int) -> bool:
    """As it is asked for: some time after the beginning, and again while the answer is yes."""
    scheduling = Scheduling(pid, pid)
    time.sleep(0.5)
    return all(scheduling.starved() for _ in range(20) if time.sleep(0.02) is None)


def test_who_sleeps_is_not_short_of_a_core() -> None:
    with running("import time; time.sleep(60)") as pid:
        assert not starved(pid)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no idle class")
def test_who_would_run_and_cannot_is() -> None:
    idle = "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
    with running(PINNED + BUSY) as busy, running(PINNED + idle + BUSY) as pid:
        assert starved(pid)
        assert not starved(busy)


def test_who_is_gone_is_not() -> None:
    assert not starved(2**22 + 1)
