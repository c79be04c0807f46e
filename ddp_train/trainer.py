"""The training loop: a global batch in, one exact optimizer step out.

`fit` runs epochs, `train_epoch` runs steps, `train_step` runs the micro-batches of one global batch.
Techniques live in the parts that `build.py` puts together; the loop names none of them.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.control import Control
from ddp_train.data.pipeline import Batch, Pipeline, Window
from ddp_train.diagnostics.numbers import first_bad_layer
from ddp_train.distributed import Ranks, sum_over_ranks
from ddp_train.joining import Averaged, Joining
from ddp_train.losses import Loss, summable
from ddp_train.precision import Precision
from ddp_train.records import Best, EpochRecord, Observer, StepReport
from ddp_train.saving import Saver
from ddp_train.schedule import Schedule, set_learning_rate
from ddp_train.scores import Scores, evaluate
from ddp_train.state import Progress, Stopped, TrainingDiverged
from ddp_train.stopping import STATUS, StopSignals
from ddp_train.technique import Gradients, Moment, Technique

__all__ = ["Parts", "Trainer", "TrainingDiverged"]


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of. `network` is the bare model, `model` what is called (wrapped, compiled)."""

    ranks: Ranks
    device: torch.device
    network: nn.Module
    model: nn.Module
    ddp: DistributedDataParallel | None
    pipeline: Pipeline
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    epochs: int
    global_batch: int
    stop_after: float = math.inf
    seed: int = 0
    techniques: Sequence[Technique] = ()
    log_every: int = 20
    observers: Sequence[Observer] = ()
    joining: Joining | None = None
    """How ranks and micro-batches are put together; None: as DistributedDataParallel does."""
    saver: Saver | None = None
    control: Control = field(default_factory=Control)
    stop: StopSignals = field(default_factory=StopSignals)
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and to keep as the best model: averaged weights, where a technique has them."""
        averaged = [technique.evaluated for technique in self.techniques if technique.evaluated is not None]
        return averaged[-1] if averaged else self.network


def _plain_update(gradients: Gradients, apply: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
    """The gradient, then the step."""
    gradients()
    apply()


class Trainer:
    """Runs the epochs that are left. After each: evaluation, records, checkpoint."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.progress = parts.progress
        plugged = parts.techniques
        self._rate = [technique.rate for technique in plugged if technique.rate is not None]
        self._batch = [technique.batch for technique in plugged if technique.batch is not None]
        self._gradient = [technique.gradient for technique in plugged if technique.gradient is not None]
        self._phases = [technique.phase for technique in plugged if technique.phase is not None]
        self._after_step = [technique.after_step for technique in plugged if technique.after_step is not None]
        self._before_evaluation = [t.before_evaluation for t in plugged if t.before_evaluation is not None]
        self._after_epoch = [technique.after_epoch for technique in plugged if technique.after_epoch is not None]
        self._update = next((t.update for t in plugged if t.update is not None), _plain_update)
        self._parameters = [p for group in parts.optimizer.param_groups for p in group["params"]]
        self._joining = parts.joining or Averaged(parts.ranks, parts.device, parts.ddp, self._join_without_samples)
        self._totals = torch.zeros(3, dtype=torch.float64, device=parts.device)
        self._epoch_began = time.monotonic()

    @property
    def best(self) -> Best:
        """The epoch with the highest test accuracy so far."""
        progress = self.progress
        return Best(epoch=progress.best_epoch or None, test_accuracy=progress.best_accuracy if progress.epoch else None)

    def fit(self) -> Progress:
        """Train to the last epoch. Errors: TrainingDiverged when an epoch's loss is not finite; Stopped by a signal."""
        with self.parts.stop.deferred():
            self._settle_buckets()
            if self.parts.saver is not None:
                self.parts.saver.begin()
            self._fit()
            if self.parts.saver is not None:
                self.parts.saver.finish()
        return self.progress

    def _fit(self) -> None:
        parts, progress = self.parts, self.progress
        while progress.epoch < min(parts.epochs, parts.stop_after) and not progress.stopped:
            record = self._run_epoch(progress.epoch)
            progress.end_epoch()
            improved = record.test_accuracy > progress.best_accuracy
            if improved:
                progress.best_epoch, progress.best_accuracy = progress.epoch, record.test_accuracy
            for after_epoch in self._after_epoch:
                progress.stopped |= after_epoch(record)
            for observer in parts.observers:
                observer.on_epoch(record)
            if parts.saver is not None:
                parts.saver.save(progress, parts.evaluated if improved else None)
            self._obey(parts.control.exchange({"stop": parts.stop.received}), saved=True)

    def _run_epoch(self, epoch: int) -> EpochRecord:
        parts = self.parts
        self._epoch_began = time.monotonic() - self.progress.seconds
        loss, accuracy, samples = self.train_epoch(epoch)
        trained = time.monotonic() - self._epoch_began
        if parts.precision.has_diverged(loss):
            raise TrainingDiverged(self._explain(epoch, loss))
        self._joining.unify(parts.network)
        for before_evaluation in self._before_evaluation:
            before_evaluation(self._joining.again(parts.evaluated, self._windows(epoch)))
        if parts.evaluated is not parts.network:
            self._joining.unify(parts.evaluated)
        with self._phase("evaluation"):
            scores: Scores = evaluate(parts.evaluated, self._until_stopped(parts.pipeline.evaluate()), parts.precision)
        return EpochRecord(
            epoch=epoch + 1,
            train_loss=loss,
            train_accuracy=accuracy,
            test_loss=scores.loss,
            test_accuracy=scores.accuracy,
            learning_rate=parts.optimizer.param_groups[0]["lr"],
            seconds=time.monotonic() - self._epoch_began,
            images_per_second=samples / max(trained, 1e-9),
            global_batch=parts.global_batch,
            extra=self._extra(),
        )

    def _explain(self, epoch: int, loss: float) -> str:
        """The line of a run whose loss is lost, with the layer that a forward pass finds spoilt first."""
        parts = self.parts
        parts.model.eval()
        bad = first_bad_layer(parts.network, parts.pipeline.dummy_batch().images, parts.precision.autocast())
        peak = parts.optimizer.param_groups[0]["initial_lr"]
        return (
            f"the training loss of epoch {epoch + 1} is {loss}{f' ({bad})' if bad else ''}: "
            f"try a lower --lr (the peak was {peak:.3g}), more --warmup-epochs, or --clip-grad 1; the last checkpoint "
            "is that of the epoch before; with --watch-numbers the run ends where this begins: step, layer and rank"
        )

    def train_epoch(self, epoch: int) -> tuple[float, float, int]:
        """Train what is left of an epoch: its mean loss, accuracy and samples over all ranks, reduced at the end."""
        parts, progress = self.parts, self.progress
        steps, done = parts.pipeline.steps_per_epoch, progress.step_in_epoch
        parts.model.train()
        self._totals.copy_(torch.tensor(progress.sums, dtype=torch.float64))
        if done == steps:
            self._set_rate(progress.step - 1)  # as the last step left it, for the records
        for index, window in enumerate(parts.pipeline.train(epoch, done), start=done + 1):
            self.train_step(window)
            progress.step_in_epoch, progress.samples = index, progress.samples + window.size + window.skipped
            if index % parts.log_every == 0 or index == steps:
                self._report(epoch, index, progress.samples, time.monotonic() - self._epoch_began)
            self._between_steps()
        loss, correct, samples = sum_over_ranks(self._totals.clone()).tolist()
        return loss / max(1.0, samples), correct / max(1.0, samples), int(samples)

    def _between_steps(self) -> None:
        """Write a checkpoint where the ranks find that it is time, and end where one was asked to."""
        parts = self.parts
        due = parts.saver is not None and parts.saver.due(self.progress)
        told = parts.control.exchange({"stop": parts.stop.received, "save": due})
        if told["save"] and not told["stop"]:
            self._save_within(periodic=True)
        self._obey(told)

    def _save_within(self, *, periodic: bool) -> None:
        """Write a checkpoint from within an epoch."""
        parts, progress = self.parts, self.progress
        loss, correct, samples = self._totals.tolist()
        progress.sums, progress.seconds = (loss, correct, samples), time.monotonic() - self._epoch_began
        for observer in parts.observers:
            observer.on_save()
        if parts.saver is not None:
            parts.saver.save(progress, periodic=periodic)

    def _obey(self, told: Mapping[str, int], *, saved: bool = False) -> None:
        """End, behind a checkpoint, where any rank was asked to. Errors: Stopped, on all ranks alike."""
        progress = self.progress
        if not told["stop"]:
            return
        if not saved:
            self._save_within(periodic=False)
        if self.parts.saver is not None:
            self.parts.saver.finish()
        within = f" in epoch {progress.epoch + 1}" if progress.step_in_epoch else f" after epoch {progress.epoch}"
        name = signal.Signals(told["stop"]).name
        raise Stopped(
            STATUS[signal.Signals(told["stop"])],
            f"stopped by {name} behind step {progress.step},{within}; the state is saved: --resume goes on from there",
            together=True,
        )

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation, broken off on all ranks where one was asked to end: it would take too long."""
        stop = self.parts.stop
        cut = False
        for batch in batches:
            if cut := bool(stop.received):
                break
            yield batch
        told = self.parts.control.exchange({"stop": stop.received, "interrupted": cut})
        if told["interrupted"]:
            self._obey(told)

    def _settle_buckets(self) -> None:
        """Let DistributedDataParallel find its buckets before the first step of this process, not behind it.

        Over three ranks or more the order of a sum depends on them: else the first step behind a resume would be
        rounded in another way than it was without.
        """
        if self.parts.ddp is not None and self.parts.ranks.world_size > 2:
            self._join_without_samples()
            self.parts.optimizer.zero_grad(set_to_none=True)

    def _set_rate(self, step: int) -> None:
        factor = self.parts.schedule(step)
        for rate in self._rate:
            factor *= rate(step)
        set_learning_rate(self.parts.optimizer, factor)

    def _windows(self, epoch: int) -> Iterator[Window]:
        """An epoch once more; nothing is prepared before the first window is asked for."""
        yield from self.parts.pipeline.train(epoch)

    def measure_step(self, window: Window) -> float:
        """One optimizer step, and the mean loss of its global batch: for measurements, as it waits for the device."""
        self._totals.zero_()
        self.train_step(window)
        loss, _, samples = sum_over_ranks(self._totals.clone()).tolist()
        return float(loss / max(1.0, samples))

    def train_step(self, window: Window) -> None:
        """One optimizer step on this rank's part of a global batch of `window.size` samples."""
        parts, progress = self.parts, self.progress
        self._set_rate(progress.step)
        moment = Moment(progress.epoch, progress.step, parts.seed, parts.ranks.rank)
        # More than one gradient of a step needs its samples more than once.
        batches = window.batches if self._update is _plain_update else list(window.batches)

        def gradients(*, communicate: bool = True, count: bool = True) -> None:
            self._gradients(window, batches, moment, communicate=communicate, count=count)

        self._update(gradients, lambda: self._apply(moment), parts.optimizer)
        for after_step in self._after_step:
            after_step(moment)
        progress.step += 1

    def _gradients(
        self, window: Window, batches: Iterable[Batch], moment: Moment, *, communicate: bool, count: bool
    ) -> None:
        """The gradient of the global batch into `.grad`, whatever the split."""
        parts = self.parts

        def compute(batch: Batch, moment: Moment, weight: float) -> None:
            images, targets = batch.images, batch.labels
            for change in self._batch if len(images) else ():
                images, targets = change(images, targets, moment)
            with self._phase("forward"), parts.precision.autocast():
                logits = parts.model(images)
                loss = parts.loss(logits, targets)
            with self._phase("backward"):
                parts.precision.backward(loss * weight)
            if count:
                self._count(loss.detach(), logits.detach(), targets)

        self._joining.gradients(window, batches, moment, compute, communicate=communicate)

    def _apply(self, moment: Moment) -> None:
        """Step with the gradient that is there, after the techniques that change it; then clear it."""
        parts = self.parts

        def prepare() -> None:
            for change in self._gradient:
                change(self._parameters, moment)

        with self._phase("step"):
            parts.precision.step(parts.optimizer, prepare if self._gradient else None)
        parts.optimizer.zero_grad(set_to_none=True)

    def _phase(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """What the techniques put around a phase."""
        stack = contextlib.ExitStack()
        for around in self._phases:
            stack.enter_context(around(name))
        return stack

    def _join_without_samples(self) -> None:
        """Take part in the all-reduce with a gradient of zero.

        In evaluation mode, so that the borrowed sample leaves no trace in batch statistics.
        """
        parts = self.parts
        batch = parts.pipeline.dummy_batch()
        parts.model.eval()
        with parts.precision.autocast():
            loss = parts.loss(parts.model(batch.images), batch.labels)
        parts.model.train()
        parts.precision.backward(loss * 0.0)

    def _count(self, loss: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add to the epoch's sums; of a mixed target the larger part is the label."""
        self._totals[0] += summable(loss)
        self._totals[1] += (logits.argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1))).sum()
        self._totals[2] += len(targets)

    def _extra(self) -> Mapping[str, float]:
        """What the techniques report now."""
        reports = [technique.report() for technique in self.parts.techniques if technique.report is not None]
        bad = {"bad_images": float(self.parts.pipeline.left_out)} if self.parts.pipeline.left_out else {}
        return bad | {name: value for report in reports for name, value in report.items()}

    def _report(self, epoch: int, index: int, seen: int, elapsed: float) -> None:
        if not self.parts.observers:
            return
        loss, correct, samples = self._totals.tolist()
        report = StepReport(
            epoch=epoch + 1,
            step=index,
            steps=self.parts.pipeline.steps_per_epoch,
            images=seen,
            loss=loss / max(1.0, samples),
            accuracy=correct / max(1.0, samples),
            learning_rate=self.parts.optimizer.param_groups[0]["lr"],
            images_per_second=seen / max(elapsed, 1e-9),
            extra=self._extra(),
        )
        for observer in self.parts.observers:
            observer.on_step(report)
