"""Starts the watchdog of a node and makes this rank known to it (`--step-timeout`)."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ddp_train import heartbeat, watchdog
from ddp_train.distributed import Ranks

__all__ = ["start"]

# What the ranks of one node and attempt have in common, and those of no other.
COMMON = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "GROUP_RANK")


def start(ranks: Ranks, timeout_s: float | None) -> str | None:
    """Have this rank watched. `timeout_s`: as --step-timeout; 0 watches nothing, None (automatic) no lone rank, for
    which nobody waits. Why that cannot be done, in one line; None where it can or need not be."""
    if timeout_s == 0 or (timeout_s is None and ranks.world_size == 1):
        return None
    try:
        folder = _folder(ranks, os.environ)
        heartbeat.own.announce(folder / f"rank-{ranks.rank}")
        if ranks.rank % ranks.local_world_size == 0:
            _start_watchdog(folder, ranks, timeout_s)
    except (OSError, AttributeError) as error:
        return f"ranks that hang are not noticed: {error}"
    return None


def _folder(ranks: Ranks, environ: Mapping[str, str]) -> Path:
    """This user's alone, by a name that all ranks of the node find. The watchdog removes it within moments."""
    common = [environ.get(name, "") for name in COMMON] if ranks.world_size > 1 else [str(os.getpid())]
    name = hashlib.sha256("\0".join(common).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ddp-train-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user's alone")
    return folder


def _start_watchdog(folder: Path, ranks: Ranks, timeout_s: float | None) -> None:
    limit = "auto" if timeout_s is None else str(timeout_s)
    nodes = max(1, ranks.world_size // ranks.local_world_size)
    # In the process group of this rank: Ctrl-Z stops both.
    subprocess.Popen(
        (sys.executable, "-I", "-S", watchdog.__file__, str(folder), str(ranks.local_world_size), str(nodes), limit),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
