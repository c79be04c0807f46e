"""What a rank owes the others that breaks off in the middle of a step: the all-reduces that they wait for."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ddp_train.distributed.shm_allreduce import SharedGradients
from ddp_train.torch_internals import complete_allreduces, reset_reducer


class AllreduceHook:
    """Counts the all-reduces that DistributedDataParallel issues in a step, to make good those that are missing.

    They go through `shared` where it is given, else over the process group. Over two ranks the gradients are those of
    DistributedDataParallel by itself, bit for bit; three numbers or more it divides and adds up in another way. At most
    one for each wrapper, and as long as it is used.
    """

    def __init__(self, ddp: DistributedDataParallel, shared: SharedGradients | None = None) -> None:
        self._ddp = ddp
        self.shared = shared
        self.issued = 0
        """All-reduces of the running step so far."""
        # Without annotations, of which torch accepts its own classes alone, not their names; weak, as the wrapper
        # would otherwise hold itself through its hook, and with it the shared memory.
        ddp.register_comm_hook(weakref.proxy(self), lambda state, bucket: state._reduce(bucket))

    def begin(self) -> None:
        """A step begins."""
        self.issued = 0

    def pay(self) -> None:
        """Take part, with zeros, in what the other ranks still wait for in this step; `reset` has to follow."""
        complete_allreduces(self._ddp, self.issued)

    def reset(self) -> None:
        """Ready for another step, on all ranks alike: the wrapper finds its buckets anew."""
        reset_reducer(self._ddp)

    def _reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """The mean over the ranks."""
        self.issued += 1
        if self.shared is not None:
            return self.shared.average(bucket.buffer(), last=bucket.is_last())
        gradients = bucket.buffer().div_(self._ddp.process_group.size())
        work = dist.all_reduce(gradients, group=self._ddp.process_group, async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return future
