"""`run.loader(...)`: a rank's part of each global batch, of a map-style dataset or of a stream that knows its place.

The order of the samples depends on (seed, epoch) alone, and global batch k is the k-th slice of it
(data/pipeline/sampler.py): the batches are the same on any number of ranks, and a resumed run reads none that was
trained. Each rank gets the same number of batches; one without samples gets an empty batch (reading.py).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from ddp_core.errors import UserError
from ddp_train.config.batch_split import split
from ddp_train.data.pipeline.sampler import GlobalBatchSampler, RankPart
from ddp_train.data.pipeline.window import micro_batches
from ddp_train.data.sources.decode import end_with_parent
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks
from ddp_train.library.reading import BatchReader, Collate, Request, empty_batch

Order = Callable[[int], Any]
"""epoch (from 0) -> the indices of its samples, in their order."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank has in hand: a batch of its own samples, of a global batch. `borrowed`: it holds a sample that does
    not count, since nobody knows what the batch looks like without."""

    samples: int
    size: int
    """Samples of the global batch, over all ranks and micro-batches."""
    last: bool = True
    """Whether it is the last micro-batch: with its backward pass the ranks join their gradients."""
    first: bool = True
    indices: Sequence[int] = ()
    borrowed: bool = False


class Turns(Protocol):
    """Who is asked between the batches (steps.py)."""

    device: torch.device

    def finish(self, loader: Loader) -> None:
        """The loop's body for the batch before, if there was one, is done."""

    def begin(self, loader: Loader, part: Part) -> None:
        """The body for `part` begins."""

    def end(self, loader: Loader) -> None:
        """The body for the epoch's last batch is done."""

    def leave(self, loader: Loader) -> None:
        """The loop is left, at its end or before."""


class OrderedSampler(GlobalBatchSampler):
    """The global batches of an order that the user gives, by epoch, instead of a shuffled one."""

    def __init__(self, dataset: Any, order_of: Order, **options: Any) -> None:
        self._order_of, self._order = order_of, torch.arange(len(dataset))
        super().__init__(dataset, **options)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Ask for the order of `epoch`. Errors: UserError where it is none."""
        super().set_epoch(epoch)
        order = torch.as_tensor(np.asarray(list(self._order_of(epoch))))
        length = len(self.dataset)  # type: ignore[arg-type]
        if (
            order.ndim != 1
            or order.is_floating_point()
            or (len(order) and not 0 <= order.min() <= order.max() < length)
        ):
            raise UserError(
                f"run.loader(sampler=...): it must return a list of indices from 0 to {length - 1} for an epoch, and "
                f"returned {tuple(order.shape)} numbers from {_least(order)} to {_most(order)} for epoch {epoch}"
            )
        self._order = order.to(torch.int64)
        size = self.global_batch
        self.steps_per_epoch = len(order) // size if self.drop_last else -(-len(order) // size)
        self.total_size = min(len(order), self.steps_per_epoch * size)

    def order(self, device: torch.device | str = "cpu") -> Tensor:
        return self._order.to(device)


def _least(order: Tensor) -> object:
    return order.min().item() if order.numel() else "none"


def _most(order: Tensor) -> object:
    return order.max().item() if order.numel() else "none"


class Loader:
    """See `Run.loader`. `taken`: global batches of the running epoch that were handed over."""

    dataset: Any

    def __init__(self, turns: Turns, batch_size: int, accumulate: int, name: str) -> None:
        self._turns, self.batch_size, self.accumulate, self.name = turns, batch_size, accumulate, name
        self.epoch = self.taken = 0
        self.trained = False
        """Whether optimizer steps belong to it: its place is part of a checkpoint."""
        self._resume_at = 0

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; 0 where nobody knows, as for a stream."""
        return 0

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same where a run resumes within an epoch."""
        return {"batch_size": self.batch_size}

    def begin_epoch(self, epoch: int) -> None:
        """Start over, with the order of this epoch."""
        self.epoch, self.taken = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Its place in the running epoch."""
        return {"taken": self.taken if self.trained else 0, "trained": self.trained, "facts": self.facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there. Errors: UserError where the place has another meaning here."""
        self.trained = bool(state["trained"])
        self._resume_at = int(state["taken"])
        for name, then in state["facts"].items() if self._resume_at else ():
            if self.facts[name] != then:
                raise UserError(
                    f"the checkpoint was written within an epoch of a loader with {name} {then}, but {self.name} has "
                    f"{self.facts[name]}: resume with the same value, or start a new run with Run(resume=None)"
                )

    def _start(self) -> int:
        """Where this pass through the data begins: a resumed one at its place, once."""
        start, self._resume_at = self._resume_at, 0
        self.taken = start
        return start

    def __iter__(self) -> Iterator[Any]:
        turns, windows = self._turns, self._windows(self._start())
        try:
            while True:
                turns.finish(self)
                heartbeat.beat("data")
                if (window := next(windows, None)) is None:
                    break
                self.taken += 1
                for part, batch in window:
                    turns.begin(self, part)
                    heartbeat.beat("forward")
                    yield to_device(batch, turns.device)
                    heartbeat.beat("data")
            turns.end(self)
        finally:
            turns.leave(self)

    def _windows(self, start: int) -> Iterator[Iterator[tuple[Part, Any]]]:
        """The micro-batches of each global batch of this epoch, from the one with number `start` on."""
        raise NotImplementedError


class MapLoader(Loader):
    """Of a dataset with `len` and `[]`. `options`: of torch.utils.data.DataLoader, used where there are workers."""

    def __init__(
        self,
        turns: Turns,
        sampler: GlobalBatchSampler,
        reader: BatchReader,
        accumulate: int,
        name: str,
        num_workers: int,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(turns, sampler.global_batch, accumulate, name)
        self.dataset, self._sampler, self._reader = sampler.dataset, sampler, reader
        self._requests: list[Request] = []
        self._workers: DataLoader[Any] | None = None
        if num_workers:
            init = partial(_init_worker, os.getpid(), options.get("worker_init_fn"))
            known = {"persistent_workers": True, "generator": torch.Generator(), **options, "worker_init_fn": init}
            self._workers = DataLoader(
                reader, batch_size=None, sampler=self._requests, num_workers=num_workers, **known
            )

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    @property
    def facts(self) -> dict[str, Any]:
        sampler = self._sampler
        return super().facts | {
            "samples": len(self.dataset),  # type: ignore[arg-type]
            "steps_per_epoch": sampler.steps_per_epoch,
            "shuffle": sampler.shuffle,
            "seed": sampler.seed,
        }

    def __len__(self) -> int:
        """Batches of an epoch, on every rank alike: micro-batches count each."""
        return sum(len(self._bounds(part)) for part in self._sampler.plan())

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self._sampler.set_epoch(epoch)

    def _bounds(self, part: RankPart) -> list[tuple[int, int]]:
        return micro_batches(0, part.shards, [1.0] * self.accumulate, min(part.most, self.accumulate))[0]

    def _windows(self, start: int) -> Iterator[Iterator[tuple[Part, Any]]]:
        plan = [
            (part, [indices[low:high].tolist() for low, high in self._bounds(part)])
            for part, indices in self._sampler.windows(start)
        ]
        self._requests[:] = [(self.epoch, indices) for _, batches in plan for indices in batches]
        reads = (
            iter(self._workers) if self._workers is not None and plan else map(self._reader.__getitem__, self._requests)
        )
        for part, batches in plan:
            yield self._window(part, batches, reads)

    def _window(
        self, part: RankPart, batches: list[list[int]], reads: Iterator[tuple[Any, bool]]
    ) -> Iterator[tuple[Part, Any]]:
        for number, indices in enumerate(batches):
            batch, borrowed = next(reads)
            last = number == len(batches) - 1
            yield Part(len(indices), part.global_size, last, number == 0, indices, borrowed), batch


def _init_worker(parent: int, own: Callable[[int], object] | None, number: int) -> None:
    """In a worker: it ends with the rank, then what the user wants of it."""
    end_with_parent(parent)
    if own is not None:
        own(number)


class StreamLoader(Loader):
    """Of an iterable dataset with state_dict and load_state_dict (torchdata's protocol).

    Every rank reads the same stream and keeps its part of each global batch, so that the batches are the same on any
    number of ranks. The stream's place is part of a checkpoint.
    """

    def __init__(
        self,
        turns: Turns,
        dataset: Any,
        collate: Collate,
        batch_size: int,
        accumulate: int,
        name: str,
        ordering: Ordering,
        ranks: Ranks,
    ) -> None:
        super().__init__(turns, batch_size, accumulate, name)
        self.dataset, self._collate, self._drop_last = dataset, collate, ordering.drop_last
        self._state: Any = None
        self._ended = False
        """The stream is read to its end. Many a stream has begun anew by then, so its own state would not say so."""
        self._ranks = ranks

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        within = self.trained and self.taken
        place = {"stream": self.dataset.state_dict() if within else None, "ended": bool(within and self._ended)}
        return super().state_dict() | place

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._state, self._ended = state["stream"], state["ended"]

    def _windows(self, start: int) -> Iterator[Iterator[tuple[Part, Any]]]:
        if start and self._state is not None:
            self.dataset.load_state_dict(self._state)
        ended, self._state, self._ended = bool(start and self._ended), None, False
        if ended:
            return
        stream = iter(self.dataset)
        while samples := list(itertools.islice(stream, self.batch_size)):
            self._ended = len(samples) < self.batch_size
            if self._ended and self._drop_last:
                return
            yield self._window(samples)

    def _window(self, samples: list[Any]) -> Iterator[tuple[Part, Any]]:
        parts = split(len(samples), [1.0] * self._ranks.world_size)
        first = sum(parts[: self._ranks.rank])
        shards = ((0, parts[self._ranks.rank]),)
        bounds, _ = micro_batches(first, shards, [1.0] * self.accumulate, min(max(parts), self.accumulate))
        for number, (low, high) in enumerate(bounds):
            mine, borrowed = samples[low:high], False
            if mine:
                batch = self._collate(mine)
            else:
                batch, borrowed = empty_batch(self._collate, samples[0])
            last = number == len(bounds) - 1
            yield Part(len(mine), len(samples), last, number == 0, (), borrowed), batch


@dataclass(frozen=True)
class Ordering:
    """Which samples come when. order_of: the user's own order by epoch, in place of a shuffled one."""

    seed: int
    shuffle: bool
    drop_last: bool
    order_of: Order | None


def create(
    turns: Turns,
    dataset: Any,
    batch_size: int,
    ordering: Ordering,
    ranks: Ranks,
    collate: Collate | None,
    accumulate: int,
    num_workers: int,
    options: Mapping[str, Any],
) -> Loader:
    """The loader of a dataset of either kind. Errors: UserError, see Run.loader."""
    name = f"run.loader({type(dataset).__name__}, ...)"
    for option, value in {"batch_size": batch_size, "accumulate": accumulate}.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"run.loader({option}={value!r}): it takes a whole number above 0")
    if accumulate > batch_size:
        raise UserError(f"run.loader(accumulate={accumulate}) is larger than batch_size={batch_size}")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        _refuse_stream(dataset, ordering, num_workers)
        return StreamLoader(turns, dataset, collate or default_collate, batch_size, accumulate, name, ordering, ranks)
    shape: dict[str, Any] = {"global_batch": batch_size, "world_size": ranks.world_size, "rank": ranks.rank}
    shape |= {"seed": ordering.seed, "shuffle": ordering.shuffle, "drop_last": ordering.drop_last}
    if not len(dataset):
        raise UserError(f"{name}: the dataset is empty")
    own = ordering.order_of
    sampler = GlobalBatchSampler(dataset, **shape) if own is None else OrderedSampler(dataset, own, **shape)
    if not sampler.steps_per_epoch:
        raise UserError(f"{name}: drop_last leaves no step of {len(dataset)} samples, global batch {batch_size}")
    reader = BatchReader(dataset, collate, ordering.seed)
    return MapLoader(turns, sampler, reader, accumulate, name, num_workers, options)


def _refuse_stream(dataset: Any, ordering: Ordering, num_workers: int) -> None:
    """Errors: UserError where a dataset that is no map cannot be read as a stream, or not resumed."""
    kind = type(dataset).__name__
    if not hasattr(dataset, "__iter__"):
        raise UserError(f"run.loader({kind}): no dataset: it has neither len and [], nor can it be iterated over")
    if not (hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")):
        raise UserError(
            f"run.loader({kind}): an iterable dataset without state_dict and load_state_dict: a resumed run could not "
            "find its place in it; give it both (torchdata's protocol), or len and []"
        )
    if num_workers or ordering.order_of is not None:
        raise UserError(f"run.loader({kind}): the rank reads a stream in its order: no num_workers, no sampler")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`, and anything else that has a `to`."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if type(batch) in (list, tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return batch.to(device) if hasattr(batch, "to") else batch
