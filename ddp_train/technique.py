"""What a training technique is to the trainer: a few seams, each of which it may use or leave alone.

A technique lives in a file of its own under techniques/, as a function that takes a `Context` and returns a
`Technique`. `techniques/registry.py` lists them in order; the trainer calls what they plug in and names none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ddp_train.config.options import Config
from ddp_train.data.augment import keyed_random
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.process_group import Ranks
from ddp_train.observers.records import EpochRecord, Observer
from ddp_train.optim.losses import Loss
from ddp_train.optim.lr_schedule import Schedule
from ddp_train.optim.precision import Precision

__all__ = ["Context", "Gradients", "Moment", "Stateful", "Technique", "Update"]


class Moment(NamedTuple):
    """One optimizer step: its epoch and its number in the run (both from 0), and whose share of the batch this is."""

    epoch: int
    step: int
    seed: int
    shard: int

    def key(self, purpose: int) -> int:
        """A 64-bit key for the draws of one purpose in this step and shard (see data/augment/keyed_random.py)."""
        return keyed_random.key(keyed_random.key(self.seed, self.step, purpose), self.shard, purpose)

    def generator(self, purpose: int) -> torch.Generator:
        """A generator on the CPU for the draws of one purpose: nothing of it needs to be saved for a resume."""
        return torch.Generator().manual_seed(self.key(purpose) & (2**63 - 1))


class Stateful(Protocol):
    """What a checkpoint carries: tensors, numbers, texts, and lists and dicts of them."""

    def state_dict(self) -> dict[str, Any]:
        """The state, for `load_state_dict` of a resumed run."""

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


class Gradients(Protocol):
    """Computes the gradient of the global batch into `.grad` (added to what is there)."""

    def __call__(self, *, communicate: bool = True, count: bool = True) -> None:
        """`communicate`: join the ranks' parts (all or none of the ranks); `count`: into the epoch's loss and
        accuracy, once a step."""


class Update(Protocol):
    """One optimizer step, for techniques that need more than one gradient for it."""

    def __call__(self, gradients: Gradients, apply: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
        """`apply` prepares the gradient (unscaling, clipping and the like), steps, and clears it."""


@dataclass(frozen=True, kw_only=True)
class Technique:
    """What one technique plugs in; None is a seam that it leaves alone.

    edit         the network, in place or another one, before it is wrapped and before the optimizer sees it
    batch        (images float [n, C, H, W], targets) -> the same, changed; targets are int64 [n] or float
                 [n, classes] whose rows add up to 1; drawn from the moment's keys
    loss         a loss (a sum over the samples) to another
    schedule     the schedule of the learning rate to another
    rate         step -> a factor on the learning rate, beside the schedule's
    gradient     changes the true gradients of the global batch in place, before the optimizer
    phase        a context around each "forward", "backward" and "step" of training, and around "evaluation"
    choose       (this rank's part of a global batch, its moment) -> the part of it that is trained, its `size` over
                 all ranks; asked on all ranks, before anything else of the step
    before_step  prepares the network for a step; its result names the sort of step (None: one as any other), so that
                 each sort can be warmed up (tune/warm_up.py)
    update       takes the place of "gradient, then step"; at most one technique of a run has it
    after_step   after the optimizer's step
    before_evaluation  on all ranks, given this rank's part of the epoch's training batches, read only if iterated
    after_epoch  after evaluation, on all ranks alike; True ends the run
    evaluated    the network to evaluate and keep as the best model, in place of the trained one
    report       numbers for the records, asked for at the progress reports and at the end of an epoch
    observer     is notified of what happens in the run, on the first rank alone
    state        for the checkpoint
    looks        its state changes nothing that is trained: a run that began without it may be resumed with it
    """

    name: str
    edit: Callable[[nn.Module], nn.Module] | None = None
    batch: Callable[[Tensor, Tensor, Moment], tuple[Tensor, Tensor]] | None = None
    loss: Callable[[Loss], Loss] | None = None
    schedule: Callable[[Schedule], Schedule] | None = None
    rate: Callable[[int], float] | None = None
    gradient: Callable[[Sequence[nn.Parameter], Moment], None] | None = None
    phase: Callable[[str], AbstractContextManager[object]] | None = None
    choose: Callable[[Window, Moment], Window] | None = None
    before_step: Callable[[Moment], object] | None = None
    update: Update | None = None
    after_step: Callable[[Moment], None] | None = None
    before_evaluation: Callable[[Iterable[Batch]], None] | None = None
    after_epoch: Callable[[EpochRecord], bool] | None = None
    evaluated: nn.Module | None = None
    report: Callable[[], Mapping[str, float]] | None = None
    observer: Observer | None = None
    state: Stateful | None = None
    looks: bool = False


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a technique may look at when it is made. `network`: as the techniques before it have left it.

    `classes`: how many the data has; `image_shape`: channels, height, width; `peak_rate`: the highest learning rate;
    `class_weights`: weights of the classes in the loss, None: all alike.
    """

    config: Config
    network: nn.Module
    device: torch.device
    precision: Precision
    ranks: Ranks
    epochs: int
    steps_per_epoch: int
    global_batch: int
    classes: int
    image_shape: tuple[int, int, int]
    peak_rate: float
    class_weights: tuple[float, ...] | None = None

    @property
    def run_folder(self) -> Path:
        """Where the run writes its files."""
        assert self.config.run.out_dir is not None
        return Path(self.config.run.out_dir)
