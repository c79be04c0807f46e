"""The training loop: a global batch in, one exact optimizer step out.

`fit` runs epochs, `train_epoch` runs steps, `train_step` runs the micro-batches of one global batch.
Techniques live in the parts that `assemble/build.py` puts together; the loop names none of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddp_core.errors import TrainingDiverged
from ddp_train.checkpoint.progress import Progress
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.diagnostics.watch_numbers import first_bad_layer
from ddp_train.distributed.process_group import sum_over_ranks, to_host
from ddp_train.engine.components import Components
from ddp_train.engine.evaluate import evaluate
from ddp_train.engine.gradient_sync import Averaged, settle_buckets
from ddp_train.engine.loop import Loop
from ddp_train.engine.oom_retry import OomRetry, OutOfMemoryOnSomeRank
from ddp_train.observers.records import Best, EpochRecord, StepReport
from ddp_train.optim.lr_schedule import set_learning_rate
from ddp_train.technique import Gradients, Moment


def _plain_update(gradients: Gradients, apply: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
    """The gradient, then the step."""
    gradients()
    apply()


class Trainer:
    """Runs the epochs that are left. After each: evaluation, records, checkpoint."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.progress = components.progress
        plugged = components.techniques
        self._rate = [technique.rate for technique in plugged if technique.rate is not None]
        self._batch = [technique.batch for technique in plugged if technique.batch is not None]
        self._gradient = [technique.gradient for technique in plugged if technique.gradient is not None]
        self._phases = [technique.phase for technique in plugged if technique.phase is not None]
        self._choose = [technique.choose for technique in plugged if technique.choose is not None]
        self._before_step = [technique.before_step for technique in plugged if technique.before_step is not None]
        self._after_step = [technique.after_step for technique in plugged if technique.after_step is not None]
        self._before_evaluation = [t.before_evaluation for t in plugged if t.before_evaluation is not None]
        self._after_epoch = [technique.after_epoch for technique in plugged if technique.after_epoch is not None]
        self._update = next((t.update for t in plugged if t.update is not None), _plain_update)
        self._parameters = [p for group in components.optimizer.param_groups for p in group["params"]]
        self._gradient_sync = components.gradient_sync or Averaged(
            components.ranks, components.device, components.ddp, self._join_without_samples
        )
        self._loop = Loop(components, self._report)
        self._metrics, self._step_boundary = self._loop.metrics, self._loop.boundary
        self._oom_retry = OomRetry(components, self._metrics, self._step_boundary, self._settle_buckets)

    @property
    def best(self) -> Best:
        """The best epoch so far."""
        progress, split = self.progress, self.components.pipeline.selection
        accuracy = progress.best_accuracy if progress.best_epoch else None
        return Best(progress.best_epoch or None, accuracy, split, progress.best_balanced)

    def fit(self) -> Progress:
        """Train to the last epoch. Errors: TrainingDiverged when an epoch's loss is not finite; Stopped by a signal."""
        components, progress = self.components, self.progress
        for epoch in self._loop.epochs(min(components.epochs, components.stop_after), self._settle_buckets):
            record = self._run_epoch(epoch)
            improved = record.rank > (progress.best_accuracy, -progress.best_loss)
            if improved:
                progress.best_epoch, progress.best_balanced = record.epoch, record.balanced_accuracy
                progress.best_accuracy, progress.best_loss = record.accuracy, record.loss
            for after_epoch in self._after_epoch:
                progress.stopped |= after_epoch(record)
            self._loop.end_epoch(record, components.evaluated if improved else None)
        return progress

    def _run_epoch(self, epoch: int) -> EpochRecord:
        """Train and evaluate an epoch; its record. Errors: TrainingDiverged."""
        components = self.components
        loss, accuracy, samples = self.train_epoch(epoch)
        trained = self._step_boundary.epoch_seconds
        if components.precision.has_diverged(loss):
            raise TrainingDiverged(self._explain(epoch, loss))
        self._gradient_sync.unify(components.network)
        for before_evaluation in self._before_evaluation:
            before_evaluation(self._gradient_sync.again(components.evaluated, components.pipeline.train(epoch)))
        if components.evaluated is not components.network:
            self._gradient_sync.unify(components.evaluated)
        with self._phase("evaluation"):
            batches = self._step_boundary.until_stopped(components.pipeline)
            scores = evaluate(components.evaluated, batches, components.precision, components.classes)
        components.pipeline.test_batch = scores.at_a_time or components.pipeline.test_batch
        return EpochRecord(
            epoch=epoch + 1,
            train_loss=loss,
            train_accuracy=accuracy,
            loss=scores.loss,
            accuracy=scores.accuracy,
            balanced_accuracy=scores.balanced_accuracy,
            split=components.pipeline.selection,
            learning_rate=components.optimizer.param_groups[0]["lr"],
            seconds=self._step_boundary.epoch_seconds,
            images_per_second=samples / max(trained, 1e-9),
            global_batch=components.global_batch,
            extra=self._extra(),
        )

    def _explain(self, epoch: int, loss: float) -> str:
        """The error message for a loss that has diverged, with the first layer that a forward pass finds spoilt."""
        components = self.components
        components.model.eval()
        images = components.pipeline.dummy_batch().images
        bad = first_bad_layer(components.network, images, components.precision.autocast())
        peak = components.optimizer.param_groups[0]["initial_lr"]
        kept = "" if components.saver is None else f"no checkpoint has it, {components.saver.way_back()}; "
        return (
            f"the training loss of epoch {epoch + 1} is {loss}{f' ({bad})' if bad else ''}: "
            f"try a lower --lr (the peak was {peak:.3g}), more --warmup-epochs, or --clip-grad 1; {kept}"
            "with --watch-numbers the run ends where this begins, and names step, layer and rank"
        )

    def train_epoch(self, epoch: int) -> tuple[float, float, int]:
        """Train what is left of an epoch: its mean loss, accuracy and samples over all ranks, reduced at the end."""
        components, progress = self.components, self.progress
        steps, done = components.pipeline.steps_per_epoch, progress.step_in_epoch
        components.model.train()
        if done == steps:
            self._set_rate(progress.step - 1)  # as the last step left it, for the records
        while progress.step_in_epoch < steps:
            for window in components.pipeline.train(epoch, progress.step_in_epoch):
                if not self._oom_retry.run(lambda window=window: self.train_step(window)):  # type: ignore[misc]
                    break  # the same step again, in smaller micro-batches
                self._loop.end_step(window.size + window.skipped, steps)
        loss, correct, samples = to_host(sum_over_ranks(self._metrics.total()))
        return loss / max(1.0, samples), correct / max(1.0, samples), int(samples)

    def _settle_buckets(self) -> None:
        """Let DistributedDataParallel form its final buckets before the first step."""
        components = self.components
        if components.ddp is not None:
            images = components.pipeline.dummy_batch().images

            def forward() -> Tensor:
                """A forward pass of the dummy batch."""
                with components.precision.autocast():
                    output: Tensor = components.model(images)
                return output

            settle_buckets(components.model, forward, components.allreduce_hook)

    def _set_rate(self, step: int) -> None:
        """Set the learning rate of a step."""
        factor = self.components.schedule(step)
        for rate in self._rate:
            factor *= rate(step)
        set_learning_rate(self.components.optimizer, factor)

    def measure_step(self, window: Window) -> float:
        """Take an optimizer step; returns its global batch's mean loss. For measurements: it waits for the device."""
        self._metrics.start()
        self.train_step(window)
        loss, _, samples = to_host(sum_over_ranks(self._metrics.total()))
        return float(loss / max(1.0, samples))

    def train_step(self, window: Window) -> None:
        """One optimizer step on this rank's part of a global batch of `window.size` samples."""
        components, progress = self.components, self.progress
        self._set_rate(progress.step)
        self._loop.begin_step()
        moment = Moment(progress.epoch, progress.step, components.seed, components.ranks.rank)
        for before_step in self._before_step:
            before_step(moment)
        for choose in self._choose:
            window = choose(window, moment)
        # A technique that computes several gradients in a step needs the step's samples several times.
        batches = window.batches if self._update is _plain_update else list(window.batches)

        def gradients(*, communicate: bool = True, count: bool = True) -> None:
            """See technique.Gradients."""
            self._gradients(window, batches, moment, communicate=communicate, count=count)

        self._update(gradients, lambda: self._apply(moment), components.optimizer)
        for after_step in self._after_step:
            after_step(moment)
        progress.step += 1

    def _gradients(
        self, window: Window, batches: Iterable[Batch], moment: Moment, *, communicate: bool, count: bool
    ) -> None:
        """Add the gradient of the global batch to `.grad`, whatever the split over ranks."""
        components = self.components

        def compute(batch: Batch, moment: Moment, weight: float) -> None:
            """See gradient_sync.Compute."""
            images, targets = batch.images, batch.labels
            for change in self._batch if images.shape[0] else ():
                images, targets = change(images, targets, moment)
            with self._phase("forward"), components.precision.autocast():
                logits = components.model(images)
                loss = components.loss(logits, targets)
            if count:
                self._metrics.add(loss, logits, targets)
            with self._phase("backward"):
                components.precision.backward(loss, weight)

        self._gradient_sync.gradients(window, batches, moment, compute, communicate=communicate)

    def _apply(self, moment: Moment) -> None:
        """Exchange the flags, let the techniques change the gradient, step with it, and clear it."""
        components = self.components

        def prepare() -> None:
            """Let the techniques change the gradients."""
            for change in self._gradient:
                change(self._parameters, moment)

        flags = self._loop.exchange_flags(components.optimizer, self._parameters, moment)
        if flags["out_of_memory"]:
            raise OutOfMemoryOnSomeRank(components.ranks.world_size - flags["out_of_memory"])
        self._oom_retry.commit()
        with self._phase("step"):
            self._loop.apply(components.optimizer, self._parameters, prepare if self._gradient else None)

    def _phase(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """The contexts that the techniques put around a phase, as one."""
        if len(self._phases) == 1:
            return self._phases[0](name)
        stack = contextlib.ExitStack()
        for around in self._phases:
            stack.enter_context(around(name))
        return stack

    def _join_without_samples(self) -> None:
        """Take part in the all-reduce with a gradient of zero.

        In evaluation mode, so that the borrowed sample leaves no trace in batch statistics.
        """
        components = self.components
        batch = components.pipeline.dummy_batch()
        components.model.eval()
        with components.precision.autocast():
            loss = components.loss(components.model(batch.images), batch.labels)
        components.model.train()
        components.precision.backward(loss, 0.0)

    def _extra(self) -> Mapping[str, float]:
        """The numbers that the techniques report now, and the trainer's own."""
        reports = [technique.report() for technique in self.components.techniques if technique.report is not None]
        if self.components.nan_guard is not None:
            reports.append(self.components.nan_guard.report())
        if self.progress.accumulate:
            reports.append({"accumulate": float(self.progress.accumulate)})
        if self.components.pipeline.left_out:
            reports.append({"bad_images": float(self.components.pipeline.left_out)})
        return {name: value for report in reports for name, value in report.items()}

    def _report(self, *, loss: float, correct: float, samples: float, seconds: float) -> StepReport:
        """The report of a step for observers."""
        components, seen = self.components, self.progress.samples
        return StepReport(
            epoch=self.progress.epoch + 1,
            step=self.progress.step_in_epoch,
            steps=components.pipeline.steps_per_epoch,
            run_step=self.progress.step,
            images=seen,
            loss=loss / max(1.0, samples),
            accuracy=correct / max(1.0, samples),
            learning_rate=components.optimizer.param_groups[0]["lr"],
            images_per_second=seen / max(seconds, 1e-9),
            extra=self._extra(),
        )
