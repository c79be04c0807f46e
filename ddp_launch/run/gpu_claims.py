"""Claims on GPUs: until a rank uses its GPU, the driver does not show other launchers that the GPU is taken.

A claim is a kernel lock on a file named after the GPU's UUID, in a folder of this user. It ends with the process that
holds it. The files stay, and mean nothing without a lock. Other users see claims through other_users_claims.py.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote, unquote

from ddp_core.locks import open_lock_file, owner, try_lock
from ddp_launch.run.other_users_claims import Announcements, other_users_claims

T = TypeVar("T")

NAME = "ddp-launch"
SUFFIX = ".claim"


class Claims:
    """The claims of this process and of others. Never raises: a run matters more than its claim."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}
        self._announcements = Announcements()
        self.problem: str | None = None
        """Why claims cannot be made or seen here, one line; None where they can."""

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def others(self) -> dict[str, str]:
        """UUID -> who claims it, for GPUs that other launchers claim."""
        found = other_users_claims()
        if not self._safe():
            return found
        for path in sorted(self._folder.glob("*" + SUFFIX)):
            uuid = unquote(path.name.removesuffix(SUFFIX))
            # Closing a second descriptor of a file would drop this process's lock on it.
            if uuid not in self._held and (who := self._owner(path)) is not None:
                found[uuid] = who
        return found

    def take(self, uuids: Iterable[str], *, shared: bool = False) -> Mapping[str, str]:
        """Claim these GPUs, all or none. Returns the GPUs that others hold, in the form of `others`: empty on success.

        `shared`: claim only those that are free, since the user wants these GPUs even if others use them.
        """
        if not self._safe():
            return {}
        lost = {}
        # Lock in a fixed order, and stop at the first taken GPU: of two launchers for the same GPUs, one gets all.
        for uuid in sorted(set(uuids) - self._held.keys()):
            if (who := self._lock(uuid)) is not None:
                lost[uuid] = who
                if not shared:
                    self.release()
                    break
        if not lost:
            self._announcements.make(self._held)
            # Announce first, then look: of two users' launchers the later one sees the earlier.
            lost = {} if shared else {uuid: who for uuid, who in other_users_claims().items() if uuid in self._held}
            if lost:
                self.release()
        return lost

    def settle(self, plan: Callable[[Mapping[str, str]], T], uuids: Callable[[T], Sequence[str]], *, shared: bool) -> T:
        """Plan and claim until both fit; returns the plan, whose GPUs this process has claimed.

        plan: makes a plan, given the claims of others; what it raises is passed on. shared: as for `take`.
        """
        while True:
            others = self.others()
            made = plan(others)
            if self.take(uuids(made), shared=shared).keys() <= others.keys():
                return made
            # Another launcher was faster. A random pause, so that two launchers do not collide again.
            time.sleep(random.uniform(0.01, 0.1))

    def release(self) -> None:
        """Give up every claim."""
        self._announcements.withdraw()
        while self._held:
            os.close(self._held.popitem()[1])

    def _safe(self) -> bool:
        """Whether the folder belongs to this user and no other user may write to it; it is made if missing."""
        try:
            with suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            found = self._folder.lstat()
        except OSError as error:
            self.problem = f"{self._folder}: {error.strerror}"
            return False
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            self.problem = f"{self._folder} is not a folder of this user's alone"
            return False
        return True

    def _path(self, uuid: str) -> Path:
        """The claim file of a GPU."""
        return self._folder / (quote(uuid, safe="") + SUFFIX)

    def _lock(self, uuid: str) -> str | None:
        """Lock one GPU's file: None after a success, else who holds it."""
        path = self._path(uuid)
        try:
            file = open_lock_file(path)
        except OSError as error:
            self.problem = f"{path}: {error.strerror}"
            return None
        try:
            if try_lock(file):
                self._held[uuid] = file
                return None
            who = _words(owner(file))
        except OSError as error:
            self.problem, who = f"{path}: {error.strerror}", None
        os.close(file)
        return who

    def _owner(self, path: Path) -> str | None:
        """Which process holds the claim file, in words; None if no process does."""
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            pid = owner(file)
            return None if pid is None else _words(pid)
        finally:
            os.close(file)


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """The folder of this user's claims: in $XDG_RUNTIME_DIR or /run/user/UID where there is one, else in /tmp.

    Not in $TMPDIR: job managers give each job its own.
    """
    for name in (environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}"):
        if name and (folder := Path(name)).is_absolute() and folder.is_dir() and os.access(folder, os.W_OK):
            return folder / NAME
    return Path("/tmp") / f"{NAME}-{os.getuid()}"


def _words(pid: int | None) -> str:
    """`claimed by launcher pid N`."""
    return f"claimed by launcher pid {pid}" if pid else "claimed by another launcher"
