"""`run.loader(...)` of a stream: an iterable dataset with state_dict and load_state_dict (torchdata's protocol)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ddp_core.errors import UserError
from ddp_train.config.batch_split import split
from ddp_train.data.pipeline.window import micro_batches
from ddp_train.distributed.process_group import Ranks
from ddp_train.library.loader import ALL, Loader, Part, Turns
from ddp_train.library.order import Ordering
from ddp_train.library.reading import Collate, empty_batch


class StreamLoader(Loader):
    """Every rank reads the same stream and keeps its part of each global batch, so that the batches are the same on any
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
        """The stream was read to its end. Many streams have restarted by then, so their state may not show it."""
        self._ranks = ranks

    def begin_epoch(self, epoch: int) -> None:
        """See Loader."""
        super().begin_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The loader's place. If a loop was left before the stream's end, it has one between two epochs too."""
        read = self.trained and self.taken and not self._ended
        return super().state_dict() | {"stream": self.dataset.state_dict() if read else None, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any], *, within: bool) -> None:
        """See Loader."""
        super().load_state_dict(state, within=within)
        self._state, self._ended = state["stream"], within and state["ended"]

    def _windows(self, start: int) -> Iterator[Iterator[tuple[Part, Any]]]:
        if start == ALL or (start and self._ended):
            return
        if self._state is not None:
            self.dataset.load_state_dict(self._state)
        self._state, self._ended = None, False
        stream = iter(self.dataset)
        while samples := list(itertools.islice(stream, self.batch_size)):
            self._ended = len(samples) < self.batch_size
            if self._ended and self._drop_last:
                return
            yield self._window(samples)
        self._ended = True

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


def refuse(dataset: Any, ordering: Ordering, num_workers: int) -> None:
    """Errors: UserError where a dataset that is not map-style cannot be read as a stream, or cannot be resumed."""
    kind = type(dataset).__name__
    if not hasattr(dataset, "__iter__"):
        raise UserError(f"run.loader({kind}): no dataset: it has neither len and [], nor can it be iterated over")
    if not (hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")):
        raise UserError(
            f"run.loader({kind}): an iterable dataset without state_dict and load_state_dict: a resumed run could not "
            "find its place in it; give it both (torchdata's protocol), or len and []"
        )
    if num_workers or ordering.order_of is not None:
        raise UserError(
            f"run.loader({kind}): a rank reads a stream in the stream's order: num_workers and sampler cannot be used"
        )
