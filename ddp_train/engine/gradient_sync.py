"""How the parts of a global batch become one gradient: behind one Protocol, so that the trainer need not know the way.

`Averaged` is DistributedDataParallel's way, with the exact weights for parts of any size. Its sums follow the number
of ranks in their last bits; reproducible.py has the way in which they do not.
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
        """The gradient of the mean loss over the global batch into `.grad`, added to what is there.

        batches: those of `window`. moment: of this rank; each call of `compute` gets that of its shard. communicate:
        whether the ranks' parts need to be joined; without, a way may leave each rank its own.
        """

    def unify(self, network: nn.Module) -> None:
        """The same buffers (batch statistics) on all ranks, before evaluation and checkpoints."""

    def again(self, network: nn.Module, windows: Iterable[Window]) -> Iterator[Batch]:
        """This rank's training batches once more, for estimates that `network` collects in its buffers."""


class Averaged:
    """DistributedDataParallel takes the mean over the W ranks, so each backward starts from W / N times the SUM of the
    local losses: the gradient is that of the mean over the N samples. With class weights N is the sum of the samples'
    weights, which the losses hold already. Buffers are those of each rank's own part.

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
        """See GradientSync. The last micro-batch's backward pass joins the ranks."""
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
        """See GradientSync; nothing is prepared before the first batch is asked for."""
        for window in windows:
            yield from window.batches


def seed_shard(device: torch.device, moment: Moment) -> None:
    """Seed the generators that a shard's passes can draw from (dropout): no generator state needs saving.

    torch.manual_seed also notes the call for every device that is not in use yet, with a stack trace: milliseconds a
    step on a CPU, and memory that grows.
    """
    seed = moment.key(keyed_random.DROPOUT) % 2**63
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def settle_buckets(model: nn.Module, forward: Callable[[], Tensor], hook: AllreduceHook | None = None) -> None:
    """Let DistributedDataParallel find its buckets before the first step of this process, not after it.

    Over three ranks or more the order of a sum depends on them: else the first step after a resume would be rounded in
    another way than it was without. And a rank that leaves a step needs to know them. forward: a forward pass of
    `model`, in evaluation mode so that it leaves no trace in batch statistics. hook: of the wrapper.
    """

    def one_pass() -> None:
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
