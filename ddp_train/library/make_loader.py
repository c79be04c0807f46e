"""Chooses the loader that a dataset gets from `run.loader(...)`, and refuses options that cannot work."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate

from ddp_core.errors import UserError
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.distributed.process_group import Ranks
from ddp_train.library import stream
from ddp_train.library.loader import Loader, MapLoader, Turns
from ddp_train.library.order import OrderedSampler, Ordering
from ddp_train.library.reading import BatchReader, Collate

OWN = {"dataset", "batch_size", "shuffle", "sampler", "num_workers", "collate_fn", "drop_last"}
NOT_HERE = {"self", "batch_sampler"}


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
    for option, value in {"batch_size": batch_size, "accumulate": accumulate, "num_workers": num_workers}.items():
        least = 0 if option == "num_workers" else 1
        if not isinstance(value, int) or value < least:
            raise UserError(f"run.loader({option}={value!r}): it takes a whole number of at least {least}")
    if accumulate > batch_size:
        raise UserError(f"run.loader(accumulate={accumulate}) is larger than batch_size={batch_size}")
    _refuse_options(options)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        stream.refuse(dataset, ordering, num_workers)
        collate = collate or default_collate
        return stream.StreamLoader(turns, dataset, collate, batch_size, accumulate, name, ordering, ranks)
    if not len(dataset):
        raise UserError(f"{name}: the dataset is empty")
    sampler = _sampler(dataset, batch_size, ordering, ranks)
    if not sampler.steps_per_epoch:
        raise UserError(f"{name}: drop_last leaves no step of {len(dataset)} samples, global batch {batch_size}")
    reader = BatchReader(dataset, collate, ordering.seed)
    try:
        return MapLoader(turns, sampler, reader, accumulate, name, num_workers, options)
    except ValueError as error:  # DataLoader's own words about its options
        raise UserError(f"{name}: {error}") from None


def _sampler(dataset: Any, batch_size: int, ordering: Ordering, ranks: Ranks) -> GlobalBatchSampler:
    if ordering.order_of is not None:
        return OrderedSampler(dataset, ordering, batch_size, ranks)
    shape: dict[str, Any] = {"global_batch": batch_size, "world_size": ranks.world_size, "rank": ranks.rank}
    return GlobalBatchSampler(
        dataset, seed=ordering.seed, shuffle=ordering.shuffle, drop_last=ordering.drop_last, **shape
    )


def _refuse_options(options: Mapping[str, Any]) -> None:
    """Errors: UserError for an option that does not exist or cannot work, also where no worker would use it."""
    known = set(inspect.signature(DataLoader.__init__).parameters) - OWN - NOT_HERE
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known | OWN, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"run.loader({name}=...): neither it nor torch's DataLoader has this option{hint}")
    if not options.get("in_order", True):
        raise UserError("run.loader(in_order=False): batches are matched with their samples by their order")
