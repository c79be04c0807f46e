"""Atomic writes: a file has its old or its new content, whenever the process or the machine dies.

A write goes to a temporary file in the SAME folder (a rename across file systems is a copy, and a
copy can be torn), is flushed to the disk, renamed over the old file, and the folder is flushed so
that the rename itself survives a power cut. The temporary file of a writer that was killed is
removed by the next write of the same file: a live writer holds a lock on its temporary file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ddp_core.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Errors of link(2) where the file system, or a policy on it, allows no hard links, or the file has too many.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", re.ASCII)


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    *,
    size: Callable[[], int] | None = None,
    keep: str | os.PathLike[str] | None = None,
) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that replaces `path` when the block ends without an error.

    When the block raises, the new file is removed and the old one is untouched. `size` returns the
    bytes of the whole file; it is called only for the message about a full disk. `keep`: a name in the
    same folder that the old file gets, replacing any file of that name. Raises UserError (one line
    naming the file) when the folder is missing or not writable, or the disk full.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    try:
        _remove_abandoned(target)
        if keep is not None:
            _remove_abandoned(Path(keep))
        try:
            with temporary.open("xb+") as file:
                with suppress(OSError):  # without locks (Lustre, NFS) nothing is removed as abandoned either
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fsync(file.fileno())
                if keep is not None:
                    _keep(target, Path(keep))
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        flush(target.parent)
    except OSError as error:
        raise UserError(_explanation(target, error, size)) from error


def write_text(path: str | os.PathLike[str], text: str, error: type[UserError] = UserError) -> None:
    """Write `text` as UTF-8 to the file `path`, whole or not at all. Errors: `error`, one line naming the file.

    Anything but a regular file (a pipe, a device) is written to directly, and so is /dev/stdout, whatever it is:
    others write there too. Symbolic links and the mode are kept.
    """
    try:
        given = Path(path)
        if (descriptor := _descriptor(given)) is not None:
            with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as stream:  # shares the position in the file
                stream.write(text)
            return
        if given.exists() and not given.is_file():
            given.write_text(text, encoding="utf-8")
            return
        target = given.resolve()
        data = text.encode()
        with replacing(target, size=lambda: len(data)) as file:
            file.write(data)
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
    except (OSError, RuntimeError, ValueError) as problem:  # a loop of symbolic links; a null character
        raise error(f"cannot write {path}: {getattr(problem, 'strerror', None) or problem}") from None
    except UserError as problem:
        raise error(str(problem)) from None


def _descriptor(path: Path) -> int | None:
    """The number of the open descriptor that a path like /dev/stdout or /dev/fd/63 names; None for any other path."""
    found = _DESCRIPTOR.fullmatch(str(path))
    return int(found[1]) if found else _STREAMS.get(str(path))


def _keep(target: Path, kept: Path) -> None:
    """Give the file `target` the second name `kept`; on a file system without hard links rename it instead."""
    if not target.is_file() or (kept.exists() and kept.samefile(target)):
        return
    name = _temporary_name(kept)
    try:
        os.link(target, name)
        name.replace(kept)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        target.replace(kept)
    finally:
        name.unlink(missing_ok=True)
    flush(target.parent)


def _temporary_name(target: Path) -> Path:
    """A hidden name beside the target that no other writer uses."""
    return target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of `target` that no living writer holds."""
    for leftover in target.parent.glob(f".{_literal(target.name)}.*-*.tmp"):
        # Another writer may finish meanwhile. Over NFS a lock needs a file that is open for writing: flock(2).
        with suppress(OSError), leftover.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _literal(name: str) -> str:
    """`name` as a glob pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def flush(path: Path) -> None:
    """Flush a file to disk, or a folder, so that a rename in it survives a crash. Errors: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and user-space file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _explanation(target: Path, error: OSError, size: Callable[[], int] | None) -> str:
    """The message for a failed write; for a full disk it gives the free space."""
    if error.errno not in _FULL:
        return f"cannot write {target}: {error.strerror or error}"
    status = os.statvfs(target.parent)
    needed = f"{size():,} bytes are needed, " if size else ""
    free = f"{needed}{status.f_bavail * status.f_frsize:,} are free in {target.parent}"
    limit = "" if error.errno == errno.ENOSPC else f" ({error.strerror})"
    kept = "; the previous file is intact" if target.exists() else ""
    return f"cannot write {target}: the disk is full{limit}: {free}{kept}"


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Path.is_dir(), but False where the path cannot be looked up (no permission, too long a name)."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | os.PathLike[str]) -> bool:
    """Path.is_file(), but False where the path cannot be looked up."""
    return os.path.isfile(path)  # noqa: PTH113


def why_no_folder(path: Path) -> str:
    """Why a path is no folder, for a message."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "is not a folder"


def shown(path: Path) -> str:
    """A path as a user would type it: relative to the current folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)
