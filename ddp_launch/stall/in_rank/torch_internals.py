"""The thread of a rank that answers the launcher, and torch's private API that it reads: the flight recorder of gloo
and NCCL, and the names of the process groups. Loaded by file (sitecustomize.py), in the Python of the rank.

A question is a byte in a pipe, which the launcher opens below /proc/PID/fd. The answer is in a memfd (memfd_create(2)):
a head, then the recorder's own pickles for gloo and NCCL, then JSON. A brief answer takes 0.01 ms, one with the last
2,000 collectives milliseconds (docs/debugging.md), with Python's lock held. A program that ends by itself leaves a last
answer, which the launcher reads if it has the memfd open by then.

Where torch has no recorder, or moves these names, the answers are empty, and only the stacks remain.
"""

from __future__ import annotations

import _thread
import atexit
import json
import os
import signal
import struct
import sys

TYPE_CHECKING = False  # that of typing takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

MAIL = "ddp-launch-mail"
"""The memory of the answers, by the name that /proc/PID/fd shows."""
HEAD = struct.Struct("=qqqqqqqqqq")
"""Process, thread, the pipe's descriptor and inode, the number of answered questions, whether the answer has single
collectives, whether it is the last answer, and the lengths of the three parts."""
BRIEF, FULL = b"b", b"f"
"""The questions: the counts of the process groups, or single collectives too."""
RECORDERS = ("_dump_fr_trace", "_dump_nccl_trace")
TRAINER = "ddp_train.distributed.heartbeat"


def begin(c10d: ModuleType, high: Callable[[int], int], observer: Any = None) -> None:
    """Start the thread that answers. `high` moves a file descriptor to a high number; `observer` (observer.py) starts
    too."""
    reading, writing = os.pipe()
    answers = Answers(c10d, high(os.memfd_create(MAIL)), high(reading), high(writing), observer)
    # The thread takes no signal but the launcher's: all others are the program's.
    others = set(signal.valid_signals()) - {signal.SIGRTMAX - 5}
    earlier = signal.pthread_sigmask(signal.SIG_SETMASK, others)
    try:
        # _thread, not threading: the program does not see it among its threads.
        _thread.start_new_thread(answers.serve, ())
        if observer is not None:
            observer.begin()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    atexit.register(answers.last)


class Answers:
    """This process's answers to the launcher."""

    def __init__(self, c10d: ModuleType, memory: int, reading: int, writing: int, observer: Any = None) -> None:
        self._observer = observer
        self._c10d, self._memory, self._reading, self._writing = c10d, memory, reading, writing
        self._files = [(file, os.fstat(file).st_ino) for file in (memory, reading)]
        self._process, self._thread, self._count = os.getpid(), 0, 0
        self._lock = _thread.allocate_lock()

    def serve(self) -> None:
        """Answer until the process ends."""
        self._thread = _thread.get_native_id()
        self._write(False, False, b"", b"", b"")
        # A program may close all descriptors that it does not know; the numbers may then belong to other files.
        while self._intact() and (question := os.read(self._reading, 1)):
            if not self._intact():
                return
            with self._lock:
                self._count += 1
                self.answer(question == FULL)

    def last(self) -> None:
        """Leave a last full answer while the interpreter closes; not in a forked process."""
        if os.getpid() == self._process and self._intact() and self._lock.acquire(timeout=1.0):
            self.answer(True, True)
            self._lock.release()

    def answer(self, full: bool, last: bool = False) -> None:
        """Write an answer. `full`: with single collectives; `last`: nothing follows."""
        # NCCL's recorder reads CUDA events, which may be gone at the end.
        cpu, nccl = (_recorded(name, full and not (last and at)) for at, name in enumerate(RECORDERS))
        facts = json.dumps(self._facts() if full else {}).encode()
        self._write(full, last, cpu, nccl, facts)

    def _write(self, full: bool, last: bool, *parts: bytes) -> None:
        """Replace the answer; the head comes last, so that a reader notices a change."""
        pipe = self._files[1][1]
        lengths = [len(part) for part in parts]
        head = HEAD.pack(self._process, self._thread, self._writing, pipe, self._count, full, last, *lengths)
        os.ftruncate(self._memory, HEAD.size + sum(lengths))
        os.pwrite(self._memory, b"".join(parts), HEAD.size)
        os.pwrite(self._memory, head, 0)

    def _intact(self) -> bool:
        """Whether our descriptors are still the files that we opened."""
        try:
            return all(os.fstat(file).st_ino == inode for file, inode in self._files)
        except OSError:
            return False

    def _facts(self) -> dict[str, Any]:
        """The process groups by name, and where the bundled trainer is."""
        facts: dict[str, Any] = {}
        try:
            world = self._c10d._world
            facts["groups"] = {world.pg_names[group]: list(ranks) for group, ranks in world.pg_group_ranks.items()}
        except Exception:
            facts["groups"] = {}
        heart = getattr(sys.modules.get(TRAINER), "heartbeat", None)
        if heart is not None:
            facts["place"] = str(heart.place or "")
            facts["spent_ns"] = dict(heart.spent_ns)
            facts["steps"] = heart.step - heart.first_step
        if self._observer is not None:
            facts["observed"] = self._observer.facts()
        return facts


def exposed_ns(wrapper: Any) -> float | None:
    """For how long a step of a DistributedDataParallel waits for its all-reduces after the end of its backward pass, by
    torch's own statistics, which are those of the device. None where torch has none. The first call begins them."""
    try:
        wrapper._set_ddp_runtime_logging_sample_rate(1)  # every step from now on; only some are measured without it
        known = wrapper._get_ddp_logging_data()
        names = ("avg_backward_comm_time", "avg_backward_compute_comm_overlap_time")
        whole, hidden = (float(known.get(name, 0)) for name in names)
        return max(0.0, whole - hidden)
    except Exception:
        return None


def batch_size(one: Any) -> int:
    """The batch size of a DataLoader, or of an iterator over a DataLoader that no longer exists; 0 if none is set."""
    size = getattr(one, "batch_size", None) or getattr(getattr(one, "batch_sampler", None), "batch_size", None)
    size = size or getattr(getattr(one, "_index_sampler", None), "batch_size", None)
    return size if isinstance(size, int) else 0


def _recorded(name: str, full: bool) -> bytes:
    """A recorder's dump without stacks, which faulthandler writes better; empty where there is no recorder."""
    try:
        found: bytes = getattr(sys.modules["torch._C._distributed_c10d"], name)(full, False, False)
        return found
    except Exception:
        return b""
