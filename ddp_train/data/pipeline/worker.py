"""Worker processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this forked process when its parent, of process id `parent`, ends: prctl(2).

    Strictly, when the thread ends that forked it. The DataLoader's own watch compares parents every five seconds, and
    misses a parent that had died before the worker first looked.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # The parent's handlers came along. Ctrl-C and a job manager's warnings reach the whole group: the parent ends us.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.getppid() != parent:
        os._exit(1)
