"""A disk that takes its time when a signal comes, as a technique: `--technique tests.faults.slow_disk:make`.

The environment variable SLOW_DISK is "STEP WHAT END": in the first checkpoint of rank 0 behind the step STEP, where it
flushes WHAT (the "file" before its rename, or the "folder") to the disk, it waits for a signal that ends the run. With
the END "ends" the flush ends a second later, with "hangs" it never does. The file "flushing" in the working folder
says that it waits.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from pathlib import Path

from ddp_train.engine.stop_signals import STATUS
from ddp_train.technique import Context, Moment, Technique

VARIABLE = "SLOW_DISK"


def make(context: Context) -> Technique:
    """The technique; without the variable it does nothing."""
    if not context.ranks.is_first or VARIABLE not in os.environ:
        return Technique(name="slow disk")
    step, what, end = os.environ[VARIABLE].split()
    listen, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)  # the kernel's word, also while the main thread is in a collective
    flush, reached = os.fsync, threading.Event()

    def after_step(moment: Moment) -> None:
        if moment.step == int(step):
            reached.set()

    def slow_flush(descriptor: int) -> None:
        wanted = stat.S_ISREG if what == "file" else stat.S_ISDIR
        writes = threading.current_thread().name == "checkpoint" and wanted(os.fstat(descriptor).st_mode)
        if writes and reached.is_set():
            reached.clear()
            Path("flushing").touch()
            while os.read(listen, 1)[0] not in STATUS:
                pass
            time.sleep(3600 if end == "hangs" else 1)
        flush(descriptor)

    os.fsync = slow_flush  # type: ignore[assignment]
    return Technique(name="slow disk", after_step=after_step)
