"""How many processes the kernel has killed for want of memory, so far: read before and after a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Kills", "read_kills"]


@dataclass(frozen=True)
class Kills:
    """`count` processes since the cgroup was made or the machine started; `where` says whose they were."""

    count: int
    where: str

    def since(self, earlier: Kills | None) -> int | None:
        """How many more than `earlier`; None where the two do not compare."""
        return self.count - earlier.count if earlier is not None and earlier.where == self.where else None


def read_kills(root: Path = Path("/")) -> Kills | None:
    """The kernel's counts for this process's cgroup (version 2, else 1), else for the machine. None: it does not tell.

    Sources: the kernel's cgroup-v2 manual (memory.events, oom_kill), cgroup-v1 memory manual (memory.oom_control),
    /proc/vmstat. `root` is where /proc and /sys are.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            # A container sees its own cgroup at the top, whatever its path is outside.
            files = (f"sys/fs/cgroup{path}/memory.events", "sys/fs/cgroup/memory.events")
        elif "memory" in controllers.split(","):
            files = (f"sys/fs/cgroup/memory{path}/memory.oom_control", "sys/fs/cgroup/memory/memory.oom_control")
        else:
            continue
        for file in files:
            if (count := _count(root / file)) is not None:
                return Kills(count, "of this job's cgroup")
    count = _count(root / "proc/vmstat")
    return None if count is None else Kills(count, "on this machine")


def _count(file: Path) -> int | None:
    found = re.search(r"^oom_kill (\d+)$", _text(file), re.MULTILINE)
    return int(found[1]) if found else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
