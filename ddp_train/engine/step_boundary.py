"""Between two steps: what the ranks agree on there, when a checkpoint is written, and where a run stops.

The ranks exchange their flags while a step is computed: where they wait for one another's gradients anyway, if these go
through shared memory, else behind the backward pass. What they ask for is done behind the step, on all ranks alike.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping

from torch import nn

from ddp_core.errors import Stopped
from ddp_train.data.pipeline.window import Batch
from ddp_train.engine.components import Parts
from ddp_train.engine.metrics import Sums
from ddp_train.engine.stop_signals import STATUS


class Boundary:
    """`sums`: of the running epoch and this rank."""

    def __init__(self, parts: Parts, sums: Sums) -> None:
        self._parts, self._sums = parts, sums
        self._met: dict[str, int] | None = None
        self._told: Mapping[str, int] | None = None
        self.trouble: dict[str, int] = {}
        """Flags of this rank that the next exchange tells beside those of this module."""
        self.began = time.monotonic()
        """When the running epoch would have begun, had it not been interrupted."""

    def begin_step(self) -> None:
        """Nothing has been said yet in the step that begins."""
        self._met = None

    @property
    def has_met(self) -> bool:
        """Whether the ranks have exchanged the flags of this step, so that there is nothing more to be told in it."""
        return self._met is not None

    def meet(self) -> None:
        """Exchange the flags of this step within its backward pass, on all ranks alike."""
        guard = self._parts.guard
        losses = guard.look_at_losses(self._sums.of_step) if guard is not None else 0
        self._met = self._parts.control.exchange(self._flags() | self.trouble | {"not_finite": losses})

    def agree(self, **flags: int) -> Mapping[str, int]:
        """What all ranks say in this step, this one `flags` too.

        Where they have met already, those have to be the same on all ranks, or told there: as is whether a gradient
        that all have from the same memory is finite.
        """
        said = self.trouble | flags
        if self._met is None:
            told = self._parts.control.exchange(self._flags() | said)
        else:
            told = {name: max(value, said.get(name, 0)) for name, value in self._met.items()}
        self._told, self.trouble = told, {}
        return told

    def behind_step(self) -> None:
        """Write a checkpoint where one is due, and stop where that was asked for. Errors: Stopped."""
        told, self._told = self._told, None
        if told is None:  # a technique that took no step
            told = self._parts.control.exchange(self._flags())
        if told["save"] and not told["stop"]:
            self._save(periodic=True)
        self._obey(told)

    def behind_epoch(self, best: nn.Module | None) -> None:
        """Write the checkpoint of a finished epoch; `best`: the network, if it is the best so far. Errors: Stopped."""
        if self._parts.saver is not None:
            self._parts.saver.save(self._parts.progress, best)
        self._obey(self._parts.control.exchange({"stop": self._parts.stop.received}), saved=True)

    def until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation. Broken off on all ranks where one is to stop: the rest could take too long.

        Errors: Stopped; the run goes on with the evaluation.
        """
        stop, cut = self._parts.stop, False
        for batch in batches:
            if cut := bool(stop.received):
                break
            yield batch
        told = self._parts.control.exchange({"stop": stop.received, "interrupted": cut})
        if told["interrupted"]:
            self._obey(told)

    def _flags(self) -> dict[str, int]:
        parts = self._parts
        due = parts.saver is not None and parts.saver.due(parts.progress.step + 1)
        return {"stop": parts.stop.received, "save": int(due)}

    def _save(self, *, periodic: bool) -> None:
        """Write a checkpoint from within an epoch."""
        progress = self._parts.progress
        loss, correct, samples = self._sums.total().tolist()
        progress.sums, progress.seconds = (loss, correct, samples), time.monotonic() - self.began
        for observer in self._parts.observers:
            observer.on_save()
        if self._parts.saver is not None:
            self._parts.saver.save(progress, periodic=periodic)

    def _obey(self, told: Mapping[str, int], *, saved: bool = False) -> None:
        """Stop, behind a checkpoint, where any rank was asked to. Errors: Stopped, on all ranks alike."""
        progress = self._parts.progress
        if not told["stop"]:
            return
        if not saved:
            self._save(periodic=False)
        if self._parts.saver is not None:
            self._parts.saver.finish()
        number = signal.Signals(told["stop"])
        within = f"in epoch {progress.epoch + 1}" if progress.step_in_epoch else f"after epoch {progress.epoch}"
        raise Stopped(
            STATUS[number],
            f"stopped by {number.name} behind step {progress.step}, {within}; saved: --resume goes on from there",
            together=True,
        )
