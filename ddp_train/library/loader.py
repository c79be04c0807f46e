"""`run.loader(...)`: a rank's part of each global batch of a map-style dataset; for a stream see stream.py.

The order of the samples depends on (seed, epoch) alone, and global batch k is the k-th slice of it
(data/pipeline/sampler.py): the batches are the same on any number of ranks, and a resumed run skips those that were
trained. Each rank gets the same number of batches; a rank without samples gets an empty batch (reading.py).
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddp_core.errors import UserError
from ddp_train.data.pipeline.sampler import GlobalBatchSampler, RankPart
from ddp_train.data.pipeline.window import micro_batches
from ddp_train.data.sources.decode import end_with_parent
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.library.order import OrderedSampler
from ddp_train.library.reading import BatchReader, Request, with_values

ALL = -1
"""As the start of a pass through the data: nothing of it is left."""


class Part(NamedTuple):
    """A batch that the loop's body works on: this rank's own samples of a global batch. `borrowed`: it holds a sample
    that does not count, since a batch without samples could not be made."""

    samples: int
    size: int
    """Samples of the global batch, over all ranks and micro-batches."""
    last: bool = True
    """Whether it is the last micro-batch: with its backward pass the ranks join their gradients."""
    first: bool = True
    indices: Sequence[int] = ()
    borrowed: bool = False


class Turns(Protocol):
    """What a loader calls between its batches (see steps.py)."""

    device: torch.device

    def within(self) -> bool | None:
        """Whether the loop over another loader is running; None before run.epochs()."""

    def finish(self, loader: Loader) -> None:
        """The loop's body is done with the previous batch, if there was one."""

    def begin(self, loader: Loader, part: Part) -> None:
        """The loop's body begins with the batch of `part`."""

    def end(self, loader: Loader) -> None:
        """The loop's body is done with the epoch's last batch."""

    def leave(self, loader: Loader) -> None:
        """The loop is left, at its end or before."""


@dataclass(eq=False)
class _Pass:
    """One loop over a loader. within: a loop over another loader was running, as in zip or in nested loops."""

    within: bool | None
    trained: bool = False


class Loader(ABC):
    """See `Run.loader`. `taken`: global batches of the running or latest pass that the loop's body was given."""

    dataset: Any

    def __init__(self, turns: Turns, batch_size: int, accumulate: int, name: str) -> None:
        self._turns, self.batch_size, self.accumulate, self.name = turns, batch_size, accumulate, name
        self.epoch = self.taken = 0
        self.trained = False
        """Whether optimizer steps were taken with its batches."""
        self._pass: _Pass | None = None
        self._over: list[bool] = []
        """For each earlier pass of the epoch that was not within another loop: whether it trained."""
        self._begin: list[int] = []
        """Where the next passes begin, in the epoch in which a run resumes."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; 0 if unknown, as for a stream."""
        return 0

    @property
    def facts(self) -> dict[str, Any]:
        """Values that must be the same if a run resumes within an epoch."""
        return {"batch_size": self.batch_size}

    def like(self, other: Loader) -> bool:
        """Whether each batch has as many samples as the other's."""
        mine, others = self.facts, other.facts
        shape = ("batch_size", "samples", "steps_per_epoch")
        return all(name in mine and mine[name] == others.get(name) for name in shape)

    def begin_epoch(self, epoch: int) -> None:
        """Start over, with the order of this epoch."""
        if epoch != self.epoch:
            self._begin = []
        if self._pass is not None:
            self._end(self._pass)
        self.epoch, self.taken, self._over = epoch, 0, []

    def stepped(self) -> None:
        """An optimizer step was taken with a batch of the running pass."""
        self.trained = True
        if self._pass is not None:
            self._pass.trained = True

    def state_dict(self) -> dict[str, Any]:
        """Its place in the running epoch: a pass that trained is not repeated, one that evaluated is."""
        begin = [ALL if trained else 0 for trained in self._over]
        if self._pass is not None:
            begin.append(self.taken if self._pass.trained else 0)
        return {"trained": self.trained, "begin": begin, "facts": self.facts}

    def load_state_dict(self, state: Mapping[str, Any], *, within: bool) -> None:
        """Continue at a saved place. within: it is within an epoch. Errors: UserError where `facts` differ."""
        self.trained = bool(state["trained"])
        if not within:
            return
        self._begin = list(state["begin"])
        for name, then in state["facts"].items() if any(self._begin) else ():
            if self.facts[name] != then:
                raise UserError(
                    f"the checkpoint was written within an epoch of a loader with {name} {then}, but {self.name} has "
                    f"{self.facts[name]}: resume with the same value, or start a new run with Run(resume=None)"
                )

    def _start(self) -> tuple[_Pass, int]:
        """A new pass through the data, and where it begins. A pass before run.epochs() is not counted."""
        if self._pass is not None:
            self._end(self._pass)
        this = self._pass = _Pass(self._turns.within())
        start = 0
        if this.within is not None:
            start = self._begin.pop(0) if self._begin else 0
            self.taken, this.trained = max(0, start), start != 0
        return this, start

    def _end(self, this: _Pass) -> None:
        if self._pass is this:
            self._pass = None
            if this.within is False:
                self._over.append(this.trained)
            self._turns.leave(self)

    def __iter__(self) -> Iterator[Any]:
        turns, (this, start) = self._turns, self._start()
        windows, counts = self._windows(start), this.within is not None
        finish, begin, device, beat = turns.finish, turns.begin, turns.device, heartbeat.beat
        try:
            while True:
                if self._pass is not this:
                    raise UserError(
                        f"a loop over {self.name} continues after a new one, or a new epoch, has begun: make a loader "
                        "for each loop that runs beside another, and begin each loop within an epoch"
                    )
                finish(self)
                beat("data")
                if (window := next(windows, None)) is None:
                    break
                self.taken += counts
                for part, batch in window:
                    begin(self, part)
                    beat("forward")
                    yield to_device(batch, device)
                    beat("data")
            turns.end(self)
        finally:
            self._end(this)

    @abstractmethod
    def _windows(self, start: int) -> Iterator[Iterator[tuple[Part, Any]]]:
        """The micro-batches of each global batch of this epoch, starting with number `start`."""


class MapLoader(Loader):
    """Loads a dataset with `len` and `[]`. `options`: for torch.utils.data.DataLoader, used if there are workers."""

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
        self._requests = _Requests()
        self._workers: DataLoader[Any] | None = None
        if num_workers:
            init = partial(_init_worker, os.getpid(), options.get("worker_init_fn"))
            known = {"persistent_workers": True, "generator": torch.Generator(), **options, "worker_init_fn": init}
            self._workers = DataLoader(
                reader, batch_size=None, sampler=self._requests, num_workers=num_workers, **known
            )

    @property
    def steps_per_epoch(self) -> int:
        """See Loader."""
        return self._sampler.steps_per_epoch

    @property
    def facts(self) -> dict[str, Any]:
        """See Loader."""
        sampler = self._sampler
        found = super().facts | {
            "samples": len(self.dataset),  # type: ignore[arg-type]
            "steps_per_epoch": sampler.steps_per_epoch,
            "shuffle": sampler.shuffle,
            "seed": sampler.seed,
        }
        return found | {"order": sampler.mark} if isinstance(sampler, OrderedSampler) else found

    def __len__(self) -> int:
        """Batches of an epoch, the same number on every rank: each micro-batch counts."""
        whole, rest = divmod(self._sampler.total_size, self.batch_size)
        return sum(
            times * len(self._bounds(RankPart(0, 0, size, *self._sampler.cut(size)[1:])))
            for times, size in ((whole, self.batch_size), (1, rest))
            if times and size
        )

    def begin_epoch(self, epoch: int) -> None:
        """See Loader."""
        super().begin_epoch(epoch)
        self._sampler.set_epoch(epoch)

    def _bounds(self, part: RankPart) -> list[tuple[int, int]]:
        return micro_batches(0, part.shards, [1.0] * self.accumulate, min(part.most, self.accumulate))[0]

    def _windows(self, start: int) -> Iterator[Iterator[tuple[Part, Any]]]:
        asked: deque[tuple[RankPart, list[list[int]]]] = deque()
        if start == ALL or start >= self.steps_per_epoch:
            return

        def requests() -> Iterator[Request]:  # made as they are needed: a list of all would take much memory
            """The requests for this rank's batches; each part is noted in `asked`."""
            for part, indices in self._sampler.windows(start):
                visits = indices.tolist()
                batches = [visits[low:high] for low, high in self._bounds(part)]
                asked.append((part, batches))
                yield from ((self.epoch, batch) for batch in batches)

        self._requests.next = requests
        reads = map(self._reader.__getitem__, requests()) if self._workers is None else iter(self._workers)
        for first in reads:
            yield self._window(*asked.popleft(), chain((first,), reads))

    def _window(
        self, part: RankPart, batches: list[list[int]], reads: Iterator[tuple[Any, bool]]
    ) -> Iterator[tuple[Part, Any]]:
        for number, (indices, (batch, borrowed)) in enumerate(zip(batches, reads, strict=False)):
            last = number == len(batches) - 1
            yield Part(len(indices), part.global_size, last, number == 0, indices, borrowed), batch


class _Requests:
    """The requests to the loader workers for one pass; `next` makes them."""

    next: Callable[[], Iterator[Request]]

    def __iter__(self) -> Iterator[Request]:
        return self.next()


def _init_worker(parent: int, own: Callable[[int], object] | None, number: int) -> None:
    """Set up a loader worker: it will end with its rank; then call the user's worker_init_fn."""
    end_with_parent(parent)
    if own is not None:
        own(number)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`, and anything else that has a `to`."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Mapping):
        return with_values(batch, {name: to_device(value, device) for name, value in batch.items()})
    if isinstance(batch, tuple) and callable(getattr(type(batch), "to", None)):  # PackedSequence: a part stays here
        return batch.to(device)  # type: ignore[attr-defined]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if type(batch) in (list, tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if is_dataclass(batch) and not isinstance(batch, type):
        clone = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(clone, field.name, to_device(getattr(batch, field.name), device))  # it may be frozen
        return clone
    return batch
