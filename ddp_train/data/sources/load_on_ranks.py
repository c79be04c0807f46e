"""A dataset on all ranks of a run: one rank per node makes it ready, all take the same samples in the same order."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from ddp_core.errors import UserError
from ddp_train.config.options import DataOptions
from ddp_train.data.sources.bad_samples import BadSample
from ddp_train.data.sources.dataset import list_files, load, prepare
from ddp_train.data.sources.listing import Listed
from ddp_train.data.sources.samples import Dataset
from ddp_train.distributed.process_group import Ranks, on_one_rank_per_node, together

T = TypeVar("T")

_SHOWN = 3


def load_on_ranks(name: str, options: DataOptions, ranks: Ranks) -> Dataset:
    """The dataset `name`. A collective. What one node cannot use is left out on all.

    Errors: UserError, on all ranks alike, also where the nodes hold different data.
    """
    left_out: tuple[BadSample, ...] = ()
    listed: list[Listed | None] = []
    while True:
        found: list[Dataset] = []
        on_one_rank_per_node(
            lambda: found.append(prepare(name, options, left_out)),  # noqa: B023 (runs at once)
            ranks,
            meanwhile=lambda: None if listed else listed.append(list_files(name, options)),
        )
        everywhere = [bad for one in _gather([one.left_out for one in found], ranks) for bad in one]
        union = tuple(sorted({sample for bad in everywhere for sample in bad}))
        if all(bad == union for bad in everywhere):
            break
        left_out = union
    dataset = together(lambda: found[0] if found else load(name, options, union, listed[0]), ranks)
    contents = _gather(dataset.content, ranks)
    together(lambda: _same(contents, options), ranks)
    return dataset


def _gather(mine: T, ranks: Ranks) -> list[T]:
    """What each rank has, by rank."""
    everyone = [mine] * ranks.world_size
    if ranks.world_size > 1:
        dist.all_gather_object(everyone, mine)
    return everyone


def _same(contents: list[str | None], options: DataOptions) -> None:
    other = next((rank for rank, content in enumerate(contents) if content != contents[0]), None)
    if other is not None:
        raise UserError(f"--data-dir {options.data_dir}: rank {other} finds other images there than rank 0")


def describe_left_out(dataset: Dataset) -> tuple[str, ...]:
    """A line for the user where samples were left out."""
    if not dataset.left_out:
        return ()
    more = ", ..." if len(dataset.left_out) > _SHOWN else ""
    named = "; ".join(str(sample) for sample in dataset.left_out[:_SHOWN])
    return (f"{len(dataset.left_out)} bad images are left out: {named}{more}",)
