"""How the parts of a global batch become one gradient: behind one Protocol, so that the trainer need not know how.

`Averaged` uses DistributedDataParallel, with the exact weights for parts of any size. The last bits of its sums depend
on the number of ranks; those of reproducible.py do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.data.augment import keyed_random
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.process_group import Ranks, average_buffers
from ddp_train.technique import Moment


class Compute(Protocol):
    """One micro-batch forward and backward: adds its part to `.grad`."""

    def __call__(self, batch: Batch, moment: Moment, weight: float) -> None:
        """`weight`: what the sum of the micro-batch's losses is multiplied by, before the backward pass."""


class GradientSync(Protocol):
    """The gradient and the buffers of a global batch, from the parts of all ranks. Every method is a collective."""

    def gradients(
        self, window: Window, batches: Iterable[Batch], moment: Moment, compute: Compute, *, communicate: bool
    ) -> None:
        """Add the gradient of the mean loss over the global batch to `.grad`.

        batches: those of `window`. moment: this rank's; each call of `compute` gets that of its shard. communicate:
        whether the gradients must be summed over the ranks; if False, each rank may be left with its own part.
        """

    def unify(self, network: nn.Module) -> None:
        """Make the buffers (batch statistics) the same on all ranks, before evaluation and checkpoints."""

    def again(self, network: nn.Module, windows: Iterable[Window]) -> Iterator[Batch]:
        """This rank's training batches once more, for estimates that `network` collects in its buffers."""


class Averaged:
    """DistributedDataParallel takes the mean over the W ranks, so each backward starts from W / N times the SUM of the
    local losses: the gradient is that of the mean over the N samples. With class weights N is the sum of the samples'
    weights, which the losses include already. Each rank's buffers come from its own part.

    ddp: None at one rank; without_samples: takes part in the all-reduce with a gradient of zero.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        ddp: DistributedDataParallel | None,
        without_samples: Callable[[], None],
    ) -> None:
        self._ranks, self._device, self._ddp, self._without_samples = ranks, device, ddp, without_samples

    def gradients(
        self, window: Window, batches: Iterable[Batch], moment: Moment, compute: Compute, *, communicate: bool
    ) -> None:
        """See GradientSync. The gradients are all-reduced in the last micro-batch's backward pass."""
        seed_shard(self._device, moment)
        if window.count == 0 and communicate:
            self._without_samples()
        for index, batch in enumerate(batches, start=1):
            joins = communicate and index == window.count
            with contextlib.nullcontext() if joins or self._ddp is None else self._ddp.no_sync():
                compute(batch, moment, self._ranks.world_size / window.weight)

    def unify(self, network: nn.Module) -> None:
        """See GradientSync: average the buffers over the ranks."""
        average_buffers(network, self._ranks)

    def again(self, network: nn.Module, windows: Iterable[Window]) -> Iterator[Batch]:
        """See GradientSync. A generator: nothing is read before the first batch is requested."""
        for window in windows:
            yield from window.batches


def seed_shard(device: torch.device, moment: Moment, batch: int = 0) -> None:
    """Seed the generators that a shard's passes can draw from (dropout): no generator state needs saving.

    batch: its number among batches with the same moment: those of a user's own loop without a step between them.

    torch.manual_seed is not used: it also queues the call, with a stack trace, for every device that is not in use yet,
    which on a CPU takes milliseconds a step and ever more memory.
    """
    key = moment.key(keyed_random.DROPOUT)
    seed = (keyed_random.key(key, batch, keyed_random.DROPOUT) if batch else key) % 2**63
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def settle_buckets(model: nn.Module, forward: Callable[[], Tensor], hook: AllreduceHook | None = None) -> None:
    """Let DistributedDataParallel find its buckets before the first step of this process, not after it.

    With three ranks or more the order of a sum depends on the buckets: otherwise the first step after a resume would be
    rounded differently than in a run without one. A rank that leaves a step also needs to know them. forward: a forward
    pass of `model`, in evaluation mode so that it leaves no trace in batch statistics. hook: the wrapper's.
    """

    def one_pass() -> None:
        """A forward and backward pass that leaves no gradient."""
        (forward().sum() * 0.0).backward()
        model.zero_grad(set_to_none=True)

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for _ in range(2):  # the second pass begins with the buckets that the first one has found
        one_pass()
    if hook is not None:
        hook.verify(one_pass)
    for module, training in modes:
        module.training = training
