"""Determines the samples of each global batch, and this rank's part of them.

The order of the samples depends on (seed, epoch) alone; global batch k is the k-th slice of it; each rank
takes its consecutive part of the slice. So the global batches are the same on any number of ranks.

A global batch may be cut into a fixed number of logical shards first, of which a rank takes consecutive ones
(engine/reproducible.py); else a rank's part is one shard, whose number is the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from ddp_train.config.batch_split import shards_of_rank, split
from ddp_train.data.augment import keyed_random


class RankPart(NamedTuple):
    """This rank's part of one global batch: positions [start, stop) of the epoch's order."""

    start: int
    stop: int
    global_size: int
    """Samples of the global batch, over all ranks."""
    shards: tuple[tuple[int, int], ...]
    """The shards in this part, in order: number and samples, which may be 0."""
    most: int
    """Samples of the largest part: of any rank or, with logical shards, of any shard."""


class GlobalBatchSampler(DistributedSampler[Any]):
    """A DistributedSampler whose global batches do not depend on the number of ranks.

    It differs from its base class in three points: no sample is repeated to make the ranks equal, a
    rank's samples are consecutive within each global batch, and the ranks' parts follow `shares`
    (weights, equal by default), so that a faster device can be given more. A last, partial global
    batch is cut by the same shares; a rank may get no sample of it. With `shards`, each global batch is
    cut into that many equal shards, and each rank takes consecutive ones. With `balanced`, the class of each
    sample (int64 [len(dataset)]), an epoch of the same length has as many samples of each class.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        global_batch: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        shares: Sequence[float] | None = None,
        shards: int | None = None,
        balanced: np.ndarray | None = None,
    ) -> None:
        super().__init__(dataset, world_size, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        if global_batch < 1:
            raise ValueError(f"global_batch must be at least 1, not {global_batch}")
        if shares is not None and len(shares) != world_size:
            raise ValueError(f"{len(shares)} shares for {world_size} ranks")
        if shards is not None and (shares is not None or shards < world_size):
            raise ValueError(f"{shards} shards for {world_size} ranks: at least one each, and without shares")
        self.global_batch = global_batch
        self.shares = tuple(shares) if shares is not None else (1.0,) * world_size
        self.shards = shards
        self.members = None if balanced is None else [np.flatnonzero(balanced == c) for c in np.unique(balanced)]
        length = len(dataset)
        self.steps_per_epoch = length // global_batch if drop_last else -(-length // global_batch)
        self.total_size = min(length, self.steps_per_epoch * global_batch)
        self.num_samples = self._mine()

    def _mine(self) -> int:
        """Samples of this rank in an epoch."""
        whole, rest = divmod(self.total_size, self.global_batch)
        times = {self.global_batch: whole, rest: 1 if rest else 0}
        return sum(count * sum(samples for _, samples in self.cut(size)[1]) for size, count in times.items() if count)

    def plan(self, start: int = 0) -> Iterator[RankPart]:
        """This rank's part of each global batch from step `start` on; the same in every epoch."""
        cuts: dict[int, tuple[int, tuple[tuple[int, int], ...], int]] = {}
        for first in range(start * self.global_batch, self.total_size, self.global_batch):
            size = min(self.global_batch, self.total_size - first)
            if size not in cuts:
                cuts[size] = self.cut(size)
            low, shards, most = cuts[size]
            yield RankPart(first + low, first + low + sum(samples for _, samples in shards), size, shards, most)

    def cut(self, size: int) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """Where this rank's part of `size` samples begins, its shards (numbers and samples), and the largest part."""
        parts = split(size, self.shares if self.shards is None else [1.0] * self.shards)
        edges = [0, *accumulate(parts)]
        mine = range(self.rank, self.rank + 1)
        if self.shards is not None:
            mine = shards_of_rank(self.shards, self.rank, self.num_replicas)
        return edges[mine.start], tuple((shard, parts[shard]) for shard in mine), max(parts)

    def in_order(self, samples: int, largest: int) -> list[tuple[int, int]]:
        """Bounds of this rank's batches of a split of `samples` that is read from first to last, as in evaluation.

        The ranks' parts follow the shares; a batch has at most `largest` samples and stays within one shard.
        """
        start, shards, _ = self.cut(samples)
        batches = []
        for _, length in shards:
            stop = start + length
            batches += [(first, min(first + largest, stop)) for first in range(start, stop, largest)]
            start = stop
        return batches

    def share(self, shares: Sequence[float]) -> None:
        """Change the shares of the ranks from the next epoch or evaluation on; the order of the samples stays."""
        if len(shares) != self.num_replicas or self.shards is not None:
            raise ValueError(f"{len(shares)} shares for {self.num_replicas} ranks, and without logical shards")
        self.shares = tuple(shares)
        self.num_samples = self._mine()

    def order(self, device: torch.device | str = "cpu") -> Tensor:
        """This epoch's order, int64 [len(dataset)], the same on every rank and device: each sample once or, balanced,
        the k-th visit of sample s (k from 0) as s + k * len(dataset), so that each visit has its own draws."""
        length = len(self.dataset)  # type: ignore[arg-type]
        if not self.shuffle:
            return torch.arange(length, dtype=torch.int64, device=device)
        order = keyed_random.permutation(length, keyed_random.key(self.seed, self.epoch, keyed_random.ORDER), device)
        return order if self.members is None else self._balanced_visits(length).to(device)[order]

    def _balanced_visits(self, length: int) -> Tensor:
        """`length` visits, numbered as in `order` and grouped by class. Classes differ by at most one visit.

        So do the samples of a class; each epoch draws anew which classes and samples get the additional visit.
        """
        assert self.members is not None
        key = keyed_random.key(self.seed, self.epoch, keyed_random.BALANCE)
        each, left = divmod(length, len(self.members))
        favoured = set(keyed_random.permutation(len(self.members), key)[:left].tolist())
        visits = []
        for number, members in enumerate(self.members):
            rounds, more = divmod(each + (number in favoured), len(members))
            drawn = keyed_random.permutation(len(members), keyed_random.key(key, number, keyed_random.BALANCE)).numpy()
            visits += [members + length * visit for visit in range(rounds)]
            visits.append(members[drawn[:more]] + length * rounds)
        return torch.from_numpy(np.concatenate(visits))

    def windows(self, start: int = 0) -> Iterator[tuple[RankPart, Tensor]]:
        """This epoch's steps from `start` on (a resumed run starts in the middle of an epoch): this rank's part of each
        global batch, and its visits (see `order`), int64 [n] on the CPU; n may be 0."""
        order = self.order()
        for part in self.plan(start):
            yield part, order[part.start : part.stop]

    def __iter__(self) -> Iterator[int]:
        for _, indices in self.windows():
            yield from (indices % len(self.dataset)).tolist()  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.num_samples
