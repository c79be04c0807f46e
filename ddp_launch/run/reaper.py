"""A small process that outlives the launcher by a moment and ends what it leaves: `python -I -S reaper.py RUN`.

The launcher holds the only write end of the reaper's standard input. When the launcher is gone, for whatever reason,
the pipe closes, and every process of the run is killed: those with the run's mark in their environment, those in the
session of a rank, and their descendants. The kernel kills the ranks themselves (exec_with_pdeathsig.py); the reaper
kills the processes that they started. Only the standard library is imported, and as little of it as possible.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "DDP_LAUNCH_RUN"
"""The environment variable that marks the processes of a run. A run inside another adds its mark: `outer:inner`."""
ALL_IS_WELL = b"q"
LIMIT_S = 5.0
PAUSE_S = 0.02
QUIET_ROUNDS = 3


class Process:
    """A process as read from /proc. Errors: OSError where there is none."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # The second field, the name, is in brackets and may contain anything.
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        self.ended = fields[0] in (b"Z", b"X")
        self.parent, self.session, self.start = int(fields[1]), int(fields[3]), int(fields[19])

    def carries(self, mark: bytes) -> bool:
        """Whether the process's environment has the mark; False where the environment may not be read."""
        try:
            return mark in _read(f"/proc/{self.pid}/environ")
        except OSError:
            return False


def main(run: str) -> None:
    """Wait for the end of the launcher, then end the run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    ranks: dict[int, Process | None] = {}
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line == ALL_IS_WELL:
                return
            ranks[int(line)] = look(int(line))
    end_all(run, ranks)


def end_all(run: str, ranks: dict[int, Process | None]) -> None:
    """Send SIGKILL to every process of the run, until a few rounds in a row find none."""
    deadline, quiet = time.monotonic() + LIMIT_S, 0
    while quiet < QUIET_ROUNDS and time.monotonic() < deadline:
        quiet = 0 if kill(members(everyone(), run.encode(), ranks)) else quiet + 1
        time.sleep(PAUSE_S)


def members(processes: dict[int, Process], run: bytes, ranks: dict[int, Process | None]) -> set[int]:
    """The ids of the run's processes, by mark or session, and of their descendants."""
    found = set()
    for process in processes.values():
        if process.carries(run) or (process.session in ranks and _is_same(process.session, processes, ranks)):
            found.add(process.pid)
    tree = below(processes, found) - {os.getpid()}
    return {pid for pid in tree if not processes[pid].ended}


def _is_same(pid: int, processes: dict[int, Process], ranks: dict[int, Process | None]) -> bool:
    """Whether the process id still belongs to this rank: ids of ended processes are reused."""
    now, rank = processes.get(pid), ranks[pid]
    return now is None or (rank is not None and now.start == rank.start)


def below(processes: dict[int, Process], roots: set[int]) -> set[int]:
    """The roots and all their descendants, ended ones included."""
    found, size = set(roots), -1
    while size < len(found):
        size = len(found)
        found |= {process.pid for process in processes.values() if process.parent in found}
    return found


def everyone() -> dict[int, Process]:
    """All processes, by process id. A single reading may miss changes."""
    seen = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return {process.pid: process for process in seen if process is not None}


def look(pid: int) -> Process | None:
    """The process with this id; None where there is none."""
    try:
        return Process(pid)
    except (OSError, IndexError):
        return None


def kill(pids: set[int], number: int = signal.SIGKILL) -> bool:
    """Send the signal; whether it reached any process."""
    taken = False
    for pid in pids:
        try:
            os.kill(pid, number)
            taken = True
        except OSError:
            continue
    return taken


def _read(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb") as file:  # noqa: PTH123 (pathlib would double the time to start)
        return file.read()


if __name__ == "__main__":
    main(sys.argv[1])
