"""The way of a rank's output to the screen: passed on byte by byte as it comes, and kept in files on the way.

Where the launcher has a terminal, rank 0 has one too: it is given a pseudo-terminal that changes nothing of
what passes. RemoteFailures it is given a pipe.
"""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import termios
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import BinaryIO

CHUNK_BYTES = 1 << 16
STUCK_S = 5.0
RESIZE_S = 0.5


@dataclass
class _Way:
    """One stream: `entry` is the writing end, `read` the end that is read here, `to` the descriptor of the screen."""

    entry: int
    read: int
    to: int
    log: BinaryIO | None
    terminal: bool
    given_up: bool = False


class Screen:
    """Passes the two streams of one rank on to this process's own, and keeps copies, until `finish`."""

    def __init__(self, stdout_log: Path, stderr_log: Path) -> None:
        """Errors: OSError where a log cannot be made."""
        self._wake, self._waker = os.pipe()
        self._ways = [_open_way(1, stdout_log), _open_way(2, stderr_log)]
        self._passed = 0
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._thread.start()

    @property
    def stdout(self) -> str:
        """A path that leads to the screen's standard output, for this process to open."""
        return f"/proc/self/fd/{self._ways[0].entry}"

    @property
    def stderr(self) -> str:
        """As `stdout`, for standard error."""
        return f"/proc/self/fd/{self._ways[1].entry}"

    def finish(self) -> None:
        """Pass on what is still under way, and close. A screen that takes nothing for some seconds is given up."""
        os.close(self._waker)
        before = -1
        while self._thread.is_alive() and self._passed != before:
            before = self._passed
            self._thread.join(STUCK_S)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for way in self._ways:
                selector.register(way.read, selectors.EVENT_READ, way)
            selector.register(self._wake, selectors.EVENT_READ, None)
            pause = RESIZE_S if any(way.terminal for way in self._ways) else None
            finishing = False
            while not finishing:
                ready = [key.data for key, _ in selector.select(pause)]
                finishing = None in ready
                for way in sorted(filter(None, ready), key=lambda way: way.to):
                    self._pass_on(way)
                    if way.given_up:
                        selector.unregister(way.read)
                for way in self._ways:
                    if way.terminal:
                        _copy_size(way.to, way.entry)
        while self._pass_on(self._ways[0]) or self._pass_on(self._ways[1]):
            pass
        for way in self._ways:
            _close(way)
        os.close(self._wake)

    def _pass_on(self, way: _Way) -> bool:
        """One piece of what has come; whether there was any."""
        chunk = b"" if way.given_up else _read(way.read)
        if not chunk:
            return False
        self._passed += len(chunk)
        _keep(way, chunk)
        if not _write(way.to, chunk):
            # Nobody reads any more (launch.py | head): the rank has to learn of it as if it wrote there itself.
            os.close(way.read)
            way.given_up = True
        return True


def _open_way(to: int, log: Path) -> _Way:
    terminal = os.isatty(to) and not _would_adopt_a_terminal()
    read, entry = os.openpty() if terminal else os.pipe()
    if terminal:
        _make_transparent(entry)
        _copy_size(to, entry)
    os.set_blocking(read, False)
    return _Way(entry, read, to, log.open("wb", buffering=0), terminal)


def _would_adopt_a_terminal() -> bool:
    """Whether opening a terminal by its path would make it this process's own, whose end is a SIGHUP."""
    if os.getsid(0) != os.getpid():
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return True
    return False


def _make_transparent(terminal: int) -> None:
    """No translation: the screen's own terminal does that once."""
    modes = termios.tcgetattr(terminal)
    modes[1] &= ~termios.OPOST
    modes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(terminal, termios.TCSANOW, modes)


def _copy_size(source: int, target: int) -> None:
    with suppress(OSError):
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8))
        if size != fcntl.ioctl(target, termios.TIOCGWINSZ, bytes(8)):
            fcntl.ioctl(target, termios.TIOCSWINSZ, size)


def _read(descriptor: int) -> bytes:
    """What is there; empty for nothing, and for the end."""
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return b""
    except OSError as error:
        if error.errno != errno.EIO:  # a pseudo-terminal whose other end is closed
            raise
        return b""


def _keep(way: _Way, chunk: bytes) -> None:
    if way.log is not None:
        try:
            way.log.write(chunk)
        except OSError:
            # The disk is full: the screen still gets it.
            with suppress(OSError):
                way.log.close()
            way.log = None


def _write(descriptor: int, chunk: bytes) -> bool:
    """False when nobody reads there any more."""
    left = memoryview(chunk)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select([], [descriptor], [])
        except OSError:
            return False
    return True


def _close(way: _Way) -> None:
    if not way.given_up:
        os.close(way.read)
    os.close(way.entry)
    if way.log is not None:
        with suppress(OSError):
            way.log.close()
