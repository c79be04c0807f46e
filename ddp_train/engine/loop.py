"""The base of every training loop here: epochs, the step that all ranks agree on, and what happens after it.

The bundled trainer (trainer.py) and users' own loops (ddp_train/library) run on it: `epochs` is the outer loop,
`begin_step`, `apply` and `end_step` make one optimizer step. The caller computes the gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from ddp_train.checkpoint.manager import HasState
from ddp_train.diagnostics.epoch_costs import EpochCosts
from ddp_train.distributed.process_group import to_host
from ddp_train.engine.components import LoopParts
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.step_boundary import StepBoundary
from ddp_train.observers.records import EpochRecord, StepReport
from ddp_train.technique import Moment

LONGEST_SILENCE_S = 30.0
"""Seconds after the last report at which a slow step is reported, although --log-every is not reached."""


class Report(Protocol):
    """The caller's part of a progress report."""

    def __call__(self, *, loss: float, correct: float, samples: float, seconds: float) -> StepReport:
        """loss, correct, samples: sums over this rank's part of the epoch so far. seconds: those of the epoch."""


class Loop:
    """The running training of one rank. `report`: makes the reports that the observers get within an epoch."""

    def __init__(self, parts: LoopParts, report: Report) -> None:
        self._parts, self._report = parts, report
        self.metrics = Metrics(parts.device)
        self.boundary = StepBoundary(parts, self.metrics)
        self._reported_at = time.monotonic()
        self._costs = EpochCosts(parts.ranks, parts.device, parts.flag_exchange)

    def epochs(self, count: float, settle: Callable[[], None]) -> Iterator[int]:
        """The epochs that are left of `count`, from 0; each is ended by `end_epoch`.

        settle: lets DistributedDataParallel find its buckets (gradient_sync.settle_buckets). Errors: Stopped by a
        signal, after a checkpoint.
        """
        parts, progress = self._parts, self._parts.progress
        with parts.stop.deferred():
            settle()
            if parts.saver is not None:
                parts.saver.begin()
            self._costs.begin(within_an_epoch=progress.step_in_epoch > 0)
            while progress.epoch < count and not progress.stopped:
                self.boundary.begin_epoch()
                self.metrics.start(*progress.sums)
                yield progress.epoch
            if parts.saver is not None:
                parts.saver.finish()

    def end_epoch(self, record: EpochRecord, best: HasState | None) -> None:
        """Record a finished epoch and write its checkpoint. best: the network to keep, where it is the best so far.

        Errors: Stopped.
        """
        progress, record = self._parts.progress, self._costs.add(record)
        progress.end_epoch()
        progress.total_seconds += record.seconds
        for observer in self._parts.observers:
            observer.on_epoch(record)
        self.boundary.after_epoch(best)

    def begin_step(self) -> None:
        """An optimizer step begins; its losses go into `metrics`."""
        self.metrics.begin_step()
        self.boundary.begin_step()

    def exchange_flags(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], moment: Moment | None = None
    ) -> Mapping[str, int]:
        """Exchange the flags of this step over the ranks, with that of a loss or gradient that is not finite.

        moment: the step, if the caller has it. Called on all ranks. Errors: TrainingDiverged where a loss or gradient
        is not finite and memory has not run out.
        """
        guard, progress = self._parts.nan_guard, self._parts.progress
        if guard is None:
            return self.boundary.exchange_flags()
        moment = moment or Moment(progress.epoch, progress.step, self._parts.seed, self._parts.ranks.rank)
        bad = guard.look(parameters, self.metrics.of_step, moment, optimizer)
        flags = self.boundary.exchange_flags(not_finite=bad)
        if flags["not_finite"] and not flags["out_of_memory"]:
            guard.refuse()
        return flags

    def apply(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        prepare: Callable[[], None] | None = None,
        *,
        last: bool = True,
    ) -> None:
        """Step with the gradient that is in `parameters`, after `prepare` has changed it; then clear it.

        last: see Precision.step.
        """
        self._parts.precision.step(optimizer, prepare, last=last)
        for parameter in parameters:
            parameter.grad = None  # what zero_grad does, without its bookkeeping

    def end_step(self, samples: int, steps: int) -> None:
        """The step is done: count it, report it, write a checkpoint if one is due, stop if any rank was asked to.

        samples: of the global batch; steps: of the epoch, 0 if unknown. Errors: Stopped.
        """
        progress = self._parts.progress
        progress.step_in_epoch += 1
        progress.samples += samples
        due = progress.step_in_epoch % self._parts.log_every == 0 or progress.step_in_epoch == steps
        if self._parts.observers and (due or time.monotonic() - self._reported_at >= LONGEST_SILENCE_S):
            self._reported_at = time.monotonic()
            loss, correct, seen = to_host(self.metrics.total())
            report = self._report(loss=loss, correct=correct, samples=seen, seconds=self.boundary.epoch_seconds)
            for observer in self._parts.observers:
                observer.on_step(report)
        self.boundary.after_step()
