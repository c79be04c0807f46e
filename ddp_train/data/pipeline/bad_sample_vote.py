"""The ranks agree on images that turn out to be bad while a run reads them from files."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from ddp_core.errors import SharedError, UserError
from ddp_train.data.sources.samples import BadSample, Dataset, refuse


class Agreement:
    """Counts the bad images of all ranks, once per global batch, on the host: over its own gloo group.

    So the gradient's mean is over the images that could be read, and all ranks end together. Must be created on all.
    """

    def __init__(self, dataset: Dataset, rank: int, world_size: int) -> None:
        self._policy = dataset.on_bad_sample
        # Keyed by file, since the reason may differ from epoch to epoch.
        sizes = {"train": len(dataset.train)} | {name: len(split) for name, split in dataset.held_out.items()}
        self._found: dict[str, dict[str, BadSample]] = {part: {} for part in sizes}
        for bad in dataset.left_out:
            self._found[bad.part if bad.part in sizes else dataset.final][bad.file] = bad
        self._totals = {part: size + len(self._found[part]) for part, size in sizes.items()}
        self.count = 0
        self._rank = rank
        several = world_size > 1 and dist.is_initialized()
        self._group: Any = dist.new_group(backend="gloo") if several else None

    def settle(self, part: str, mine: list[BadSample]) -> list[BadSample]:
        """The images of this global batch, or of a held-out split, that are bad on any rank. A collective.

        Errors: SharedError, on all ranks, where the run is to stop.
        """
        count = torch.tensor(len(mine), dtype=torch.int32)
        everyone = [mine]
        if self._group is not None:
            dist.all_reduce(count, group=self._group)
            if count.item():
                everyone = [[] for _ in range(dist.get_world_size(self._group))]
                dist.all_gather_object(everyone, mine, group=self._group)
        found = self._found[part]
        new = sorted(bad for one in everyone for bad in one if bad.file not in found)
        found |= {bad.file: bad for bad in new}
        self.count += len(new)
        try:
            refuse([replace(bad, part=part) for bad in found.values()], self._policy, {part: self._totals[part]})
        except UserError as error:
            raise SharedError(str(error), speaks=self._rank == 0) from None
        for bad in new if self._rank == 0 else ():
            print(f"left out: {bad}", file=sys.stderr, flush=True)
        return [bad for one in everyone for bad in one]
