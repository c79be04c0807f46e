"""Copies the ranks' output as it comes, to a log for each stream and, for some ranks, to the screen.

A rank never writes to a file itself: a full disk would end it, and nothing would limit the file's size. Where the
launcher's standard output and standard error are the same terminal, pipe or file, a shown rank has one stream for both,
since two streams would lose the order. If the launcher has a terminal, rank 0 gets a pseudo-terminal that passes bytes
unchanged. All other ranks get pipes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import termios
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

from ddp_launch.cli.value_types import BOTH, LOG_BYTES
from ddp_launch.run.bounded_log import BoundedLog

CHUNK_BYTES = 1 << 16
STUCK_S = 5.0
RESIZE_S = 0.5
DRAIN_S = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a screen that is a file: it accepts no more bytes now, but may later."""


@dataclass(eq=False)
class _Way:
    """One stream. `entry`: the end that the rank writes to; `read`: the end that is read here; `to`: the screen's
    descriptor, None for the log alone; `prefix`: goes before each line on the screen; `rest`: the start of an
    incomplete line; `unshown`: bytes that the screen did not accept, `why`: the reason in words."""

    entry: int
    read: int
    to: int | None
    log: BoundedLog
    terminal: bool
    prefix: bytes = b""
    rest: bytes = b""
    given_up: bool = False
    unshown: int = 0
    why: str = ""


class RankOutput:
    """Copies both streams of each rank of this node, from `start` to `finish`. `limit`: bytes of a stream in its
    log."""

    def __init__(self, limit: int = LOG_BYTES) -> None:
        self._limit = limit
        self._wake, self._waker = os.pipe()
        self._ways: list[_Way] = []
        self._passed = 0
        self._passing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rank-output", daemon=True)

    def add(self, stdout_log: Path, stderr_log: Path, *, shown: int = BOTH, prefix: str = "") -> tuple[str, str]:
        """Add a rank; returns the paths of its standard output and standard error, for this process to open.

        shown: the streams for the screen, as bits like torchrun's --tee. prefix: goes before each line; without a
        prefix the bytes are copied as they are, and the rank gets a terminal where the screen is one. Errors: OSError
        (no descriptor left).
        """
        if shown == BOTH and same_place():
            with suppress(OSError):
                stderr_log.symlink_to(stdout_log.name)
            way = self._open(1, stdout_log, prefix)
            return way, way
        out, err = (to if shown & to else None for to in (1, 2))
        return self._open(out, stdout_log, prefix), self._open(err, stderr_log, prefix)

    def _open(self, to: int | None, log: Path, prefix: str) -> str:
        """Open one stream; returns the path at which the rank writes to it."""
        terminal = to is not None and not prefix and os.isatty(to) and not _would_adopt_a_terminal()
        read, entry = os.openpty() if terminal else os.pipe()
        if to is not None and terminal:
            _make_transparent(entry)
            _copy_size(to, entry)
        os.set_blocking(read, False)
        self._ways.append(_Way(entry, read, to, BoundedLog(log, self._limit), terminal, prefix.encode()))
        return f"/proc/self/fd/{entry}"

    def start(self) -> None:
        """Start copying, once all ranks are added."""
        self._thread.start()

    def finish(self) -> None:
        """Copy the rest and close. A screen that accepts nothing for some seconds is given up."""
        os.close(self._waker)
        before = -1
        while self._thread.is_alive() and self._passed != before:
            before = self._passed
            self._thread.join(STUCK_S)

    def drain(self) -> None:
        """Wait up to DRAIN_S until all output of ended ranks is in their logs."""
        deadline = time.monotonic() + DRAIN_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            if self._passing.acquire(timeout=DRAIN_S):
                waiting = False
                with suppress(OSError):  # closed meanwhile
                    waiting = any(_waiting(way.read) for way in self._ways if not way.given_up)
                self._passing.release()
                if not waiting:
                    return
            time.sleep(DRAIN_S / 200)

    @property
    def lost(self) -> tuple[tuple[Path, int, str], ...]:
        """(log, number of missing bytes, reason) for each incomplete log."""
        return tuple((way.log.path, way.log.lost, way.log.why) for way in self._ways if way.log.lost)

    @property
    def unshown(self) -> tuple[int, str]:
        """How many bytes are missing on the screen because its disk was full, and the reason."""
        return sum(way.unshown for way in self._ways), next((way.why for way in self._ways if way.why), "")

    def _run(self) -> None:
        """A thread's work: copy the ranks' output until `finish`."""
        with selectors.DefaultSelector() as selector:
            for way in self._ways:
                selector.register(way.read, selectors.EVENT_READ, way)
            selector.register(self._wake, selectors.EVENT_READ, None)
            pause = RESIZE_S if any(way.terminal for way in self._ways) else None
            finishing = False
            while not finishing:
                ready = [key.data for key, _ in selector.select(pause)]
                finishing = None in ready
                for way in sorted(filter(None, ready), key=self._ways.index):
                    with self._passing:
                        self._pass_on(way)
                    if way.given_up:
                        selector.unregister(way.read)
                for way in self._ways:
                    if way.terminal and way.to is not None:
                        _copy_size(way.to, way.entry)
        while sum(map(self._pass_on, self._ways)):
            pass
        for way in self._ways:
            _close(way)
        os.close(self._wake)

    def _pass_on(self, way: _Way) -> bool:
        """Copy one piece; whether there was any."""
        chunk = b"" if way.given_up else _read(way.read)
        if not chunk:
            return False
        self._passed += len(chunk)
        way.log.write(chunk)
        if way.to is not None and not _show(way, _prefixed(way, chunk) if way.prefix else chunk):
            # The screen's reader is gone (launch.py | head): the rank must notice, as if it wrote there itself. A rank
            # with a prefix is only shown in addition, and continues.
            way.to = None
            if not way.prefix:
                os.close(way.read)
                way.given_up = True
        return True


def same_place() -> bool:
    """Whether the launcher's standard output and standard error go to the same place, as on a terminal or after
    2>&1."""
    out, err, nowhere = os.fstat(1), os.fstat(2), Path(os.devnull).stat()
    return os.path.samestat(out, err) and not os.path.samestat(out, nowhere)


def _waiting(descriptor: int) -> bool:
    """Whether there is something to read. Errors: OSError."""
    return fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)) != bytes(4)


def _prefixed(way: _Way, chunk: bytes) -> bytes:
    """The complete lines, each with the prefix; a progress bar's carriage return ends a line too."""
    text = (way.rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    whole, end, way.rest = text.rpartition(b"\n")
    if len(way.rest) > CHUNK_BYTES:
        whole, end, way.rest = text, b"\n", b""
    return b"".join(b"%s%s\n" % (way.prefix, line) for line in whole.split(b"\n")) if end else b""


def _would_adopt_a_terminal() -> bool:
    """Whether opening a terminal would make it this process's controlling terminal, whose end sends SIGHUP."""
    if os.getsid(0) != os.getpid():
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return True
    return False


def _make_transparent(terminal: int) -> None:
    """Turn off output processing, echo, line editing and signal keys: the screen's own terminal handles them."""
    modes = termios.tcgetattr(terminal)
    modes[1] &= ~termios.OPOST
    modes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(terminal, termios.TCSANOW, modes)


def _copy_size(source: int, target: int) -> None:
    """Give a terminal the size of another."""
    with suppress(OSError):
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8))
        if size != fcntl.ioctl(target, termios.TIOCGWINSZ, bytes(8)):
            fcntl.ioctl(target, termios.TIOCSWINSZ, size)


def _read(descriptor: int) -> bytes:
    """What can be read now; empty if there is nothing, and at the end."""
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return b""
    except OSError as error:
        if error.errno != errno.EIO:  # a pseudo-terminal whose other end is closed
            raise
        return b""


def _show(way: _Way, chunk: bytes) -> bool:
    """Write everything to the screen, waiting as needed; False when the reader is gone. What a full disk does not
    accept is left out."""
    assert way.to is not None
    left = memoryview(chunk)
    while left:
        try:
            left = left[os.write(way.to, left) :]
        except BlockingIOError:
            select([], [way.to], [])
        except OSError as error:
            if error.errno not in FULL:
                return False
            way.unshown, way.why = way.unshown + len(left), error.strerror or ""
            return True
    return True


def _close(way: _Way) -> None:
    """Write the last incomplete line, then close both ends and the log."""
    if way.rest and way.to is not None:
        _show(way, way.prefix + way.rest + b"\n")
    if not way.given_up:
        os.close(way.read)
    os.close(way.entry)
    way.log.close()
