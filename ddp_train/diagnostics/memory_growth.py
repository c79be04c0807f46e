"""Memory that grows from epoch to epoch: something keeps what it should let go (`--memory-growth-check`).

Effect: one line when a process of the run has taken about as much more memory in each of three epochs in turn: how
much an epoch, which process, and what it has now. Host memory is what a process has of its own (RssAnon of proc(5)), of
every rank and of the programs that it started, such as loader workers; on a GPU it is what torch has allocated.
Training is not touched. Cost: a few small files read at the end of an epoch, and one exchange between the ranks. While
progressive resizing enlarges the images, nothing is judged. It combines with everything.
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
"""In turn, of which each must show the growth."""
LEAST = 2**20
"""Bytes an epoch: the records of a run grow by less."""
EVEN = 0.5
"""The least growth of an epoch beside the largest: what has only begun to fill grows ever less."""
_PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """A kind of memory of one process: who has it, as text."""

    who: str
    kind: str


@dataclass(frozen=True)
class Growth:
    """bytes_per_epoch: the mean of the last epochs; now: bytes at the end of them."""

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
        """Read, and judge; never ends the run."""
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
    """Bytes that this process and those that it started have now. What the system does not report is left out."""
    found: dict[Memory, int] = {}
    me, name = os.getpid(), f"rank {rank}"
    with suppress(OSError):
        started = (_PROC / "self" / "task" / str(me) / "children").read_text().split()
        for process in (me, *map(int, started)):
            with suppress(OSError, KeyError, ValueError):  # it has ended meanwhile
                lines = (_PROC / str(process) / "status").read_text().splitlines()
                facts = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
                who = f"{name} (PID {process})" if process == me else f"{facts['Name']} (PID {process}) of {name}"
                own = facts.get("RssAnon") or facts["VmRSS"]
                found[Memory(who, "host memory")] = int(own.split()[0]) * 1024
    if device.type == "cuda":
        found[Memory(f"{name} (PID {me})", "GPU memory")] = torch.cuda.memory_allocated(device)
    return found
