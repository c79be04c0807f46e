"""One run per folder: a kernel lock on a file in the folder; the file names the run that holds the lock. Torch-free.

The launcher takes the lock before it touches the folder, and its ranks find it held by one of their ancestors.
Under torchrun, and where several nodes share the folder, rank 0 takes it. The lock ends with the process that holds it,
however that ends: a crash leaves only the file, which means nothing without its lock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from ddp_core.errors import UserError
from ddp_core.locks import open_lock_file, owner, try_lock

NAME = ".run-lock"
PATIENCE_S = 10.0
"""Seconds that a restarted rank waits for the previous one to be gone."""
_POLL_S = 0.05
_WORDS = {"pid": " pid {}", "command": " ({})", "host": " on {}", "since": " since {}"}


class RunLock:
    """The lock of this process on its run folder, from `take` until `release` or the end of the process."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._path = Path()

    def take(self, folder: Path, *, patient: bool = False) -> None:
        """Lock `folder`, unless a process above this one (its launcher) has done so.

        `patient`: wait up to PATIENCE_S for a holder that is ending. On a file system without locks nothing is locked.
        Errors: UserError naming the holder; OSError where the folder cannot be written.
        """
        deadline = time.monotonic() + (PATIENCE_S if patient else 0.0)
        path = folder / NAME
        while self._file is None:
            file = open_lock_file(path)
            try:
                taken = try_lock(file)
                holder = None if taken else owner(file)
            except OSError:  # no locks on this file system
                os.close(file)
                return
            if not taken:
                about = _read(file)
                os.close(file)
                if holder in _above():
                    return
                if holder is not None and time.monotonic() >= deadline:
                    raise UserError(_refusal(folder, holder, about))
                time.sleep(_POLL_S)
                continue
            if _is(path, file):
                self._file, self._path = file, path
                _describe(file)
            else:  # the last holder has just removed this file
                os.close(file)

    def release(self) -> None:
        """Unlock the folder and remove the lock file, at the normal end of a run."""
        if self._file is None:
            return
        with suppress(OSError):
            # Unlink while locked: a process that waits for this file finds its name gone, and makes another file.
            self._path.unlink()
        os.close(self._file)
        self._file = None


def _above() -> set[int]:
    """The process ids of all ancestors of this process."""
    found: set[int] = set()
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            # The name in parentheses may contain anything; state and parent follow the last parenthesis.
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _is(path: Path, file: int) -> bool:
    """Whether a path still names the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _describe(file: int) -> None:
    """Write who holds the lock, for the messages of other runs. No arguments of the command: they can hold secrets."""
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": Path(sys.argv[0]).name,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(about).encode(), 0)


def _read(file: int) -> dict[str, object]:
    """What the holder wrote about itself; {} where that cannot be read."""
    try:
        about = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _refusal(folder: Path, holder: int | None, about: dict[str, object]) -> str:
    """The error for a folder that another run uses."""
    if holder and about.get("pid") != holder:
        about = {"pid": holder}  # it has not written about itself yet
    parts = [(form, about.get(name)) for name, form in _WORDS.items()]
    words = "".join(form.format(_printable(value)) for form, value in parts if value) or " another process"
    return f"--out-dir {folder}: another run is using this folder:{words}; wait for its end, or give another --out-dir"


def _printable(value: object) -> str:
    """Text for a terminal, shortened."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:100])
