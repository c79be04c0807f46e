"""End a process without the teardown of Python and C++, during which one of torch's threads can abort it.

The user's `atexit` functions run as usual.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn


def end_process(status: int, *, join_threads: bool = False) -> NoReturn:
    """Run the exit handlers and end with `status`. join_threads: wait for threads that are not daemons first."""
    try:
        for thread in threading.enumerate() if join_threads else ():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
