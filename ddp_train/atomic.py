"""Files that are either the old ones or the new ones, whenever the process or the machine dies.

A write goes to a temporary file in the SAME folder (a rename across file systems is a copy, and a
copy can be torn), is flushed to the disk, renamed over the old file, and the folder is flushed so
that the rename itself survives a power cut. The temporary file of a writer that was killed is
removed by the next write of the same file: a live writer holds a lock on its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ddp_train.options import UserError

__all__ = ["replacing", "write_text"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: str | os.PathLike[str], *, size: Callable[[], int] | None = None) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that takes the place of `path` when the block ends well.

    When the block raises, the new file is removed and the old one is untouched. `size` tells the
    bytes that the whole file takes, and is asked only for the message about a full disk. Raises
    UserError (one line naming the file) when the folder is missing or not writable, or the disk full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _remove_abandoned(target)
        try:
            with temporary.open("xb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(target.parent)
    except OSError as error:
        raise UserError(_explanation(target, error, size)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 in the place of `path`; raises UserError as `replacing` does."""
    data = text.encode()
    with replacing(path, size=lambda: len(data)) as file:
        file.write(data)


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of `target` that no living writer holds."""
    for leftover in target.parent.glob(f".{_literal(target.name)}.*-*.tmp"):
        with suppress(OSError), leftover.open("rb") as file:  # another writer may finish meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _literal(name: str) -> str:
    """`name` as a glob pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and user-space file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _explanation(target: Path, error: OSError, size: Callable[[], int] | None) -> str:
    if error.errno not in _FULL:
        return f"cannot write {target}: {error.strerror or error}"
    status = os.statvfs(target.parent)
    needed = f"{size():,} bytes are needed, " if size else ""
    free = f"{needed}{status.f_bavail * status.f_frsize:,} are free in {target.parent}"
    limit = "" if error.errno == errno.ENOSPC else f" ({error.strerror})"
    kept = "; the previous file is intact" if target.exists() else ""
    return f"cannot write {target}: the disk is full{limit}: {free}{kept}"
