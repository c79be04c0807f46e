"""Between two steps: which flags the ranks exchange, when a checkpoint is written, and where a run stops.

The ranks exchange their flags while a step is computed: inside the backward pass where gradients go through shared
memory, since the ranks wait for one another there anyway; else after it. All ranks act on the flags after the step.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping

from ddp_core.errors import Stopped
from ddp_train.checkpoint.manager import HasState
from ddp_train.data.pipeline.window import Batch, Pipeline
from ddp_train.distributed.process_group import to_host
from ddp_train.engine.components import LoopParts
from ddp_train.engine.metrics import Metrics
from ddp_train.engine.stop_signals import STATUS


class StepBoundary:
    """What happens between two steps. `metrics`: those of the running epoch on this rank."""

    def __init__(self, components: LoopParts, metrics: Metrics) -> None:
        self._components, self._metrics = components, metrics
        self._exchanged: dict[str, int] | None = None
        self._agreed: Mapping[str, int] | None = None
        self._reported: dict[str, int] = {}
        self._began = time.monotonic()
        if components.allreduce_hook is not None and components.flag_exchange.group is not None:
            components.allreduce_hook.wait_with(self.exchange_flags_in_backward)

    def begin_epoch(self) -> None:
        """Start the epoch's clock; a resumed epoch has run for `progress.seconds` already."""
        self._began = time.monotonic() - self._components.progress.seconds

    @property
    def epoch_seconds(self) -> float:
        """Seconds of the running epoch, without interruptions."""
        return time.monotonic() - self._began

    def begin_step(self) -> None:
        """Start a step: no flags have been exchanged in it yet."""
        self._exchanged = None

    @property
    def flags_exchanged(self) -> bool:
        """Whether the flags of this step have been exchanged: a rank can report nothing more in it."""
        return self._exchanged is not None

    def report(self, **flags: int) -> None:
        """Include these flags of this rank in the next exchange."""
        self._reported |= flags

    def exchange_flags_in_backward(self) -> None:
        """Exchange the flags of this step within its backward pass, on all ranks alike."""
        nan_guard = self._components.nan_guard
        losses = nan_guard.look_at_losses(self._metrics.of_step) if nan_guard is not None else 0
        flags = self._flags() | self._reported | {"not_finite": losses}
        self._exchanged = self._components.flag_exchange.exchange(flags)

    def exchange_flags(self, **flags: int) -> Mapping[str, int]:
        """The flags of all ranks in this step, with `flags` of this rank.

        After an exchange in the backward pass, `flags` must be the same on all ranks or included there. Whether a
        gradient that all ranks read from the same memory is finite is such a flag.
        """
        mine = self._reported | flags
        if self._exchanged is None:
            agreed = self._components.flag_exchange.exchange(self._flags() | mine)
        else:
            agreed = {name: max(value, mine.get(name, 0)) for name, value in self._exchanged.items()}
        self._agreed, self._reported = agreed, {}
        return agreed

    def after_step(self) -> None:
        """Write a checkpoint if one is due, and stop if any rank was asked to. Errors: Stopped."""
        agreed, self._agreed = self._agreed, None
        if agreed is None:  # a technique that took no step
            agreed = self._components.flag_exchange.exchange(self._flags())
        if agreed["save"] and not agreed["stop"]:
            self._save(periodic=True)
        self._stop_if_asked(agreed)

    def after_epoch(self, best: HasState | None) -> None:
        """Write the checkpoint of a finished epoch; `best`: the network, if it is the best so far. Errors: Stopped."""
        if self._components.saver is not None:
            self._components.saver.save(self._components.progress, best)
        flags = self._components.flag_exchange.exchange({"stop": self._components.stop.received})
        self._stop_if_asked(flags, saved=True)

    def until_stopped(self, pipeline: Pipeline) -> Iterator[Batch]:
        """The batches of an evaluation; when a rank has to stop, all interrupt it, as the rest could take too long.

        Errors: Stopped; the resumed run continues with this evaluation.
        """
        stop, cut = self._components.stop, False

        def interrupted() -> bool:
            """Whether this rank has to stop."""
            nonlocal cut
            cut = bool(stop.received)
            return cut

        yield from pipeline.evaluate(interrupted=interrupted)
        agreed = self._components.flag_exchange.exchange({"stop": stop.received, "interrupted": cut})
        if agreed["interrupted"]:
            self._stop_if_asked(agreed)

    def _flags(self) -> dict[str, int]:
        """This rank's flags for the exchange: stop, save."""
        components = self._components
        due = components.saver is not None and components.saver.due(components.progress.step + 1)
        return {"stop": components.stop.received, "save": int(due)}

    def _save(self, *, periodic: bool) -> None:
        """Write a checkpoint from within an epoch."""
        progress = self._components.progress
        loss, correct, samples = to_host(self._metrics.total())
        progress.sums, progress.seconds = (loss, correct, samples), self.epoch_seconds
        for observer in self._components.observers:
            observer.on_save()
        if self._components.saver is not None:
            self._components.saver.save(progress, periodic=periodic)

    def _stop_if_asked(self, flags: Mapping[str, int], *, saved: bool = False) -> None:
        """Save and stop if any rank was asked to. Errors: Stopped, on all ranks alike."""
        progress = self._components.progress
        if not flags["stop"]:
            return
        if not saved:
            self._save(periodic=False)
        if self._components.saver is not None:
            self._components.saver.finish()
        number = signal.Signals(flags["stop"])
        within = f"in epoch {progress.epoch + 1}" if progress.step_in_epoch else f"after epoch {progress.epoch}"
        kept = "nothing is kept" if self._components.saver is None else f"saved: {self._components.advice.saved}"
        raise Stopped(
            STATUS[number],
            f"stopped by {number.name} after step {progress.step}, {within}; {kept}",
            together=True,
        )
