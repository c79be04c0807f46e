"""Reads the driver in a child process: a driver library that hangs or crashes takes down the child, not the program.

A fork of a program that has not imported torch takes a millisecond. The child notes each driver call that it begins in
shared memory, and sends the answer or the error through a pipe.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Generic, NoReturn, TypeVar

from gpu_topology.driver.library import LIBRARY, LOADER_REMEDY, DriverError, LibraryError, Note, StuckDriverError
from gpu_topology.topology import Topology

Answer = TypeVar("Answer")

SLOW_S, LIMIT_S = 5.0, 20.0
"""Seconds that one call may take before a warning is printed, and before the driver counts as stuck. Opening a GPU that
is not in persistence mode takes a second or two."""

_LOOK_MS = 100
_NOTE_BYTES = 200
_REAP_S = 1.0
_USUAL_DESCRIPTORS = 2**16
_PR_SET_PDEATHSIG = 1  # sys/prctl.h


class InChild(Generic[Answer]):
    """Runs `read(note)` in a child process, which calls `note(name)` before each driver call; `result` waits for it.

    In a program with several threads (torch starts some) a fork is not safe: there `result` starts a new interpreter,
    which imports `read` by its name. Use it in a `with`: leaving that kills the child, finished or not.
    """

    def __init__(self, read: Callable[[Note], Answer]) -> None:
        self._read = read
        self._child: int | None = None
        if len(list(Path("/proc/self/task").glob("*"))) > 1:
            return
        self._noted = mmap.mmap(-1, _NOTE_BYTES)
        receiving, sending = os.pipe()
        self._pipe = os.fdopen(receiving, "rb")
        parent = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            _answer(read, self._noted, sending, parent)
        os.close(sending)

    def __enter__(self) -> InChild[Answer]:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None:
            self._pipe.close()
            _end(self._child)

    def result(self) -> Answer:
        """The answer; call once. Errors: StuckDriverError, naming the call that hangs or crashes; those of `read`."""
        if self._child is None:
            return _result(_in_interpreter(self._read), self._read)
        _wait(self._pipe, self._noted)
        sent = self._pipe.read()
        if not sent:
            child, self._child = self._child, None
            raise _crash(_status(child), _call(self._noted))
        return _result(sent, self._read)


def begin() -> InChild[Topology]:
    """Start reading the driver in the background; `read_topology` and `read_or_explain` (read.py) take the result."""
    return InChild(_read)


def _read(note: Note) -> Topology:
    """Read the topology; runs in the child."""
    from gpu_topology.driver.read import read_here  # in the child alone: its parent has other things to import

    return read_here(note)


def _result(sent: bytes, read: Callable[[Note], Answer]) -> Answer:
    """What `read` returned in the child; raises what it raised there."""
    answer: Answer
    answer, error = pickle.loads(sent)  # noqa: S301 -- written by this program's own child
    if error is not None:
        raise error
    return answer


_PROGRAM = """
import pickle, sys
from gpu_topology.driver.child_process import InChild, attempt
with InChild(pickle.load(sys.stdin.buffer)) as child:
    sys.stdout.buffer.write(pickle.dumps(attempt(child.result)))
"""


def _in_interpreter(read: Callable[[Note], Any]) -> bytes:
    """The pickled result of `read` in a new interpreter. Errors: StuckDriverError."""
    import subprocess  # most programs never get here

    paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, env=env, input=pickle.dumps(read), stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise StuckDriverError(f"the reading of the driver ended with status {done.returncode}", _BROKEN)
    return done.stdout


def attempt(read: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
    """The value of `read()` and no error, or None and the exception that it raised."""
    try:
        return read(), None
    except Exception as error:
        return None, error


def _status(child: int) -> int | None:
    """Wait for the child; its status. None where this process ignores SIGCHLD: the kernel then keeps no status."""
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:
        return None


def _crash(status: int | None, call: str) -> DriverError:
    """The error for a child that ended without an answer; `status` is from waitpid, `call` its last driver call."""
    if status is None:
        return StuckDriverError(f"the NVIDIA driver library ended the process in {call}", _BROKEN)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS:  # the file is shorter than its header says
        words = f"the NVIDIA driver library does not load: {LIBRARY} is cut short or damaged"
        return LibraryError(words, LOADER_REMEDY)
    if os.WIFSIGNALED(status):
        how = f"crashed ({signal.Signals(os.WTERMSIG(status)).name})"
    else:
        how = f"ended the process with status {os.waitstatus_to_exitcode(status)}"
    return StuckDriverError(f"the NVIDIA driver library {how} in {call}", _BROKEN)


_REMEDY = "see `dmesg | grep -i -e nvrm -e xid`; {}; to train without a GPU: launch.py --cpu"
_STUCK = _REMEDY.format("reset the GPU or reboot")
_BROKEN = _REMEDY.format("install the driver again, or another version of it")


def _wait(pipe: IO[bytes], noted: mmap.mmap) -> None:
    """Wait until the child has written or ended; warn once on stderr of a slow call, StuckDriverError at the limit."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    call, since, said = b"", time.monotonic(), False
    while not poll.poll(_LOOK_MS):
        now = time.monotonic()
        if noted[:] != call:
            call, since = noted[:], now
        elif now - since > LIMIT_S:
            raise StuckDriverError(f"the NVIDIA driver hangs: no answer to {_call(noted)} in {LIMIT_S:.0f} s", _STUCK)
        elif now - since > SLOW_S and not said:
            said = True
            line = f"the NVIDIA driver has not answered {_call(noted)} for {SLOW_S:.0f} s (limit: {LIMIT_S:.0f} s)"
            print(f"warning: {line}", file=sys.stderr, flush=True)


def _call(noted: mmap.mmap) -> str:
    """The call that the child began last, without its number."""
    return noted[:].rstrip(b"\0").decode(errors="replace").partition(" ")[2] or "its first call"


def _end(child: int) -> None:
    """Kill the child. One that hangs in the kernel cannot be killed: it is abandoned, and ends when its call does."""
    deadline = time.monotonic() + _REAP_S
    with suppress(ProcessLookupError, ChildProcessError):  # where SIGCHLD is ignored, the kernel reaps it
        os.kill(child, signal.SIGKILL)
        while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.005)


def _answer(read: Callable[[Note], Answer], noted: mmap.mmap, sending: int, parent: int) -> NoReturn:
    """The child's program: read, send (answer, error), and exit without the parent's clean-up."""
    try:
        sending = _let_go(sending)
        _end_with(parent)
        number = 0

        def note(call: str) -> None:
            """Write the numbered name of a driver call into the shared memory."""
            nonlocal number
            number += 1
            noted[:] = f"{number} {call}".encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES, b"\0")

        data = pickle.dumps(attempt(lambda: read(note)))
        with os.fdopen(sending, "wb") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)


def _let_go(sending: int) -> int:
    """Close all descriptors but `sending`, and return its new number: a child that hangs must hold no pipe or lock."""
    kept = fcntl.fcntl(sending, fcntl.F_DUPFD, 3)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    for number in _descriptors():
        if number > 2 and number != kept:
            with suppress(OSError):  # the listing's own is closed already
                os.close(number)
    return kept


def _descriptors() -> Iterable[int]:
    """The open descriptors, or all usual numbers where /proc does not list them. The limit may be a billion."""
    try:
        return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return range(_USUAL_DESCRIPTORS)


def _end_with(parent: int) -> None:
    """Make this process end with its parent, however that ends, even if it ended before this call."""
    import ctypes

    with suppress(OSError, AttributeError):  # a C library without prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
