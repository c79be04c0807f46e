"""Memory runs out on one rank in the middle of a step: all ranks retry the step with smaller micro-batches.

The rank that cannot continue still takes part in the all-reduces of its backward pass, with zeros, since the other
ranks wait for them. All ranks learn of it before any weight is changed (distributed/flag_exchange.py). The state before
the step is put back (batch statistics and the epoch's metrics), and the step is retried with micro-batches of half the
size, as are all steps after it. The samples, their augmentation, the global batch and the learning rate stay, and so
does the gradient, to rounding. Batch norm and dropout see other micro-batches, and mixup pairs neighbours within a
micro-batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddp_core.errors import SharedError
from ddp_train.buffers import CurrentBuffers
from ddp_train.config.batch_split import ceil_div, split
from ddp_train.engine.components import Components
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.step_boundary import StepBoundary
from ddp_train.torch_internals import foreach

# torch has an exception class for its CUDA allocator only; other errors only have these texts.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cuda_error_out_of_memory",
)
# cuDNN and cuBLAS raise these when they get no memory for their workspace, but for other faults too.
_PERHAPS_OUT_OF_MEMORY = (
    "unable to find an engine to execute this computation",
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
)
_NEARLY_FULL = 0.9


def is_out_of_memory(error: BaseException, device: torch.device | None = None) -> bool:
    """Whether `error` means that memory ran out, on a GPU or on the host. device: decides where the text is unclear."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = str(error).lower() if isinstance(error, RuntimeError) else ""
    if any(text in words for text in _OUT_OF_MEMORY):
        return True
    return any(text in words for text in _PERHAPS_OUT_OF_MEMORY) and _is_nearly_full(device)


def _is_nearly_full(device: torch.device | None) -> bool:
    """Whether a GPU's memory is nearly full."""
    if device is None or device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return free < (1 - _NEARLY_FULL) * total


class OutOfMemoryOnSomeRank(Exception):
    """Memory ran out on some rank. Raised on all ranks alike, before the weights change. `rank`: the first of them."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"memory ran out on rank {rank}")
        self.rank = rank


class OomRetry:
    """Runs steps, and halves their micro-batches when memory runs out.

    metrics: of the running epoch; settle: lets DistributedDataParallel find its buckets.
    """

    def __init__(
        self, components: Components, metrics: Metrics, step_boundary: StepBoundary, settle: Callable[[], None]
    ) -> None:
        self._components, self._metrics, self._step_boundary, self._settle = components, metrics, step_boundary, settle
        # With a sharded gradient, a choice of samples, or batch norm over all ranks, the other ranks wait for more than
        # AllreduceHook can complete.
        several, chosen = components.ddp is not None, any(t.choose is not None for t in components.techniques)
        can_retry = components.gradient_sync is None and not (several and (components.allreduce_hook is None or chosen))
        self._backup = _BufferBackup(components.network) if can_retry else None
        self._committed = False
        if components.progress.accumulate > components.pipeline.accumulate:
            components.pipeline.accumulate = components.progress.accumulate

    def commit(self) -> None:
        """The running step is about to change the weights: it cannot be retried any more."""
        self._committed = True

    def run(self, step: Callable[[], None]) -> bool:
        """Run a step. False: memory ran out on some rank, the state is that before the step, the micro-batches smaller.

        Errors: SharedError when they cannot be smaller, and what `step` raises.
        """
        if self._backup is None:
            step()
            return True
        self._backup.take()
        self._committed = False
        if self._components.allreduce_hook is not None:
            self._components.allreduce_hook.begin_step()
        rank = None
        try:
            step()
            return True
        except OutOfMemoryOnSomeRank as error:
            rank = error.rank
        except Exception as error:
            if (
                not is_out_of_memory(error, self._components.device)
                or self._committed
                or self._step_boundary.flags_exchanged
            ):
                raise
        # The step's memory is free only here, where the error no longer keeps its tensors alive.
        self._backup.restore()
        self._metrics.undo()
        self._components.optimizer.zero_grad(set_to_none=True)
        self._halve_micro_batches(self._leave_step() if rank is None else rank)
        if self._components.allreduce_hook is not None:
            self._components.allreduce_hook.reset()
            self._settle()
        return False

    def _leave_step(self) -> int:
        """Complete the collectives that other ranks wait for, and report the failure. Returns the lowest such rank."""
        components = self._components
        if components.device.type == "cuda":
            torch.cuda.empty_cache()
        # The largest value of a flag counts; larger for a lower rank, so that the lowest is named.
        self._step_boundary.report(out_of_memory=components.ranks.world_size - components.ranks.rank)
        if components.allreduce_hook is not None:
            components.allreduce_hook.complete_step()
        return components.ranks.world_size - self._step_boundary.exchange_flags()["out_of_memory"]

    def _halve_micro_batches(self, rank: int) -> None:
        """Halve the micro-batches, as memory ran out on `rank`. Errors: SharedError where they cannot be halved."""
        components, pipeline = self._components, self._components.pipeline
        event = f"memory ran out on rank {rank} in step {components.progress.step + 1}"
        largest = max(split(components.global_batch, pipeline.sampler.shares))
        if components.cuda_graphs:
            advice = "CUDA graphs allow no micro-batches: a smaller --batch-size, or --compile-mode default"
            raise SharedError(f"{event}; {advice}", speaks=components.ranks.is_first)
        if pipeline.accumulate >= largest:
            advice = "use a smaller model, --checkpoint-activations, or --amp"
            raise SharedError(f"{event}, with micro-batches of one image: {advice}", speaks=components.ranks.is_first)
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
    """Copies of the network's buffers: what a step changes before the weights."""

    def __init__(self, network: nn.Module) -> None:
        self._buffers = CurrentBuffers(network)
        self._copy()

    def _copy(self) -> None:
        """Make new copies, one list for each kind of tensor."""
        by_kind: dict[object, list[Tensor]] = {}
        for tensor in self._buffers.tensors:
            by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        self._pairs = [(tensors, [tensor.clone() for tensor in tensors]) for tensors in by_kind.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Copy the buffers."""
        if self._buffers.replaced():
            self._copy()
            return
        for tensors, copies in self._pairs:
            foreach("copy_", copies, tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the buffers back, into the tensors that the network had."""
        self._buffers.put(self._buffers.tensors)
        for tensors, copies in self._pairs:
            foreach("copy_", tensors, copies)
