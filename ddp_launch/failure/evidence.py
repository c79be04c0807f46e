"""Evidence about a failure from the machine: read before the ranks start, and again when a rank has failed.

The main fact is how many processes the kernel has killed because memory ran out.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ddp_launch.cli.options import Program
from ddp_launch.failure.failures import Failure
from ddp_launch.failure.known_failures import SHM, Batch, Evidence
from ddp_launch.failure.remedies import Remedy, find_remedy
from ddp_launch.plan.plan import LaunchPlan


class EvidenceCollector:
    """Collects evidence about failures. Create it before the ranks start: changes since then are evidence."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._known = Evidence(
            batch=_batch(plan),
            trainer=plan.training is not None,
            script=_script(plan.program),
            on_gpu=bool(plan.selection.indices),
            own_python=plan.program.kind != "executable",
        )
        self._kills = read_kills()

    def remedy(self, failure: Failure | None) -> Remedy | None:
        """The remedy for a failure, None where none is known. Never raises."""
        return None if failure is None else find_remedy(failure, self._evidence(failure))

    def _evidence(self, failure: Failure) -> Evidence:
        """The evidence now. What is read from this machine is left out for a failure on another machine."""
        if failure.remote is not None:
            return self._known
        kills = read_kills()
        free, total = _space(SHM)
        return replace(
            self._known,
            memory_kills=kills.since(self._kills) if kills else None,
            kills_where=kills.where if kills else "",
            shm_free=free,
            shm_total=total,
            logs_free=_space(failure.logs[0].parent)[0] if failure.logs else None,
        )


def _script(program: Program) -> Path | None:
    """The user's Python file, also one that another program starts; None for a module."""
    words = {"script": (program.name,), "executable": (program.name, *program.args)}.get(program.kind, ())
    return next((Path(word).resolve() for word in words if program.kind == "script" or word.endswith(".py")), None)


def _space(path: str | Path) -> tuple[int | None, int | None]:
    """(bytes free, bytes in all) on the file system of a path; None where the path does not exist."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None, None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _batch(plan: LaunchPlan) -> Batch | None:
    """The bundled trainer's batch; None for a user's program, or where the batch is not known yet."""
    if plan.training is None:
        return None
    data, ranks = plan.training.config.data, plan.nproc_per_node * plan.cluster.nnodes[0]
    if data.batch_size_per_rank is not None:
        return Batch(data.batch_size_per_rank * ranks, ranks, data.accumulate or 1, by_rank=True)
    return None if data.batch_size is None else Batch(data.batch_size, ranks, data.accumulate or 1)


@dataclass(frozen=True)
class Kills:
    """Processes killed for memory since the cgroup or machine started. `where`: as in "of this job's cgroup"."""

    count: int
    where: str

    def since(self, earlier: Kills | None) -> int | None:
        """How many more than `earlier`; None where the two are of different places."""
        return self.count - earlier.count if earlier is not None and earlier.where == self.where else None


def read_kills(root: Path = Path("/")) -> Kills | None:
    """The kernel's count for this process's cgroup (version 2, else 1), else for the machine; None without a count.

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
    """The number in a line `oom_kill N` of a file; None without one."""
    found = re.search(r"^oom_kill (\d+)$", _text(file), re.MULTILINE)
    return int(found[1]) if found else None


def _text(file: Path) -> str:
    """A file's text; empty where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
