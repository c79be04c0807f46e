"""Flags that the ranks exchange in every step: a few small whole numbers; every rank gets the largest of each.

Cost: 0.33 ms a step on two gloo ranks of one machine with two cores (`python -m benchmarks.control_cost`); beside NCCL
not yet measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks

FLAGS = ("stop", "save", "interrupted", "not_finite", "out_of_memory")
"""In order: the number of the signal that asks the run to stop; a checkpoint is due; an evaluation was interrupted;
a loss or gradient is not finite; memory ran out. 0 means no."""
_NONE = dict.fromkeys(FLAGS, 0)


class FlagExchange:
    """Exchanges flags over its own gloo group, beside NCCL: on the host, so that no rank waits for a device.

    Nothing is sent at world size 1. Create it on all ranks, after the process group.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        several = ranks is not None and ranks.world_size > 1
        self.group: Any = dist.new_group(backend="gloo") if several else None
        """The gloo group, also for other exchanges on the host; None at world size 1."""

    def exchange(self, flags: Mapping[str, int]) -> dict[str, int]:
        """The largest value of each flag over all ranks. On all ranks alike."""
        if self.group is None:
            return {**_NONE, **flags}
        values = torch.tensor([flags.get(name, 0) for name in FLAGS], dtype=torch.int32)
        with heartbeat.during("communication"):
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return dict(zip(FLAGS, values.tolist(), strict=True))
