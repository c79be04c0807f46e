"""A user's own order of the samples, for `run.loader(..., sampler=function)`: checked, and the same on all ranks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.distributed.process_group import Ranks, gather, together

Order = Callable[[int], Any]
"""epoch (from 0) -> the indices of its samples, in their order: some may come twice, and some not at all."""


@dataclass(frozen=True)
class Ordering:
    """How the order of the samples is made. order_of: the user's own order by epoch, in place of a shuffled one."""

    seed: int
    shuffle: bool
    drop_last: bool
    order_of: Order | None


class OrderedSampler(GlobalBatchSampler):
    """The global batches of an order that the user gives, by epoch, instead of a shuffled one. `mark`: its checksum."""

    def __init__(self, dataset: Sized, ordering: Ordering, global_batch: int, ranks: Ranks) -> None:
        self._order_of, self._order, self._ranks = ordering.order_of, torch.arange(len(dataset)), ranks
        self._known_epoch, self.mark = -1, 0
        if not callable(self._order_of):
            kind = type(self._order_of).__name__
            raise UserError(
                f"run.loader(sampler=...): a {kind} is no function: it takes one of the epoch (from 0) that returns "
                "indices, as in sampler=lambda epoch: np.random.default_rng(epoch).permutation(1000)"
            )
        shape: dict[str, Any] = {"world_size": ranks.world_size, "rank": ranks.rank, "drop_last": ordering.drop_last}
        super().__init__(dataset, global_batch=global_batch, seed=ordering.seed, **shape)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Get the order of `epoch`. A collective. Errors: UserError if it is not valid, or the ranks' orders differ."""
        if epoch == self._known_epoch:
            return
        super().set_epoch(epoch)
        order_of = self._order_of
        assert order_of is not None
        order = together(lambda: self._checked(order_of(epoch), epoch), self._ranks)
        self._order, self._known_epoch, self.mark = order, epoch, zlib.crc32(order.numpy())  # type: ignore[arg-type]
        if len(set(gather(self.mark, self._ranks))) > 1:
            raise UserError(
                f"run.loader(sampler=...): the ranks got different orders for epoch {epoch}: it must depend on the "
                "epoch alone, as np.random.default_rng(epoch).permutation(1000) does"
            )
        size = self.global_batch
        self.steps_per_epoch = len(order) // size if self.drop_last else -(-len(order) // size)
        self.total_size = min(len(order), self.steps_per_epoch * size)

    def _checked(self, found: Any, epoch: int) -> Tensor:
        """The user's indices as int64 [n]. Errors: UserError where they are not valid."""
        length = len(self.dataset)  # type: ignore[arg-type]
        try:
            listed = found if isinstance(found, np.ndarray | Tensor) else np.asarray(list(found))
            order = torch.as_tensor(listed)
        except (TypeError, ValueError) as error:
            raise self._refused(epoch, f"a {type(found).__name__} ({' '.join(str(error).split())})") from None
        if not order.numel():
            raise self._refused(epoch, "none")
        if order.ndim != 1 or order.dtype == torch.bool or order.is_floating_point() or order.is_complex():
            raise self._refused(epoch, f"values of {order.dtype}, shape {list(order.shape)}")
        if not 0 <= order.min() <= order.max() < length:
            raise self._refused(epoch, f"{len(order)} numbers from {order.min().item()} to {order.max().item()}")
        return order.to("cpu", torch.int64)

    def _refused(self, epoch: int, found: str) -> UserError:
        last = len(self.dataset) - 1  # type: ignore[arg-type]
        return UserError(
            f"run.loader(sampler=...): it must return indices from 0 to {last} for an epoch, and returned {found} for "
            f"epoch {epoch}"
        )

    def order(self, device: torch.device | str = "cpu") -> Tensor:
        """See GlobalBatchSampler."""
        return self._order.to(device)
