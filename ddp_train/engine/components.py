"""What a run is made of: everything that assemble/build.py puts together and the trainer uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.checkpoint.manager import Saver
from ddp_train.checkpoint.progress import Advice, Progress
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.gradient_sync import GradientSync
from ddp_train.engine.nan_guard import NanGuard
from ddp_train.engine.stop_signals import StopSignals
from ddp_train.observers.records import Observer
from ddp_train.optim.losses import Loss
from ddp_train.optim.lr_schedule import Schedule
from ddp_train.optim.precision import Precision
from ddp_train.technique import Technique


@dataclass(frozen=True, kw_only=True)
class LoopParts:
    """The parts of any training loop (loop.py): the trainer's and a user's own."""

    ranks: Ranks
    device: torch.device
    precision: Precision
    seed: int = 0
    log_every: int = 20
    observers: Sequence[Observer] = ()
    saver: Saver | None = None
    nan_guard: NanGuard | None = None
    allreduce_hook: AllreduceHook | None = None
    """Lets a rank whose memory runs out complete a step's all-reduces; None where that is impossible."""
    flag_exchange: FlagExchange = field(default_factory=FlagExchange)
    stop: StopSignals = field(default_factory=StopSignals)
    progress: Progress = field(default_factory=Progress)
    advice: Advice = field(default_factory=lambda: Advice("--resume"))


@dataclass(frozen=True, kw_only=True)
class Components(LoopParts):
    """Everything that a run is made of. `network` is the bare model, `model` what is called (wrapped, compiled)."""

    network: nn.Module
    model: nn.Module
    ddp: DistributedDataParallel | None
    pipeline: Pipeline
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    epochs: int
    global_batch: int
    classes: int = 0
    """Number of classes in the data; 0: not known, and no balanced accuracy."""
    stop_after: float = math.inf
    techniques: Sequence[Technique] = ()
    cuda_graphs: bool = False
    """Whether the compiled model records CUDA graphs: the gradients of one micro-batch are overwritten by the next."""
    gradient_sync: GradientSync | None = None
    """How the gradients of ranks and micro-batches are combined; None: as DistributedDataParallel does."""

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and to keep as the best model: averaged weights, where a technique has them."""
        averaged = [technique.evaluated for technique in self.techniques if technique.evaluated is not None]
        return averaged[-1] if averaged else self.network
