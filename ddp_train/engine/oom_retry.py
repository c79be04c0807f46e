"""When memory runs out on one rank in the middle of a step: all ranks take smaller micro-batches and the step again.

The rank that cannot go on owes the others the all-reduces of its backward pass: it takes part in those that are left
with zeros, and all ranks learn of it before any weight is touched (distributed/flag_exchange.py). The step is then
put back (batch statistics and the epoch's sums) and taken again, with micro-batches of half the size from there on.
The samples, their augmentation, the global batch and the learning rate stay, and so does the gradient, to rounding;
batch norm and dropout see other micro-batches, and a mixup pair is one of neighbours within a micro-batch.

Telling an error that means "no memory left" from every other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddp_core.errors import SharedError
from ddp_train.config.batch_split import ceil_div, split
from ddp_train.engine.components import Parts
from ddp_train.engine.metrics import Sums
from ddp_train.engine.step_boundary import Boundary


class OutOfMemoryTogether(Exception):
    """Memory ran out on some rank; on all ranks alike, before the weights were touched. `rank`: the first of them."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"memory ran out on rank {rank}")
        self.rank = rank


class Attempts:
    """Takes steps, in smaller parts where memory runs out.

    sums: of the running epoch; settle: lets DistributedDataParallel find its buckets.
    """

    def __init__(self, parts: Parts, sums: Sums, boundary: Boundary, settle: Callable[[], None]) -> None:
        self._parts, self._sums, self._boundary, self._settle = parts, sums, boundary, settle
        # Of a sharded gradient, or batch norm over all ranks, the others wait for more than Owed can make good.
        can_repeat = parts.joining is None and (parts.ddp is None or parts.owed is not None)
        self._before = _Before(parts.network) if can_repeat else None
        self.weights_touched = False
        """To be set once the step can no longer be put back."""
        if parts.progress.accumulate > parts.pipeline.accumulate:
            parts.pipeline.accumulate = parts.progress.accumulate

    def take(self, step: Callable[[], None]) -> bool:
        """Take a step; False where memory ran out on any rank: all is as before then, but for the micro-batches.

        Errors: SharedError where they cannot be smaller, and what `step` raises.
        """
        if self._before is None:
            step()
            return True
        self._before.keep()
        self.weights_touched = False
        if self._parts.owed is not None:
            self._parts.owed.begin()
        rank = None
        try:
            step()
            return True
        except OutOfMemoryTogether as error:
            rank = error.rank
        except Exception as error:
            if not is_out_of_memory(error) or self.weights_touched or self._boundary.has_met:
                raise
        # Only here, where the error no longer holds what the step has computed, is that memory free.
        self._before.put_back()
        self._sums.undo()
        self._parts.optimizer.zero_grad(set_to_none=True)
        self._shrink(self._break_off() if rank is None else rank)
        if self._parts.owed is not None:
            self._parts.owed.reset()
            self._settle()
        return False

    def _break_off(self) -> int:
        """Make good what this rank owes, and tell the others; the first rank whose memory ran out."""
        parts = self._parts
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()
        self._boundary.trouble["out_of_memory"] = parts.ranks.world_size - parts.ranks.rank
        if parts.owed is not None:
            parts.owed.pay()
        return parts.ranks.world_size - self._boundary.agree()["out_of_memory"]

    def _shrink(self, rank: int) -> None:
        """Halve the micro-batches; memory ran out on `rank`."""
        parts, pipeline = self._parts, self._parts.pipeline
        largest = max(split(parts.global_batch, pipeline.sampler.shares))
        if pipeline.accumulate >= largest:
            raise SharedError(
                f"memory ran out on rank {rank} in step {parts.progress.step + 1}, with micro-batches of one image: "
                "take a smaller model, --checkpoint-activations, or --amp",
                speaks=parts.ranks.is_first,
            )
        pipeline.accumulate = parts.progress.accumulate = min(2 * pipeline.accumulate, largest)
        if parts.ranks.is_first:
            print(
                f"memory ran out on rank {rank} in step {parts.progress.step + 1}: it is taken again, from here on "
                f"in micro-batches of {ceil_div(largest, pipeline.accumulate)} images (--accumulate "
                f"{pipeline.accumulate}); global batch, order and learning rate stay",
                file=sys.stderr,
                flush=True,
            )


class _Before:
    """Copies of what a step changes in the network before the weights: buffers."""

    def __init__(self, network: nn.Module) -> None:
        self._kinds: list[tuple[Sequence[Tensor], Sequence[Tensor]]] = []
        by_kind: dict[object, list[Tensor]] = {}
        for tensor in network.buffers():
            by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for tensors in by_kind.values():
            self._kinds.append((tensors, [tensor.clone() for tensor in tensors]))

    @torch.no_grad()
    def keep(self) -> None:
        """Take new copies."""
        for tensors, copies in self._kinds:
            torch._foreach_copy_(list(copies), list(tensors))

    @torch.no_grad()
    def put_back(self) -> None:
        """As it was when the copies were taken."""
        for tensors, copies in self._kinds:
            torch._foreach_copy_(list(tensors), list(copies))


# torch raises its own class for the CUDA allocator alone; libraries and the CPU's allocator say it in words.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cuda_error_out_of_memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
