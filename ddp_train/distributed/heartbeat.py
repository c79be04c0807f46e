"""What this rank is doing, for the process beside it that looks for ranks that hang (watchdog/process.py).

A beat is four numbers in memory that the watchdog maps as well: epoch, step, phase, and the time. Nothing is written to
a disk, and no thread takes part, so that beats cost less than a microsecond and a held lock of Python's stops nothing.
Without a watchdog they are kept in this process alone, for the line that an error ends with.
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
"""Epoch and step (from 0, -1 before the first), index of the phase, nanoseconds of the monotonic clock, and the step
that was this process's first (-1 before it): a watchdog that is late would take another one for it."""
DUMP_SIGNAL = signal.SIGRTMAX - 4
"""Asks for the Python stacks. A real-time signal: job managers and users have their own ideas of the others."""
_CODES = {name: code for code, name in enumerate(PHASES)}


class Heartbeat:
    """The beats of one process. `phase` is what it does now."""

    def __init__(self) -> None:
        self.epoch = self.step = self.first_step = -1
        self.phase = "start"
        self.spent_ns = dict.fromkeys(PHASES, 0)
        """Time in each phase since the first step, by its name."""
        self._shown, self._since_ns = self.phase, time.monotonic_ns()
        self._memory: mmap.mmap | None = None
        self._announced: Path | None = None

    def announce(self, path: Path) -> None:
        """Let the watchdog see the beats and ask for stacks: where both are goes into the file `path`.

        Both are memory without a name (memfd_create(2)), which the watchdog opens below /proc. Errors: OSError.
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
        """Where all ranks end before the watchdog has met them, nothing of them is left in the folder; nor is it."""
        if self._announced is not None:
            with suppress(OSError):  # it has met this one
                self._announced.unlink()
            with suppress(OSError):  # another rank is still there
                self._announced.parent.rmdir()

    def beat(self, phase: str) -> None:
        """Note that this rank is alive, and what it does now: one of PHASES."""
        self.phase = phase
        self._show(phase)

    def fail(self) -> None:
        """Note that an error has come up, which may end this rank: it has time for that. `place` stays."""
        self._show("failed")

    def _show(self, phase: str) -> None:
        """Change the phase; the time of the last one is added up."""
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
        """The place in the run, both from 0; `step` counts from its beginning."""
        self.epoch, self.step = epoch, step
        if self.first_step < 0:
            self.first_step = step

    def during(self, phase: str) -> _Phase:
        """A context for a phase. After it the previous phase continues, unless it raised: the rank may end there."""
        return _Phase(self, phase)

    @property
    def place(self) -> Place | None:
        """Where this rank is; None before the first step."""
        return place(self.epoch, self.step, self.phase) if self.step >= 0 else None


class _Phase:
    """See Heartbeat.during. A class: every step enters several, and a generator takes twice as long."""

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
