"""Claims of other users' launchers, whose folders we cannot read: announced through abstract sockets.

An abstract Unix socket (unix(7)) has a name but no file, belongs to one network namespace, is listed for all users in
/proc/net/unix, and ends with its process; the kernel reports which process listens on it (SO_PEERCRED).
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

NAME = "ddp-launch-claim/{uid}/{uuid}"
LISTED = re.compile(r" @ddp-launch-claim/(\d+)/(\S+)$", re.MULTILINE)
SOCKETS = Path("/proc/net/unix")
# struct ucred: process, user, group.
CREDENTIALS = "iII"


class Announcements:
    """Announces this process's claims to other users. Never raises: the driver shows the use of a GPU soon enough."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def make(self, uuids: Iterable[str]) -> None:
        """Announce claims on these GPUs."""
        for uuid in uuids:
            # An error means that the name is in use: another launcher of this user shares the GPU.
            with suppress(OSError):
                made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._sockets.append(made)
                made.bind("\0" + NAME.format(uid=os.getuid(), uuid=quote(uuid, safe="")))
                made.listen(8)

    def withdraw(self) -> None:
        """Withdraw all announcements."""
        while self._sockets:
            self._sockets.pop().close()


def other_users_claims() -> dict[str, str]:
    """UUID -> who claims it, for the claims of other users."""
    try:
        listed = SOCKETS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {}
    for uid, name in LISTED.findall(listed):
        if int(uid) != os.getuid() and (pid := _listener(int(uid), name)) is not None:
            found[unquote(name)] = f"claimed by launcher pid {pid} of {_user(int(uid))}"
    return found


def _listener(uid: int, name: str) -> int | None:
    """Process id of the listener on a claim's socket, 0 if unknown; None without one, or if it is another user's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect("\0" + NAME.format(uid=uid, uuid=name))
            told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(CREDENTIALS))
        except BlockingIOError:
            return 0  # its queue is full of other launchers' requests
        except OSError:
            return None
    pid, owner, _ = struct.unpack(CREDENTIALS, told)
    return int(pid) if owner == uid else None


def _user(uid: int) -> str:
    """A user's name, or the number where there is no name."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user number {uid}"
