"""What the machine can tell about a failure: looked at before the ranks start, and again when one has failed."""

from __future__ import annotations

import os
from contextlib import suppress

from launcher.failures import Failure
from launcher.memory_kills import read_kills
from launcher.plan import LaunchPlan
from launcher.remedies import SHM, Batch, Evidence, Remedy, find_remedy

__all__ = ["Witness"]


class Witness:
    """Made before the ranks start; what has changed since is evidence."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._batch = _batch(plan)
        self._kills = read_kills()

    def remedy(self, failure: Failure | None) -> Remedy | None:
        """What is known about a failure. Never raises."""
        return None if failure is None else find_remedy(failure, self.evidence())

    def evidence(self) -> Evidence:
        """The evidence as of now. Never raises."""
        kills = read_kills()
        free = total = None
        with suppress(OSError):
            shm = os.statvfs(SHM)
            free, total = shm.f_bavail * shm.f_frsize, shm.f_blocks * shm.f_frsize
        return Evidence(
            memory_kills=kills.since(self._kills) if kills else None,
            kills_where=kills.where if kills else "",
            shm_free=free,
            shm_total=total,
            batch=self._batch,
        )


def _batch(plan: LaunchPlan) -> Batch | None:
    if plan.training is None:
        return None
    data, ranks = plan.training.config.data, plan.nproc_per_node * plan.cluster.nnodes[0]
    if data.batch_size_per_rank is not None:
        return Batch(data.batch_size_per_rank * ranks, ranks, data.accumulate or 1, by_rank=True)
    return None if data.batch_size is None else Batch(data.batch_size, ranks, data.accumulate or 1)
