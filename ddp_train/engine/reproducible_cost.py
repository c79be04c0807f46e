"""What `--reproducible` costs a run: the gradient of a step with and without it, timed before the first step.

Measured on a copy of the network and random images, so that the run is not touched. Without `--reproducible`, each rank
takes its share of the global batch in one piece (or --accumulate pieces) and the gradients are all-reduced after the
backward pass; DistributedDataParallel would overlap a part of that with it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ddp_train.config.batch_split import shards_of_rank, split
from ddp_train.data.pipeline.window import Batch, Window, micro_batches
from ddp_train.distributed.process_group import wait_for_all, wait_for_device
from ddp_train.engine.reproducible import Sharded
from ddp_train.optim.losses import cross_entropy_sum
from ddp_train.technique import Context, Moment

ROUNDS = 2
"""Counted rounds of both ways in turn, after one that is not counted; the shortest time counts."""


@dataclass(frozen=True)
class Cost:
    """Seconds for the gradient of a step; `without` is None where a rank's share did not fit into memory."""

    reproducible: float
    without: float | None

    def __str__(self) -> str:
        ours = f"{1000 * self.reproducible:.1f} ms for the gradient of a step"
        if self.without is None:
            return f"{ours}; without --reproducible the share of a rank does not fit into memory"
        times = self.reproducible / max(self.without, 1e-9)
        return f"{ours}, {1000 * self.without:.1f} ms without --reproducible ({times:.2f} times; measured now)"


def measure(context: Context, threads: int) -> Cost:
    """Time both ways on all ranks alike; rank 0's clock counts. threads: a rank's without `--reproducible`.

    Errors: UserError where a layer has no kernel that gives the same bits twice.
    """
    trial = _Trial(context, threads)
    with torch.random.fork_rng([context.device] if context.device.type == "cuda" else []):
        times = [(trial.seconds(trial.reproducible), trial.seconds(trial.without)) for _ in range(1 + ROUNDS)]
    ours, without = (min(taken[1:]) for taken in zip(*times, strict=True))
    return Cost(ours, None if trial.too_large else without)


class _Trial:
    """One global batch of random images, and both ways to its gradient."""

    def __init__(self, context: Context, threads: int) -> None:
        ranks, size, shards = context.ranks, context.global_batch, context.config.shards
        assert shards is not None
        self._context, self._network = context, copy.deepcopy(context.network).train()
        self._sharded = Sharded(self._network, ranks, context.device, shards)
        self._threads = threads if context.device.type == "cpu" else torch.get_num_threads()
        self._loss = cross_entropy_sum()
        self.too_large = False
        parts = split(size, [1.0] * shards)
        mine = [(shard, parts[shard]) for shard in shards_of_rank(shards, ranks.rank, ranks.world_size)]
        whole = [(ranks.rank, split(size, [1.0] * ranks.world_size)[ranks.rank])]
        images = torch.randn((max(whole[0][1], sum(n for _, n in mine)), *context.image_shape), device=context.device)
        order = torch.channels_last if context.config.model.channels_last else torch.contiguous_format
        self._images = images.contiguous(memory_format=order)
        pieces = [1.0] * (context.config.data.accumulate or 1)
        self._ours, self._plain = micro_batches(0, mine, pieces), micro_batches(0, whole, pieces)

    def _batches(self, bounds: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Batches with labels of class 0, by bounds."""
        for start, stop in bounds:
            labels = torch.zeros(stop - start, dtype=torch.int64, device=self._context.device)
            yield Batch(self._images[start:stop], labels, labels)

    def _compute(self, batch: Batch, moment: Moment, weight: float) -> None:
        """Forward and backward of one batch."""
        with self._context.precision.autocast():
            loss = self._loss(self._network(batch.images), batch.labels)
        (loss * weight).backward()

    def reproducible(self) -> None:
        """Compute the gradient as the run does."""
        bounds, shards = self._ours
        samples, size = sum(stop - start for start, stop in bounds), self._context.global_batch
        window = Window(self._batches(bounds), len(bounds), samples, size, shards)
        moment = Moment(0, 0, 0, self._context.ranks.rank)
        self._sharded.gradients(window, window.batches, moment, self._compute, communicate=True)

    def without(self) -> None:
        """Compute the gradient of this rank's share, and all-reduce it once."""
        pinned = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            for batch in self._batches(self._plain[0]):
                self._compute(batch, Moment(0, 0, 0, 0), 1 / self._context.global_batch)
        except torch.OutOfMemoryError:
            self.too_large = True
        if dist.is_initialized():
            gradients = [p if p.grad is None else p.grad for p in self._network.parameters()]
            dist.all_reduce(torch.cat([gradient.detach().flatten() for gradient in gradients]))
        torch.set_num_threads(pinned)

    def seconds(self, way: Callable[[], None]) -> float:
        """The time of one gradient, from when all ranks are ready."""
        self._network.zero_grad(set_to_none=True)
        wait_for_all()
        started = time.perf_counter()
        way()
        wait_for_device(self._context.device)
        return time.perf_counter() - started
