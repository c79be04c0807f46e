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
from ddp_train.engine.components import Components
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.stop_signals import STATUS


class StepBoundary:
    """`metrics`: of the running epoch and this rank."""

    def __init__(self, components: Components, metrics: Metrics) -> None:
        self._components, self._metrics = components, metrics
        self._exchanged: dict[str, int] | None = None
        self._agreed: Mapping[str, int] | None = None
        self.trouble: dict[str, int] = {}
        """Flags of this rank that the next exchange tells beside those of this module."""
        self.began = time.monotonic()
        """When the running epoch would have begun, had it not been interrupted."""

    def begin_step(self) -> None:
        """Nothing has been said yet in the step that begins."""
        self._exchanged = None

    @property
    def flags_exchanged(self) -> bool:
        """Whether the ranks have exchanged the flags of this step, so that there is nothing more to be told in it."""
        return self._exchanged is not None

    def exchange_flags_in_backward(self) -> None:
        """Exchange the flags of this step within its backward pass, on all ranks alike."""
        nan_guard = self._components.nan_guard
        losses = nan_guard.look_at_losses(self._metrics.of_step) if nan_guard is not None else 0
        self._exchanged = self._components.flag_exchange.exchange(self._flags() | self.trouble | {"not_finite": losses})

    def exchange_flags(self, **flags: int) -> Mapping[str, int]:
        """What all ranks say in this step, this one `flags` too.

        Where they have met already, those have to be the same on all ranks, or told there: as is whether a gradient
        that all have from the same memory is finite.
        """
        said = self.trouble | flags
        if self._exchanged is None:
            agreed = self._components.flag_exchange.exchange(self._flags() | said)
        else:
            agreed = {name: max(value, said.get(name, 0)) for name, value in self._exchanged.items()}
        self._agreed, self.trouble = agreed, {}
        return agreed

    def after_step(self) -> None:
        """Write a checkpoint where one is due, and stop where that was asked for. Errors: Stopped."""
        agreed, self._agreed = self._agreed, None
        if agreed is None:  # a technique that took no step
            agreed = self._components.flag_exchange.exchange(self._flags())
        if agreed["save"] and not agreed["stop"]:
            self._save(periodic=True)
        self._obey(agreed)

    def after_epoch(self, best: nn.Module | None) -> None:
        """Write the checkpoint of a finished epoch; `best`: the network, if it is the best so far. Errors: Stopped."""
        if self._components.saver is not None:
            self._components.saver.save(self._components.progress, best)
        self._obey(self._components.flag_exchange.exchange({"stop": self._components.stop.received}), saved=True)

    def until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation. Broken off on all ranks where one is to stop: the rest could take too long.

        Errors: Stopped; the run goes on with the evaluation.
        """
        stop, cut = self._components.stop, False
        for batch in batches:
            if cut := bool(stop.received):
                break
            yield batch
        agreed = self._components.flag_exchange.exchange({"stop": stop.received, "interrupted": cut})
        if agreed["interrupted"]:
            self._obey(agreed)

    def _flags(self) -> dict[str, int]:
        components = self._components
        due = components.saver is not None and components.saver.due(components.progress.step + 1)
        return {"stop": components.stop.received, "save": int(due)}

    def _save(self, *, periodic: bool) -> None:
        """Write a checkpoint from within an epoch."""
        progress = self._components.progress
        loss, correct, samples = self._metrics.total().tolist()
        progress.sums, progress.seconds = (loss, correct, samples), time.monotonic() - self.began
        for observer in self._components.observers:
            observer.on_save()
        if self._components.saver is not None:
            self._components.saver.save(progress, periodic=periodic)

    def _obey(self, agreed: Mapping[str, int], *, saved: bool = False) -> None:
        """Stop, behind a checkpoint, where any rank was asked to. Errors: Stopped, on all ranks alike."""
        progress = self._components.progress
        if not agreed["stop"]:
            return
        if not saved:
            self._save(periodic=False)
        if self._components.saver is not None:
            self._components.saver.finish()
        number = signal.Signals(agreed["stop"])
        within = f"in epoch {progress.epoch + 1}" if progress.step_in_epoch else f"after epoch {progress.epoch}"
        raise Stopped(
            STATUS[number],
            f"stopped by {number.name} behind step {progress.step}, {within}; saved: --resume goes on from there",
            together=True,
        )
