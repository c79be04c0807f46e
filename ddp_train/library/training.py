"""The frame around a user's own loop: the engine's loop, put together for it, and what happens after each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ddp_core.files import write_text
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import average_buffers, sum_over_ranks
from ddp_train.engine.components import LoopParts
from ddp_train.engine.gradient_sync import settle_buckets
from ddp_train.engine.loop import Loop
from ddp_train.engine.nan_guard import NanGuard
from ddp_train.library import numbers, records
from ddp_train.library.best import BestEpoch
from ddp_train.library.model import hook, settle_forward
from ddp_train.library.steps import Steps
from ddp_train.observers.records import Best, RunFacts, StepReport
from ddp_train.run_folder.claim import MICRO_BATCHES, mark_done, unmark_done
from ddp_train.run_folder.files import RunFolder

if TYPE_CHECKING:
    from ddp_train.library.run import Run


class Training:
    """The training of `run`, whose networks, loaders and kept objects are all there. `epochs`: how many are wanted."""

    def __init__(self, run: Run, epochs: int) -> None:
        self._run, self._epochs = run, epochs
        run._used.finish(nn.ModuleList(run._networks))
        if run.is_first:
            unmark_done(run.folder)
        facts = records.facts(run, epochs, run._notes)
        self._parts = self._put_together(facts)
        run._process.observers = self._parts.observers
        self.loop = Loop(self._parts, self._report)
        self.steps = Steps(self._parts, self.loop, run._networks, run._joined, run._used.techniques)
        self.best = BestEpoch(run.progress, keeps=run.is_first, in_hand=self.steps.within)
        self._hooks = self._join_ranks()
        for observer in self._parts.observers:
            observer.on_start(facts)

    def _put_together(self, facts: RunFacts) -> LoopParts:
        run, process, precision = self._run, self._run._process, self._run._used.precision
        network, second_pass = nn.ModuleList(run._networks), numbers.SecondPass(run)
        flags = process.flag_exchange
        return LoopParts(
            ranks=run.ranks,
            device=run.device,
            precision=precision,
            seed=run.seed,
            log_every=run._log_every,
            observers=records.observers(run, facts, run._source, tensorboard=run._tensorboard, wandb=run._wandb),
            saver=run._saver if run._kept_something else None,
            nan_guard=NanGuard(network, precision, run.ranks, flags, run.folder, second_pass, run._advice),
            flag_exchange=flags,
            stop=process.stop,
            progress=run.progress,
            advice=run._advice,
        )

    def _join_ranks(self) -> list[AllreduceHook]:
        """Send the gradients through shared memory where that is possible, and exchange the flags in the same wait."""
        run, exchange = self._run, self._run._process.flag_exchange.exchange
        made = [hook(joined, run.ranks, run.device, lambda: exchange({})) for joined in run._joined]
        hooks = [one for one in made if one is not None]
        for one in hooks:
            one.wait_with(self.loop.boundary.exchange_flags_in_backward)
        return hooks

    def settle(self) -> None:
        """Let DistributedDataParallel find its buckets before the first step."""
        for joined in self._run._joined:
            settle_buckets(joined, settle_forward(joined))

    def end_epoch(self, epoch: int) -> None:
        """End an epoch after the loop's body: write its record and a checkpoint. Errors: Stopped."""
        run, steps = self._run, self.steps
        steps.end_step()
        for network in run._networks:
            average_buffers(network, run.ranks)
        loss, _, samples = sum_over_ranks(self.loop.metrics.total()).tolist()
        record = records.epoch_record(
            epoch=epoch + 1,
            loss=loss / samples if samples else math.nan,
            samples=samples,
            seconds=self.loop.boundary.epoch_seconds,
            optimizer=steps.optimizer,
            global_batch=run._loaders[0].batch_size if run._loaders else 0,
            columns=run._columns,
            extra=steps.extra(),
        )
        run._columns = {}
        best = self.best.take()
        if best is not None and not run._kept_something:
            checkpoint_format.save_state_dict(RunFolder(run.folder).best_model, best.state_dict())
        self.loop.end_epoch(record, best)

    def finish(self, *, complete: bool) -> None:
        """End the block: write everything to disk, and mark the run as done. complete: its last epoch is done."""
        run, progress = self._run, self._run.progress
        if not complete:  # the user has left the loop: the run is over, and is not continued
            self.steps.end_step()
            progress.stopped = True
            if progress.step_in_epoch:  # its record, and its best weights, count like those of any other epoch
                self.end_epoch(progress.epoch)
            elif run._kept_something:
                run._saver.save(progress)
        if run._kept_something:
            run._saver.finish()
        heartbeat.beat("closing")
        for observer in self._parts.observers:
            observer.on_end(Best())
        if run.is_first:
            epochs, best = self._epochs, self.best.summary()
            mark_done(run.folder, epochs=epochs, epoch=progress.epoch, step=progress.step, best=best)

    def _report(self, *, loss: float, correct: float, samples: float, seconds: float) -> StepReport:
        run, progress = self._run, self._run.progress
        return StepReport(
            epoch=progress.epoch + 1,
            step=progress.step_in_epoch,
            steps=max((loader.steps_per_epoch for loader in run._loaders if loader.trained), default=0),
            run_step=progress.step,
            images=progress.samples,
            loss=loss / max(1.0, samples),
            accuracy=math.nan,
            learning_rate=records.rate(self.steps.optimizer),
            images_per_second=progress.samples / max(seconds, 1e-9),
            extra=dict(run._columns),
        )


class Turns:
    """Passes the loaders' calls on to the run's Steps, which exist from run.epochs() on; before, calls do nothing."""

    def __init__(self, run: Run) -> None:
        self._run, self.device = run, run.device

    def __getattr__(self, name: str) -> Callable[..., None]:
        training = self._run._training
        return getattr(training.steps, name) if training is not None else _nothing


def _nothing(*_: object) -> None:
    pass


def halve_micro_batches(run: Run, error: Exception) -> None:
    """After memory ran out on this rank, in the user's code: let the restarted run take smaller micro-batches."""
    halved = [min(2 * loader.accumulate, loader.batch_size) for loader in run._loaders]
    if halved != [loader.accumulate for loader in run._loaders]:
        write_text(run.folder / MICRO_BATCHES, json.dumps({"accumulate": halved}) + "\n")
        where = f"step {run.step_number + 1} on rank {run.rank}"
        error.add_note(
            f"memory ran out in {where}: started again, the run continues with accumulate={max(halved)}; global batch, "
            "order and gradient stay"
        )


def read_halved(folder: Path) -> list[int]:
    """`accumulate` of each loader after memory ran out; empty where it has not run out."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [int(parts) for parts in json.loads((folder / MICRO_BATCHES).read_bytes())["accumulate"]]
    return []
