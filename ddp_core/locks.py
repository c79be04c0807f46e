"""Locks on files that name their owner: POSIX locks (fcntl(2), F_SETLK), which end with the process that holds them.

Not flock(2): a forked child would inherit such a lock and could outlive its parent; and NFS servers know POSIX locks.

A trap of these locks: closing ANY descriptor of a file gives up all locks of this process on that file. So a file that
is locked here is opened once, its descriptor is never duplicated, and code that closes descriptors in bulk (after a
fork, say) must not run in a process that holds such a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

FLOCK = "hhqqi"
"""struct flock of Linux: type, whence, start, length, pid."""
HELD = {errno.EACCES, errno.EAGAIN}
"""Errors of F_SETLK where another process has the lock."""


def open_lock_file(path: Path) -> int:
    """A descriptor of the file; a missing file is created, accessible to this user alone. Errors: OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def try_lock(file: int) -> bool:
    """Take the lock; False where another process has it. Errors: OSError on a file system without locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def owner(file: int) -> int | None:
    """The id of the process that has the lock: 0 for one on another node or in a container; None where none has it.

    Errors: OSError on a file system without locks.
    """
    wish = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wish))
    return None if kind == fcntl.F_UNLCK else max(0, pid)
