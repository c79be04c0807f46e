"""How much host memory is still available."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the kernel reports as available, and at most what the control group's limit leaves (cgroup v2).

    The page cache counts as available in both: the kernel frees it when memory is needed.
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return available
    return max(0, min(available, limit - used + files))
