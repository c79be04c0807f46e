"""Starts the watchdog of a node and makes this rank known to it (`--step-timeout`)."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ddp_train.distributed import heartbeat
from ddp_train.distributed.process_group import Ranks
from ddp_train.watchdog import process

AGENT = "TORCHELASTIC_RUN_ID"
# The values that the ranks of one attempt share, and that no other attempt has.
COMMON = ("MASTER_ADDR", "MASTER_PORT", AGENT, "TORCHELASTIC_RESTART_COUNT")


def start(ranks: Ranks, timeout_s: float | None) -> str | None:
    """Have this rank watched. `timeout_s`: as --step-timeout; 0 watches nothing, None (automatic) no single rank, since
    no other rank waits for it. Returns why that cannot be done, in one line; None where it is done or not needed."""
    if timeout_s == 0 or (timeout_s is None and ranks.world_size == 1):
        return None
    try:
        folder = _folder(ranks, os.environ)
        heartbeat.heartbeat.announce(folder / f"rank-{ranks.rank}")
        if ranks.rank == _first(ranks):
            limit = "auto" if timeout_s is None else str(timeout_s)
            nodes = max(1, ranks.world_size // ranks.local_world_size)
            of_rank = (str(folder), str(ranks.local_world_size), str(nodes), limit, str(os.getpid()))
            subprocess.Popen(
                (sys.executable, "-I", "-S", process.__file__, *of_rank),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # At a terminal, Ctrl-Z should stop both; under an agent, stopping a rank's process group must not
                # stop its watchdog.
                start_new_session=AGENT in os.environ,
            )
            _remove_abandoned()
    except (OSError, AttributeError) as error:
        return f"ranks that hang are not noticed: {error}"
    return None


def _folder(ranks: Ranks, environ: Mapping[str, str]) -> Path:
    """A folder for this user alone, with a name that all ranks of the node compute. The watchdog soon removes it."""
    several = ranks.world_size > 1
    common = [str(_first(ranks)), *(environ.get(name, "") for name in COMMON)] if several else [str(os.getpid())]
    name = hashlib.sha256("\0".join(common).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"{_prefix()}{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user's alone")
    return folder


def _prefix() -> str:
    """Name prefix of this user's folders in this PID namespace, where process ids are valid (pid_namespaces(7))."""
    return f"ddp-train-{os.getuid()}-{Path('/proc/self/ns/pid').stat().st_ino}-"


def _remove_abandoned() -> None:
    """Remove the folders of ranks that were killed before their watchdog had met them all."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        with suppress(OSError, ValueError, IndexError):
            announced = list(folder.glob("rank-*"))
            if announced and not any(Path(f"/proc/{path.read_text().split()[0]}").exists() for path in announced):
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()


def _first(ranks: Ranks) -> int:
    """The first rank of this node; local ranks may all be 0 (torchrun --virtual-local-rank)."""
    return ranks.rank - ranks.rank % ranks.local_world_size
