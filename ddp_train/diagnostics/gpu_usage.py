"""How busy the GPUs are during an epoch, for the records: utilisation and memory as the driver reports them.

Effect: `gpu_utilization` (mean, fraction of 1) and `gpu_memory` (highest, bytes) of this node's GPUs in the history,
in TensorBoard and in the curves; training is not touched. Cost: a few calls of the driver a second, on the first rank;
on the CPU none. It combines with everything. Source: NVML, nvmlDeviceGetUtilizationRates and MemoryInfo.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ddp_train.distributed.process_group import gpu_uuids
from ddp_train.observers.records import EpochRecord
from ddp_train.technique import Context, Moment, Technique

INTERVAL_S = 1.0


def create(context: Context) -> Technique:
    """On whenever a run has GPUs."""
    uuids = gpu_uuids(context.ranks, context.device)
    if not (uuids and context.ranks.is_first):
        return Technique(name="gpu_usage")
    usage = Usage(uuids)
    return Technique(name="gpu_usage", after_step=usage.after_step, after_epoch=usage.after_epoch, report=usage.report)


class Usage:
    """Readings of some GPUs, at most one every `interval_s`, over the current epoch."""

    def __init__(self, uuids: Sequence[str], interval_s: float = INTERVAL_S) -> None:
        self._uuids, self._interval_s = uuids, interval_s
        self._read_at = time.monotonic()
        self._busy: list[float] = []
        self._memory = 0

    def after_step(self, moment: Moment) -> None:
        """Read utilization and memory, at most once in an interval."""
        if time.monotonic() - self._read_at < self._interval_s:
            return
        from gpu_topology.monitor import read_gpus

        readings = read_gpus(self._uuids)
        self._read_at = time.monotonic()
        self._busy += [reading.utilization / 100 for reading in readings if reading.utilization is not None]
        self._memory = max([self._memory, *(reading.memory_used or 0 for reading in readings)])

    def after_epoch(self, record: EpochRecord) -> bool:
        """Start the next epoch from zero; never ends the run."""
        self._busy, self._memory = [], 0
        return False

    def report(self) -> Mapping[str, float]:
        """What the driver reported in this epoch; what it cannot read is left out."""
        found = {"gpu_utilization": sum(self._busy) / len(self._busy)} if self._busy else {}
        return found | ({"gpu_memory": float(self._memory)} if self._memory else {})
