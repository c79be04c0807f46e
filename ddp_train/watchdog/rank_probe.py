"""One rank as the watchdog sees it from outside: by its beats, by /proc, and by the stack that it gives on request."""

from __future__ import annotations

import mmap
import os
import signal
from contextlib import suppress
from pathlib import Path

from ddp_core.rank_report import ERROR_FILE
from ddp_train.distributed.heartbeat import BEAT, DUMP_SIGNAL, PHASES
from ddp_train.watchdog import python_stacks
from ddp_train.watchdog.verdict import Sight

STACK_S = 0.4
ENDED, DEBUGGED = ("Z", "X", ""), "t"
WORK = ("data", "forward", "step", "evaluation")
"""Phases in which a rank waits for no other rank: their durations show what is usual."""


class Rank:
    """One rank of this node, as seen from outside. Errors: OSError where its process does not exist."""

    def __init__(self, number: int, pid: int, beats: int, dumps: int) -> None:
        self.number, self.pid = number, pid
        self.ending = _pidfd(pid)
        file = os.open(f"/proc/{pid}/fd/{beats}", os.O_RDONLY)
        self._memory = mmap.mmap(file, BEAT.size, prot=mmap.PROT_READ)
        os.close(file)
        self._stacks = os.open(f"/proc/{pid}/fd/{dumps}", os.O_RDONLY)
        self.error_file = _error_file(pid)
        self._beat = (-1, -1, 0, 0, -1)
        self._silent = self._stopped = self.gone_s = 0.0
        self._is_stopped = False
        self._waits: bool | None = None
        self.frames: list[python_stacks.Frame] = []
        """The stack that it gave when it was asked since its last beat; [] if it was not asked."""
        self.status: int | None = None
        """Its status, as waitpid(2) reports it; None: it has not ended; -1: it was gone before the status was read."""

    @property
    def first_step(self) -> int:
        """The first step of its process; -1 before that step."""
        return self._beat[4]

    def look(self, awake: float) -> float:
        """Read its beat and state. `awake`: seconds for which the watchdog has run since the last look: a node that was
        suspended has not hung. Returns the seconds between beats in a phase of WORK after the first step, else 0."""
        if self.status is not None:
            self.gone_s += awake
            return 0.0
        state, status = _state(self.pid)
        beat, gap = BEAT.unpack_from(self._memory), 0.0
        if state in ENDED:
            self._beat, self.status = beat, status
        elif beat != self._beat:
            if 0 <= self.first_step < beat[1] and PHASES[self._beat[2]] in WORK:
                gap = self._silent
            self._beat, self._silent, self._waits, self.frames = beat, 0.0, None, []
        elif state != DEBUGGED:
            self._silent += awake
        before, self._is_stopped = self._is_stopped, state == "T"
        self._stopped = self._stopped + awake if before and self._is_stopped else 0.0
        return gap

    @property
    def sight(self) -> Sight:
        """What is known of this rank since the last look."""
        epoch, step, phase, _, _ = self._beat
        return Sight(
            rank=self.number,
            epoch=epoch,
            step=step,
            phase="done" if self.status is not None and not self.left else PHASES[phase],
            silent_s=self._silent,
            stopped_s=self._stopped,
            waits=bool(self._waits),
            left_s=self.gone_s if self.left else None,
        )

    @property
    def left(self) -> bool:
        """Whether it has ended with status 0 before the end of the run."""
        return self.status == 0 and PHASES[self._beat[2]] not in ("done", "failed")

    def ask(self, limit: float) -> None:
        """If the rank has been silent for longer than `limit` seconds, find out, once, whether it waits for others."""
        if self.status is None and self._waits is None and self._silent > limit and not self._is_stopped:
            self.frames = self.stack()
            self._waits = python_stacks.waits(self.frames)

    def stack(self) -> list[python_stacks.Frame]:
        """Its current Python stack; [] where it does not answer."""
        already = os.fstat(self._stacks).st_size
        if not self.tell(DUMP_SIGNAL):
            return []
        if self._is_stopped:
            self.tell(signal.SIGCONT)
        return python_stacks.parse(python_stacks.written(self._stacks, already, STACK_S, self._writes))

    def _writes(self) -> bool:
        """Whether it is still writing its stacks. The kernel delivers the signal to the main thread."""
        return python_stacks.handles(self.pid, self.pid, DUMP_SIGNAL)

    @property
    def is_there(self) -> bool:
        """Whether the process is still running at this moment."""
        return _state(self.pid)[0] not in ENDED

    def tell(self, number: int) -> bool:
        """Send the process a signal; returns whether that succeeded."""
        with suppress(OSError):
            if self.ending is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self.ending, number)
            return True
        return False

    def write(self, text: str) -> bool:
        """Append to the rank's standard error; returns whether that succeeded."""
        with suppress(OSError):
            # Non-blocking: perhaps no process reads at the other end.
            file = os.open(f"/proc/{self.pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                return os.write(file, text.encode(errors="replace")) > 0
            finally:
                os.close(file)
        return False


def _state(pid: int) -> tuple[str, int]:
    """The state of a process (a letter, proc_pid_stat(5)), and its status (waitpid(2)) once it has ended; "" and -1
    where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", -1
    return fields[0].decode(), int(fields[49])


def _error_file(pid: int) -> str | None:
    """The error file that torch's agent has assigned to the process; None without an agent."""
    head = f"{ERROR_FILE}=".encode()
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    name = next((os.fsdecode(word.removeprefix(head)) for word in words if word.startswith(head)), None)
    return str(Path(f"/proc/{pid}/cwd").readlink() / name) if name else None


def _pidfd(pid: int) -> int | None:
    """A pidfd of the process; None before Linux 5.3, where its process id is used instead."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
