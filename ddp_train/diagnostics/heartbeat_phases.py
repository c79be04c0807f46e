"""Heartbeats of a run (see distributed/heartbeat.py): a technique for the phases of a step, a pipeline for its data.

It does not change a run. Cost: under a microsecond for each beat, of which a step has about ten.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ddp_train.data.pipeline.window import Batch, Pipeline, Window, never
from ddp_train.distributed.heartbeat import Heartbeat, heartbeat
from ddp_train.technique import Context, Technique
from ddp_train.torch_internals import on_compilation


def create(context: Context) -> Technique:
    """The phases of training and evaluation; compilation, which may happen in any step, is a phase too."""
    if context.config.model.compile:
        _note_compilation(heartbeat)
    return Technique(name="heartbeat", phase=heartbeat.during)


class Watched:
    """A pipeline that sends a heartbeat for each batch, with the step of the batch's window. See window.Pipeline."""

    def __init__(self, pipeline: Pipeline, heart: Heartbeat = heartbeat) -> None:
        self._pipeline, self._heart = pipeline, heart
        self.sampler = pipeline.sampler

    @property
    def selection(self) -> str:
        """See Pipeline."""
        return self._pipeline.selection

    @property
    def accumulate(self) -> int:
        """See Pipeline."""
        return self._pipeline.accumulate

    @accumulate.setter
    def accumulate(self, parts: int) -> None:
        self._pipeline.accumulate = parts

    @property
    def test_batch(self) -> int:
        """See Pipeline."""
        return self._pipeline.test_batch

    @test_batch.setter
    def test_batch(self, images: int) -> None:
        self._pipeline.test_batch = images

    @property
    def image_dtype(self) -> torch.dtype:
        """See Pipeline."""
        return self._pipeline.image_dtype

    @image_dtype.setter
    def image_dtype(self, dtype: torch.dtype) -> None:
        self._pipeline.image_dtype = dtype

    @property
    def steps_per_epoch(self) -> int:
        """See Pipeline."""
        return self._pipeline.steps_per_epoch

    @property
    def resident(self) -> bool:
        """See Pipeline."""
        return self._pipeline.resident

    @property
    def left_out(self) -> int:
        """See Pipeline."""
        return self._pipeline.left_out

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        """See Pipeline; the wait for a window counts as phase "data"."""
        windows = self._pipeline.train(epoch, start_step)
        first = epoch * self.steps_per_epoch
        for step in itertools.count(first + start_step):
            self._heart.at(epoch, min(step, first + self.steps_per_epoch - 1))
            with self._heart.during("data"):
                if (window := next(windows, None)) is None:
                    return
            yield replace(window, batches=self._batches(window.batches))

    def _batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the wait for one counts as phase "data"."""
        while True:
            with self._heart.during("data"):
                if (batch := next(batches, None)) is None:
                    return
            yield batch

    def evaluate(self, split: str | None = None, interrupted: Callable[[], bool] = never) -> Iterator[Batch]:
        """See Pipeline; each batch is a heartbeat."""
        for batch in self._pipeline.evaluate(split, interrupted):
            self._heart.alive()
            yield batch

    def dummy_batch(self) -> Batch:
        """See Pipeline."""
        return self._pipeline.dummy_batch()


def _note_compilation(heart: Heartbeat) -> None:
    """Make compilation a phase. With a torch that does not report it, the first step includes the compile time."""
    before = []

    def begin(*_: object) -> None:
        """Note that a compilation has started."""
        before.append(heart.phase)
        heart.beat("compilation")

    def end(*_: object) -> None:
        """Return to the phase before the compilation."""
        heart.beat(before.pop() if before else "training")

    on_compilation(begin, end)
