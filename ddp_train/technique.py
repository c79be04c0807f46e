"""The interface between the trainer and a training technique: a set of hooks, all of them optional.

A technique lives in its own file under techniques/, as a function that takes a `Context` and returns a `Technique`.
`techniques/registry.py` lists them in order; the trainer calls their hooks and refers to no technique by name.
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
    """One optimizer step: its epoch and its number in the run (both from 0), the run's seed, and the batch's shard."""

    epoch: int
    step: int
    seed: int
    shard: int

    def key(self, purpose: int) -> int:
        """A 64-bit key for the draws of one purpose in this step and shard (see data/augment/keyed_random.py)."""
        return keyed_random.key(keyed_random.key(self.seed, self.step, purpose), self.shard, purpose)

    def generator(self, purpose: int) -> torch.Generator:
        """A CPU generator for the draws of one purpose, seeded by `key`: a resume needs no saved state."""
        return torch.Generator().manual_seed(self.key(purpose) & (2**63 - 1))


class Stateful(Protocol):
    """An object whose state a checkpoint holds: tensors, numbers, strings, and lists and dicts of them."""

    def state_dict(self) -> dict[str, Any]:
        """The state, for `load_state_dict` of a resumed run."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Restore a state that `state_dict` returned."""


class Gradients(Protocol):
    """Computes the gradient of the global batch and adds it to `.grad`."""

    def __call__(self, *, communicate: bool = True, count: bool = True) -> None:
        """`communicate`: combine the ranks' parts (the same on all ranks); `count`: add to the epoch's loss and
        accuracy, once per step."""


class Update(Protocol):
    """One optimizer step, for techniques that need more than one gradient for it."""

    def __call__(self, gradients: Gradients, apply: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
        """`apply` prepares the gradient (unscaling, clipping and the like), steps, and clears it."""


@dataclass(frozen=True, kw_only=True)
class Technique:
    """The hooks of one technique; None where it does not use the hook.

    edit         changes the network in place, or returns another one, before it is wrapped and has an optimizer
    batch        (images float [n, C, H, W], targets) -> the same, changed; targets are int64 [n] or float
                 [n, classes] whose rows add up to 1; drawn from the moment's keys
    loss         maps the loss (a sum over the samples) to another one
    schedule     maps the learning-rate schedule to another one
    rate         step -> a factor on the learning rate, in addition to the schedule
    gradient     changes the (unscaled) gradients of the global batch in place, before the optimizer's step
    phase        a context around each "forward", "backward" and "step" of training, and around "evaluation"
    choose       (this rank's part of a global batch, its moment) -> the part of it to train on, with its `size` over
                 all ranks; called on all ranks, after `before_step`
    before_step  prepares the network for a step; its result names the kind of step (None: the usual kind), so that
                 each kind can be warmed up (tune/warm_up.py)
    update       replaces "gradient, then step"; at most one technique of a run has it
    after_step   called after the optimizer's step
    before_evaluation  on all ranks, given this rank's part of the epoch's training batches, read only if iterated
    after_epoch  called after evaluation, on all ranks; True ends the run
    evaluated    the network to evaluate and keep as the best model, in place of the trained one
    report       numbers for the records, read at the progress reports and at the end of an epoch
    observer     is notified of the run's events, on rank 0 only
    state        what the checkpoint holds of the technique
    looks        True: the state does not affect training, so a run that began without it may be resumed with it
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
    """What a technique may read when it is created. `network`: with the changes of the techniques before it.

    `classes`: number of classes; `image_shape`: channels, height, width; `peak_rate`: the highest learning rate;
    `class_weights`: weights of the classes in the loss, None: equal weights.
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
