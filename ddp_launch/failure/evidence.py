"""What the machine can tell about a failure: looked at before the ranks start, and again when one has failed."""

from __future__ import annotations

import os
from pathlib import Path

from ddp_launch.failure.failures import Failure
from ddp_launch.failure.known_failures import SHM, Batch, Evidence
from ddp_launch.failure.memory_kills import read_kills
from ddp_launch.failure.remedies import Remedy, find_remedy
from ddp_launch.plan.plan import LaunchPlan

__all__ = ["Witness"]


class Witness:
    """Made before the ranks start; what has changed since is evidence."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._batch = _batch(plan)
        self._kills = read_kills()

    def remedy(self, failure: Failure | None) -> Remedy | None:
        """What is known about a failure. Never raises."""
        return None if failure is None else find_remedy(failure, self._evidence(failure))

    def _evidence(self, failure: Failure) -> Evidence:
        """The evidence as of now: of this machine, so that it says nothing about a failure on another."""
        if failure.told is not None:
            return Evidence(batch=self._batch)
        kills = read_kills()
        free, total = _space(SHM)
        return Evidence(
            memory_kills=kills.since(self._kills) if kills else None,
            kills_where=kills.where if kills else "",
            shm_free=free,
            shm_total=total,
            batch=self._batch,
            logs_free=_space(failure.logs[0].parent)[0] if failure.logs else None,
        )


def _space(path: str | Path) -> tuple[int | None, int | None]:
    """Bytes free and in all on the file system of a path; None where it is not there."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None, None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _batch(plan: LaunchPlan) -> Batch | None:
    if plan.training is None:
        return None
    data, ranks = plan.training.config.data, plan.nproc_per_node * plan.cluster.nnodes[0]
    if data.batch_size_per_rank is not None:
        return Batch(data.batch_size_per_rank * ranks, ranks, data.accumulate or 1, by_rank=True)
    return None if data.batch_size is None else Batch(data.batch_size, ranks, data.accumulate or 1)
