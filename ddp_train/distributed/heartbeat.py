"""What this rank is doing, for the watchdog process that looks for ranks that hang (watchdog/process.py).

A beat is five numbers in memory that the watchdog maps too: epoch, step, phase, time, and the first step. Nothing is
written to a disk and no thread is involved: a beat costs less than a microsecond and does not wait for Python's lock.
Without a watchdog the beats stay in this process, for the last line of an error message.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

from ddp_core.rank_report import Place

PHASES = (
    "start",
    "setup",
    "data preparation",
    "compilation",
    "data",
    "forward",
    "backward",
    "communication",
    "device",
    "step",
    "training",
    "evaluation",
    "checkpoint",
    "closing",
    "failed",
    "done",
)
"""In the order of a run. "device": the host waits for its GPU, and with it for all that the GPU waits for, such as the
other ranks under NCCL. "training" lies between the others, "failed" after an error, "done" at the end of a run."""
BEAT = struct.Struct("=qqqqq")
"""Epoch and step (from 0, -1 before the first), index of the phase, nanoseconds of the monotonic clock, and this
process's first step (-1 before it), which a watchdog that starts to look later could not know."""
DUMP_SIGNAL = signal.SIGRTMAX - 4
"""Asks for the Python stacks. A real-time signal: job managers and users may use the other signals themselves."""
_CODES = {name: code for code, name in enumerate(PHASES)}


class Heartbeat:
    """The beats of one process. `phase` is what it does now."""

    def __init__(self) -> None:
        self.epoch = self.step = self.first_step = -1
        self.phase = "start"
        self.spent_ns = dict.fromkeys(PHASES, 0)
        """Nanoseconds spent in each phase since the first step, by the phase's name."""
        self._shown, self._since_ns = self.phase, time.monotonic_ns()
        self._memory: mmap.mmap | None = None
        self._announced: Path | None = None

    def announce(self, path: Path) -> None:
        """Let the watchdog see the beats and ask for stacks: the file `path` names the places of both.

        Both are anonymous files in memory (memfd_create(2)), which the watchdog opens below /proc. Errors: OSError.
        """
        beats = os.memfd_create("ddp-train-beats")
        os.ftruncate(beats, BEAT.size)
        memory = mmap.mmap(beats, BEAT.size)
        stacks = os.memfd_create("ddp-train-stacks")
        faulthandler.register(DUMP_SIGNAL, file=stacks, all_threads=True)
        self._memory = memory
        self.beat(self.phase)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(f"{os.getpid()} {beats} {stacks}\n")
        new.rename(path)
        self._announced = path

    def withdraw(self) -> None:
        """Remove this rank's file for the watchdog, if it is still there, and the folder if it is then empty."""
        if self._announced is not None:
            with suppress(OSError):  # the watchdog has read and removed the file
                self._announced.unlink()
            with suppress(OSError):  # another rank's file is still in the folder
                self._announced.parent.rmdir()

    def beat(self, phase: str) -> None:
        """Note that this rank is alive, and what it does now: one of PHASES."""
        self.phase = phase
        self._show(phase)

    def fail(self) -> None:
        """Record that an error was raised, so that the watchdog gives this rank time to end. `place` stays."""
        self._show("failed")

    def _show(self, phase: str) -> None:
        """Show `phase` to the watchdog, and add the time since the last call to that of the phase before."""
        now_ns = time.monotonic_ns()
        if self.step >= 0:
            self.spent_ns[self._shown] += now_ns - self._since_ns
        self._shown, self._since_ns = phase, now_ns
        if self._memory is not None:
            BEAT.pack_into(self._memory, 0, self.epoch, self.step, _CODES[phase], now_ns, self.first_step)

    def alive(self) -> None:
        """Note progress within the phase."""
        self.beat(self.phase)

    def at(self, epoch: int, step: int) -> None:
        """Set the place in the run, for the next beat: both from 0, `step` counted from the start of the run."""
        self.epoch, self.step = epoch, step
        if self.first_step < 0:
            self.first_step = step

    def during(self, phase: str) -> _Phase:
        """A context for a phase. After it the previous phase continues; after an exception in it, `fail` is called."""
        return _Phase(self, phase)

    @property
    def place(self) -> Place | None:
        """Where this rank is; None before the first step."""
        return place(self.epoch, self.step, self.phase) if self.step >= 0 else None


class _Phase:
    """See Heartbeat.during. A class, since every step enters several, and a generator takes twice as long."""

    __slots__ = ("_before", "_heart", "_name")

    def __init__(self, heart: Heartbeat, name: str) -> None:
        self._heart, self._name, self._before = heart, name, ""

    def __enter__(self) -> None:
        self._before = self._heart.phase
        self._heart.beat(self._name)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._heart.beat(self._before)
        else:
            self._heart.fail()


def place(epoch: int, step: int, phase: str) -> Place:
    """A place in a run. `epoch` and `step` as in a beat: from 0, -1 before the first."""
    return Place(phase, step + 1, epoch + 1) if step >= 0 else Place(phase)


heartbeat = Heartbeat()
"""The heartbeat of this process, used from many places: a rank is one process."""
