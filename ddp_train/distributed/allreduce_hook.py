"""Counts the all-reduces of DistributedDataParallel, so that a rank that fails in mid-step can still join them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ddp_train.distributed.shm_allreduce import SharedGradients
from ddp_train.torch_internals import bucket_count, collectives_issued, complete_allreduces, reset_reducer


class AllreduceHook:
    """Counts the all-reduces that DistributedDataParallel issues in a step, to complete those that are missing.

    They go through `shared` memory if it is given, else over the process group. With two ranks the gradients are those
    of DistributedDataParallel alone, bit for bit; with more ranks it divides and adds them up in another way. Use at
    most one for each wrapper, and keep it as long as the wrapper is used.

    by_group: leave the all-reduces to the wrapper, in C++ and without Python's lock, and count them by the process
    group's own sequence number; for NCCL. `verify` falls back to counting in the hook where that number is wrong.
    """

    def __init__(
        self, ddp: DistributedDataParallel, shared: SharedGradients | None = None, *, by_group: bool = False
    ) -> None:
        self._ddp = ddp
        self.shared = shared
        self._issued = 0
        self._by_group = by_group and shared is None and collectives_issued(ddp.process_group) is not None
        if not self._by_group:
            self._register()

    def _register(self) -> None:
        """Register this hook with the wrapper."""
        # A lambda has no annotations: torch accepts only its own classes there, not their names. A weak reference:
        # the wrapper would otherwise keep itself alive through its hook, and with it the shared memory.
        self._ddp.register_comm_hook(weakref.proxy(self), lambda state, bucket: state._reduce(bucket))

    @property
    def issued(self) -> int:
        """All-reduces of the running step so far."""
        return (collectives_issued(self._ddp.process_group) or 0) - self._issued if self._by_group else self._issued

    def wait_with(self, wait: Callable[[], object]) -> None:
        """Where gradients go through shared memory, let the ranks wait for one another by calling `wait`."""
        if self.shared is not None:
            self.shared.wait_with(wait)

    def begin_step(self) -> None:
        """Start a step: no all-reduce has been issued yet."""
        self._issued = (collectives_issued(self._ddp.process_group) or 0) if self._by_group else 0

    def verify(self, one_pass: Callable[[], None]) -> None:
        """Check the count with a forward and backward pass, once the wrapper has found its buckets. On all ranks."""
        if not self._by_group:
            return
        self.begin_step()
        one_pass()
        if self.issued != bucket_count(self._ddp):
            self._by_group = False
            self._register()

    def complete_step(self) -> None:
        """Take part with zeros in the all-reduces that other ranks still wait for in this step; then call `reset`."""
        complete_allreduces(self._ddp, self.issued)

    def reset(self) -> None:
        """Make ready for another step, on all ranks alike: the wrapper finds its buckets again."""
        reset_reducer(self._ddp)

    def _reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Replace a bucket's gradients by their mean over the ranks."""
        self._issued += 1
        if self.shared is not None:
            return self.shared.average(bucket.buffer(), last=bucket.is_last())
        gradients = bucket.buffer().div_(self._ddp.process_group.size())
        work = dist.all_reduce(gradients, group=self._ddp.process_group, async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return future
