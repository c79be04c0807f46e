"""What a rank owes the others that breaks off in the middle of a step: the all-reduces that they wait for."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Owed"]


class Owed:
    """Counts the all-reduces that DistributedDataParallel issues in a step, to make good those that are missing.

    Its sums are those of DistributedDataParallel without it, bit for bit. At most one for each wrapper.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp
        self.issued = 0
        """All-reduces of the running step so far."""
        # Without annotations, of which torch accepts its own classes alone, not their names.
        ddp.register_comm_hook(None, lambda state, bucket: self._reduce(bucket))

    def begin(self) -> None:
        """A step begins."""
        self.issued = 0

    def pay(self) -> None:
        """Take part, with zeros, in what the other ranks still wait for in this step; `reset` has to follow."""
        # What torch's own Join does for ranks that have run out of samples.
        reducer: Any = self._ddp.reducer
        for bucket in reducer._get_zeros_like_grad_buckets()[self.issued :]:
            reducer._run_comm_hook(bucket).wait()

    def reset(self) -> None:
        """Ready for another step, on all ranks alike: the wrapper finds its buckets anew."""
        reducer: Any = self._ddp.reducer
        reducer._reset_state()

    def _reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """The mean over the ranks."""
        self.issued += 1
        gradients = bucket.buffer().div_(self._ddp.process_group.size())
        work = dist.all_reduce(gradients, group=self._ddp.process_group, async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return future
