"""Signals that ask a run to end: SIGTERM, SIGINT, SIGHUP, and SIGUSR1, which Slurm sends ahead of a time limit.

Before and after the training there is nothing to save, and the first one ends the process by an exception. While
a run trains, the first one is only noted: the ranks agree on the step after which they all stop and save. A second one
ends the process at once.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ddp_core.errors import Stopped

STATUS: dict[int, int] = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 143}
"""The exit status after each signal; SIGUSR1, the scheduler's warning, has that of the SIGTERM that would follow."""
REPEATED_S = 0.05
"""A signal that is repeated within this time is the same one: timeout(1) sends it to the process and to its group."""


class StopSignals:
    """The stop signals that were received; none before `install`."""

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal; 0 is none."""
        self._at = 0.0
        self._deferred = False
        self._raises = False
        # Slurm signals every process of a step, and the launcher forwards its own signal: on a busy node much later.
        self._repeated_s = math.inf if "SLURM_JOB_ID" in os.environ else REPEATED_S

    def install(self) -> None:
        """Install the handlers, in the main thread. A signal that is ignored (nohup) stays ignored."""
        for number in STATUS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, a signal raises Stopped; before, where modules are being imported, it ends the process."""
        self._raises = True
        self._check()
        try:
            yield
        finally:
            self._raises = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a first signal is only noted. At the end, a signal that was not acted on raises Stopped."""
        self._check()
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self._check()

    def _check(self) -> None:
        """Errors: Stopped where a signal has arrived."""
        if self.received:
            number = signal.Signals(self.received)
            raise Stopped(STATUS[number], f"stopped by {number.name}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: note the first signal, leave at the second."""
        now = time.monotonic()
        if self.received and STATUS[self.received] == STATUS[number] and now - self._at < self._repeated_s:
            return
        second, self.received, self._at = bool(self.received), self.received or number, self._at or now
        if second or not (self._deferred or self._raises):
            os._exit(STATUS[signal.Signals(self.received)])
        if not self._deferred:
            self._check()
