"""Signals to the launcher: the first ends the run in good order, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
AS = {signal.SIGUSR1: signal.SIGTERM}
"""Signals treated as another one: Slurm's warning before a time limit (--signal=USR1) is like the SIGTERM after it."""
REPEATED_S = 0.05
"""A repetition within this time is the same signal: timeout(1) sends it to the process and to its group."""


@contextmanager
def deferred() -> Iterator[None]:
    """Defer signals while native modules are imported: an exception raised by a handler there is lost or aborts.
    After the block the first signal ends the process by SystemExit, 128 + n; a second one inside it ends it at once.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first signal, leave at the second."""
        if received:
            os._exit(128 + received[0])
        received.append(AS.get(signal.Signals(number), number))

    earlier = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        if earlier[number] is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])


class Interrupts:
    """Handles the signals that end a run.

    `failure`: makes the exception that the first signal raises in the main thread.
    """

    def __init__(self, failure: Callable[[signal.Signals], Exception]) -> None:
        self._failure = failure
        self._held = False
        self._at = 0.0
        self.kill: Callable[[], None] = lambda: None
        """Ends all ranks at once; called for signals that arrive while the ranks are already ending. Must not raise."""
        self.received: signal.Signals | None = None
        """The first signal that arrived."""
        self.ending = False
        """Set while the ranks are being stopped: a signal then raises no exception, which would interrupt that."""

    def install(self) -> None:
        """Install the handlers. A signal that the caller ignores (nohup) stays ignored."""
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals inside the block. Afterwards they are ignored, because the process is about to end."""
        self.install()
        try:
            yield
        finally:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defer the first signal to the end of the block: half-started ranks could not be ended."""
        self.check()
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise for a signal that has arrived and not yet raised."""
        if self.received is not None:
            self._raise()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: raise for the first signal, kill all ranks at the second."""
        now, number = time.monotonic(), AS.get(signal.Signals(number), number)
        if self.received == number and now - self._at < REPEATED_S:
            return
        first, self.received = self.received is None, self.received or signal.Signals(number)
        self._at = now if first else self._at
        if self.ending:
            self.kill()
        elif first and not self._held:
            self._raise()

    def _raise(self) -> None:
        """Raise the exception for the signal that arrived."""
        assert self.received is not None
        self.ending = True
        raise self._failure(self.received)
