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
from ddp_train.engine.components import Components
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.step_boundary import StepBoundary
from ddp_train.torch_internals import foreach


class OutOfMemoryOnSomeRank(Exception):
    """Memory ran out on some rank; on all ranks alike, before the weights were touched. `rank`: the first of them."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"memory ran out on rank {rank}")
        self.rank = rank


class OomRetry:
    """Takes steps, in smaller parts where memory runs out.

    metrics: of the running epoch; settle: lets DistributedDataParallel find its buckets.
    """

    def __init__(
        self, components: Components, metrics: Metrics, step_boundary: StepBoundary, settle: Callable[[], None]
    ) -> None:
        self._components, self._metrics, self._step_boundary, self._settle = components, metrics, step_boundary, settle
        # Of a sharded gradient, or batch norm over all ranks, the others wait for more than AllreduceHook can complete.
        can_repeat = components.gradient_sync is None and (
            components.ddp is None or components.allreduce_hook is not None
        )
        self._backup = _BufferBackup(components.network) if can_repeat else None
        self.weights_touched = False
        """To be set once the step can no longer be put back."""
        if components.progress.accumulate > components.pipeline.accumulate:
            components.pipeline.accumulate = components.progress.accumulate

    def take(self, step: Callable[[], None]) -> bool:
        """Take a step; False where memory ran out on any rank: all is as before then, but for the micro-batches.

        Errors: SharedError where they cannot be smaller, and what `step` raises.
        """
        if self._backup is None:
            step()
            return True
        self._backup.keep()
        self.weights_touched = False
        if self._components.allreduce_hook is not None:
            self._components.allreduce_hook.begin()
        rank = None
        try:
            step()
            return True
        except OutOfMemoryOnSomeRank as error:
            rank = error.rank
        except Exception as error:
            if not is_out_of_memory(error) or self.weights_touched or self._step_boundary.flags_exchanged:
                raise
        # Only here, where the error no longer holds what the step has computed, is that memory free.
        self._backup.put_back()
        self._metrics.undo()
        self._components.optimizer.zero_grad(set_to_none=True)
        self._shrink(self._break_off() if rank is None else rank)
        if self._components.allreduce_hook is not None:
            self._components.allreduce_hook.reset()
            self._settle()
        return False

    def _break_off(self) -> int:
        """Make good what this rank owes, and tell the others; the first rank whose memory ran out."""
        components = self._components
        if components.device.type == "cuda":
            torch.cuda.empty_cache()
        self._step_boundary.trouble["out_of_memory"] = components.ranks.world_size - components.ranks.rank
        if components.allreduce_hook is not None:
            components.allreduce_hook.pay()
        return components.ranks.world_size - self._step_boundary.exchange_flags()["out_of_memory"]

    def _shrink(self, rank: int) -> None:
        """Halve the micro-batches; memory ran out on `rank`."""
        components, pipeline = self._components, self._components.pipeline
        event = f"memory ran out on rank {rank} in step {components.progress.step + 1}"
        largest = max(split(components.global_batch, pipeline.sampler.shares))
        if pipeline.accumulate >= largest:
            raise SharedError(
                f"{event}, with micro-batches of one image: take a smaller model, --checkpoint-activations, or --amp",
                speaks=components.ranks.is_first,
            )
        pipeline.accumulate = components.progress.accumulate = min(2 * pipeline.accumulate, largest)
        if components.ranks.is_first:
            print(
                f"{event}: the step is retried, from now on in "
                f"micro-batches of {ceil_div(largest, pipeline.accumulate)} images (--accumulate "
                f"{pipeline.accumulate}); global batch, order and learning rate stay",
                file=sys.stderr,
                flush=True,
            )


class _BufferBackup:
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
            foreach("copy_", copies, tensors)

    @torch.no_grad()
    def put_back(self) -> None:
        """As it was when the copies were taken."""
        for tensors, copies in self._kinds:
            foreach("copy_", tensors, copies)


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
