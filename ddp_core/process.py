"""How a process that uses torch begins and ends: imports without Python's cyclic garbage collector, and an end without
the teardown of Python and C++, during which one of torch's threads can abort it."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector while the block imports torch, and exempt all that exists at its end from later collections.
    torch's modules live as long as the process; scanning them takes a sixth of the import, and time during training."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def end_process(status: int, *, join_threads: bool = False) -> NoReturn:
    """Run the exit handlers (the user's `atexit` functions too) and end with `status`. join_threads: wait for threads
    that are not daemons first."""
    try:
        for thread in threading.enumerate() if join_threads else ():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
