"""Finds and ends all processes of a run, also indirect ones, however the launcher ends.

The launcher adopts orphans among its descendants (prctl(2), PR_SET_CHILD_SUBREAPER), so all of them stay in the process
tree below it, even those with a session of their own or made to outlive their parents. The kernel ends the ranks with
the launcher (exec_with_pdeathsig.py). If the launcher is killed, a reaper ends the rest (reaper.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ddp_launch.run import exec_with_pdeathsig, reaper

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SCRIPT = (sys.executable, "-I", "-S")
WATCHDOG = "/ddp_train/watchdog/process.py"
PAUSE_S = 0.05
UNSEEN_TWICE = 2
DISMISS_S = 2.0
LAST_WAIT_S = 3.0
"""How long the kernel may take for a SIGKILL: a process that waits for a device or a network disk can be stuck."""


def with_pdeathsig(worker: Iterable[str]) -> tuple[str, ...]:
    """The command of a rank, wrapped so that the kernel ends it with this process. Start it from the main thread."""
    return (*SCRIPT, str(exec_with_pdeathsig.__file__), str(os.getpid()), *worker)


class ProcessTree:
    """The processes below this one, except the reaper, which is started here. Sets the mark in `os.environ`.

    Children that this process already has (`tensorboard & exec python launch.py`) are not part of the run.
    """

    def __init__(self) -> None:
        self._strangers = [one for one in reaper.everyone().values() if one.parent == os.getpid()]
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._ranks: set[int] = set()
        run = uuid.uuid4().hex
        reading, self._pipe = os.pipe()
        try:
            self._reaper = subprocess.Popen(
                (*SCRIPT, str(reaper.__file__), run),
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(reading)
        outer = os.environ.get(reaper.MARK)
        os.environ[reaper.MARK] = f"{outer}:{run}" if outer else run

    def watch(self, ranks: Iterable[int]) -> None:
        """Register ranks by their process ids, also with the reaper."""
        self._ranks = set(ranks)
        self._tell(b"".join(b"%d\n" % pid for pid in self._ranks))

    def left(self) -> set[int]:
        """The ids of processes that have not ended."""
        processes = reaper.everyone()
        for stranger in self._strangers:
            if (now := processes.get(stranger.pid)) is not None and now.start == stranger.start:
                del processes[stranger.pid]
        tree = reaper.below(processes, {os.getpid()}) - {os.getpid(), self._reaper.pid}
        return {pid for pid in tree if not processes[pid].ended}

    def in_background(self) -> dict[int, str]:
        """Process id -> name of the processes that are not in the session of a rank: a program put them there so that
        they continue without it, as a daemon does. The trainer's watchdog, which ends by itself, is none of them."""
        sessions = {*self._ranks, os.getsid(0)}
        found = (reaper.look(pid) for pid in self.left())
        apart = [one.pid for one in found if one is not None and one.session not in sessions]
        return {pid: _read(pid, "comm").strip() for pid in apart if WATCHDOG not in _read(pid, "cmdline")}

    def kill(self) -> None:
        """Send SIGKILL to all present processes. Never raises."""
        reaper.kill(self.left())

    def end(self, deadline: float, told: Iterable[int] = ()) -> None:
        """Send SIGTERM to all, and SIGKILL to those left at `deadline` (monotonic), until none is left.

        `told`: process groups that already got SIGTERM; a second one would interrupt their saving.
        """
        groups = set(told)
        reaper.kill({pid for pid in self.left() if _group(pid) not in groups}, signal.SIGTERM)
        deadline = max(deadline, time.monotonic())
        # One reading may miss a process whose parent ended meanwhile.
        unseen = 0
        while unseen < UNSEEN_TWICE and (now := time.monotonic()) < deadline + LAST_WAIT_S:
            left = self.left()
            unseen = 0 if left else unseen + 1
            if left and now >= deadline:
                reaper.kill(left)
            if left:
                time.sleep(PAUSE_S)
        self.reap()

    def reap(self) -> None:
        """Reap adopted processes that have ended. torch's agent waits for the ranks."""
        others = {*self._ranks, self._reaper.pid}
        with suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in others:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, *error: object) -> None:
        """End what is left, and the reaper."""
        self.end(deadline=0)
        self._tell(reaper.ALL_IS_WELL + b"\n")
        os.close(self._pipe)
        with suppress(subprocess.TimeoutExpired):
            self._reaper.wait(DISMISS_S)

    def _tell(self, text: bytes) -> None:
        """Write to the reaper's pipe."""
        # Without a reaper the ranks are still tied to the launcher.
        with suppress(OSError):
            os.write(self._pipe, text)


def _read(pid: int, file: str) -> str:
    """A file of a process in /proc; empty where it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    return ""


def _group(pid: int) -> int | None:
    """The process group of a process; None where it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
