"""One rank as the launcher sees it: /proc, the stacks that faulthandler writes, and the answers of its thread.

Asks the rank's process or, where that is no Python (a shell script), the process below it that can answer.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddp_launch.stall.in_rank.sitecustomize import SIGNAL_BELOW_LAST, STACKS
from ddp_launch.stall.in_rank.torch_internals import BRIEF, FULL, HEAD, MAIL
from ddp_launch.stall.record import Record, parse
from ddp_launch.stall.scheduling import Scheduling
from ddp_train.watchdog import python_stacks

STACK_SIGNAL = signal.SIGRTMAX - SIGNAL_BELOW_LAST
ENDED = ("Z", "X", "")
STOPPED = "T"


class _Head(NamedTuple):
    """The start of an answer: see in_rank/torch_internals.py."""

    process: int
    thread: int
    pipe: int
    pipe_inode: int
    answered: int
    full: bool
    last: bool
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """An answer of a rank's thread: the recorders' dumps, the rest as JSON. full: with single collectives."""

    gloo: bytes
    nccl: bytes
    facts: bytes
    full: bool

    @property
    def record(self) -> Record | None:
        """The parsed answer; None for a brief one."""
        return parse((self.gloo, self.nccl), self.facts) if self.full else None


class RankProbe:
    """A rank of this machine, by its process. Never raises: what cannot be read counts as missing."""

    def __init__(self, rank: int, pid: int) -> None:
        self.rank, self.pid = rank, pid
        self._asked: tuple[int, bool] | None = None
        """How many questions had been answered when we asked last, and whether we asked for a full answer."""
        self._target = self._writer = 0
        self._stacks: int | None = None
        self._mail: int | None = None
        self._pipe: int | None = None

    def find(self) -> bool:
        """Look for the rank's files, if not yet found; whether its thread can be asked."""
        if self._mail is None:
            for pid in _family(self.pid):
                if self._take(pid):
                    break
        return self._mail is not None

    def _take(self, pid: int) -> bool:
        """Open the files of a process; whether it has a thread that answers."""
        files = {name: number for number, name in _files(pid) if name in (STACKS, MAIL)}
        if STACKS in files and self._stacks is None:
            self._target, self._stacks = pid, _open(pid, files[STACKS], os.O_RDONLY)
        if MAIL not in files or (mail := _open(pid, files[MAIL], os.O_RDONLY)) is None:
            return False
        head = _head(mail)
        # A forked process has its parent's memory, but not the thread.
        if head is None or head.process != pid or not _is_pipe(pid, head.pipe, head.pipe_inode):
            os.close(mail)
            return False
        if pid != self._target:
            self._target, self._stacks = pid, _open(pid, files[STACKS], os.O_RDONLY) if STACKS in files else None
        self._mail, self._pipe = mail, _open(pid, head.pipe, os.O_WRONLY | os.O_NONBLOCK)
        return True

    @property
    def target(self) -> int:
        """The process that is asked: the rank's, or one below it."""
        return self._target or self.pid

    @property
    def state(self) -> str:
        """The state letter of the rank's process, proc_pid_stat(5); empty where it is gone."""
        state = _state(self.pid)
        return state if state in (*ENDED, STOPPED) or self._target in (0, self.pid) else _state(self._target) or state

    @property
    def has_group(self) -> bool:
        """Whether it has been seen with a process group."""
        return self._mail is not None

    @property
    def is_leaving(self) -> bool:
        """Whether its program has ended and Python is closing: it has given its last answer."""
        head = None if self._mail is None else _head(self._mail)
        return head is not None and head.last

    @property
    def has_torch(self) -> bool:
        """Whether its process has loaded torch: without torch it cannot wait in torch.distributed."""
        for pid in _family(self.pid):
            with suppress(OSError):
                if "libtorch" in Path(f"/proc/{pid}/maps").read_text(errors="replace"):
                    return True
        return False

    @property
    def switches(self) -> int:
        """How often its main thread has begun to wait (voluntary context switches, proc_pid_status(5))."""
        pid = self.target
        with suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])
        return 0

    @property
    def pending(self) -> bool:
        """Whether a question has not been answered yet."""
        head = None if self._mail is None else _head(self._mail)
        if head is None or self._asked is None or head.last:
            return False
        # Another process (`stacks`) may have asked the rank and got a brief answer meanwhile.
        count, full = self._asked
        return head.answered == count or (full and not head.full)

    def ask(self, *, full: bool) -> bool:
        """Ask the thread, unless a question is pending; whether that worked."""
        if not self.find() or self._pipe is None or self.pending:
            return False
        with suppress(OSError):
            head = None if self._mail is None else _head(self._mail)
            os.write(self._pipe, FULL if full else BRIEF)
            self._asked = (head.answered if head else 0, full)
            return True
        return False

    def answer(self) -> Answer | None:
        """The latest answer, also of a process that has ended; None before the first."""
        if self._mail is None or (head := _head(self._mail)) is None:
            return None
        data = os.pread(self._mail, sum(head.lengths), HEAD.size)
        if _head(self._mail) != head:  # another answer came between
            return None
        first, second = head.lengths[0], head.lengths[0] + head.lengths[1]
        return Answer(data[:first], data[first:second], data[second:], full=head.full)

    def ask_for_stacks(self) -> int | None:
        """Make faulthandler write the stacks. Returns how long its file was before; None where it cannot be asked."""
        self.find()
        if self._stacks is None or not _handles(self._target, STACK_SIGNAL):
            return None
        length = os.fstat(self._stacks).st_size
        head = None if self._mail is None else _head(self._mail)
        # Signal our own thread if there is one: in another, the signal would interrupt a wait in native code.
        self._writer = head.thread if head else self._target
        return length if _tell(self._target, self._writer) else None

    def writes_stacks(self) -> bool:
        """Whether it is still writing the stacks."""
        return python_stacks.handles(self._target, self._writer, STACK_SIGNAL)

    def stacks(self, already: int) -> str:
        """What faulthandler has written so far, without the first `already` bytes."""
        return "" if self._stacks is None else python_stacks.written(self._stacks, already, wait_s=0)

    def scheduling(self) -> Scheduling:
        """The CPU time that its process gets from now on."""
        return Scheduling(self.target, self._writer)

    def close(self) -> None:
        """Close all files."""
        for file in (self._stacks, self._mail, self._pipe):
            if file is not None:
                os.close(file)
        self._stacks = self._mail = self._pipe = None


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants, nearest first."""
    waiting = [pid]
    while waiting:
        yield (one := waiting.pop(0))
        with suppress(OSError, ValueError):
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())


def _files(pid: int) -> list[tuple[int, str]]:
    """(descriptor, name) of each memfd that a process has open."""
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(entry)  # noqa: PTH115 (not a path)
                if target.startswith("/memfd:"):
                    found.append((int(entry.name), target.removeprefix("/memfd:").removesuffix(" (deleted)")))
    return found


def _is_pipe(pid: int, number: int, inode: int) -> bool:
    """Whether the process has this pipe open under this number."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{number}") == f"pipe:[{inode}]"  # noqa: PTH115
    return False


def _open(pid: int, number: int, flags: int) -> int | None:
    """Open a file that another process has open; None where that fails."""
    with suppress(OSError):
        return os.open(f"/proc/{pid}/fd/{number}", flags | os.O_CLOEXEC)
    return None


def _head(mail: int) -> _Head | None:
    """The head of an answer; None before the first answer."""
    data = os.pread(mail, HEAD.size, 0)
    if len(data) < HEAD.size:
        return None
    process, thread, pipe, inode, count, full, last, *lengths = HEAD.unpack(data)
    return _Head(process, thread, pipe, inode, count, bool(full), bool(last), tuple(lengths))


def _state(pid: int) -> str:
    """The state letter of proc_pid_stat(5); empty for a process that is gone."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    return ""


def _handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for the signal: without one the signal would end it."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


def _tell(pid: int, thread: int) -> bool:
    """Send the signal to one thread; whether that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):  # musl
        return bool(libc.tgkill(pid, thread, STACK_SIGNAL) == 0)
    return False
