"""Memory that grows from epoch to epoch, as with a leak of tensors or objects (`--memory-growth-check`).

Effect: one line when a process of the run has grown by about the same amount in each of three consecutive epochs: the
growth per epoch, the process, and its memory now. Host memory is the anonymous resident memory of a process (RssAnon
of proc(5)), for every rank and the programs that it started, such as loader workers; GPU memory is what torch has
allocated. Training is not touched. Cost: a few small files read at the end of an epoch, and one exchange between the
ranks. While progressive resizing enlarges the images, nothing is judged. It combines with everything.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ddp_train.distributed.process_group import gather
from ddp_train.observers.records import EpochRecord
from ddp_train.technique import Context, Technique
from ddp_train.techniques.progressive_resize import growing_epochs

EPOCHS = 3
"""Number of consecutive epochs that must each show growth."""
LEAST = 2**20
"""Least growth, in bytes per epoch; the run's own records grow by less."""
EVEN = 0.5
"""Least ratio of an epoch's growth to the largest of the epochs: a cache that fills up grows less and less."""
_PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """One kind of memory of one process. who: the process, as text."""

    who: str
    kind: str


@dataclass(frozen=True)
class Growth:
    """Growth of one `memory`. bytes_per_epoch: the mean over the last epochs; now: bytes at their end."""

    memory: Memory
    bytes_per_epoch: float
    now: int

    def __str__(self) -> str:
        more = f"took {self.bytes_per_epoch / 1e6:,.1f} MB more in each of the last {EPOCHS} epochs"
        why = "something keeps tensors or objects: a sum of losses without .item(), a list in a hook or in a dataset"
        return f"{self.memory.kind} grows: {self.memory.who} {more}, and has {self.now / 1e6:,.0f} MB now; {why}"


def create(context: Context) -> Technique:
    """`--memory-growth-check`, on unless it is switched off. Every rank looks; the first one prints."""
    check = _Check(context, growing_epochs(context.config.augment, context.epochs))
    return Technique(name="memory_growth_check", after_epoch=check.after_epoch)


class _Check:
    def __init__(self, context: Context, after: int) -> None:
        self._ranks, self._device, self._after = context.ranks, context.device, after
        self._readings: list[Mapping[Memory, int]] = []
        self._done = False

    def after_epoch(self, record: EpochRecord) -> bool:
        """Read the memory and judge its growth; never ends the run."""
        if self._done or record.epoch <= self._after:
            return False
        self._readings = [*self._readings[-EPOCHS:], read(self._ranks.rank, self._device)]
        found = [growth for growth in gather(judge(self._readings), self._ranks) if growth is not None]
        if found:
            self._done = True
            if self._ranks.is_first:
                largest = max(found, key=lambda growth: growth.bytes_per_epoch)
                print(f"note: {largest}", file=sys.stderr, flush=True)
        return False


def judge(readings: Sequence[Mapping[Memory, int]]) -> Growth | None:
    """The largest growth over the last epochs, None where nothing grows evenly. readings: bytes, one epoch after
    another, the oldest first."""
    last, found = readings[-EPOCHS - 1 :], []
    for memory, now in last[-1].items() if len(last) > EPOCHS else ():
        values = [reading.get(memory) for reading in last]
        known = [value for value in values if value is not None]
        steps = [after - before for before, after in itertools.pairwise(known)]
        if len(known) == len(values) and min(steps) >= max(LEAST, EVEN * max(steps)):
            found.append(Growth(memory, sum(steps) / len(steps), now))
    return max(found, key=lambda growth: growth.bytes_per_epoch, default=None)


def read(rank: int, device: torch.device) -> dict[Memory, int]:
    """Bytes in use now by this process and those that it started. What the system does not report is left out."""
    found: dict[Memory, int] = {}
    me, name = os.getpid(), f"rank {rank}"
    with suppress(OSError):
        started = (_PROC / "self" / "task" / str(me) / "children").read_text().split()
        for process in (me, *map(int, started)):
            with suppress(OSError, KeyError, ValueError):  # the process has ended meanwhile
                lines = (_PROC / str(process) / "status").read_text().splitlines()
                facts = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
                who = f"{name} (PID {process})" if process == me else f"{facts['Name']} (PID {process}) of {name}"
                own = facts.get("RssAnon") or facts["VmRSS"]
                found[Memory(who, "host memory")] = int(own.split()[0]) * 1024
    if device.type == "cuda":
        found[Memory(f"{name} (PID {me})", "GPU memory")] = torch.cuda.memory_allocated(device)
    return found
