"""Limits the batches that the loader's worker processes hold ready in /dev/shm, where they hand them over.

If /dev/shm were full, torch's workers would die with a traceback or a bus error in the middle of a run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = Path("/dev/shm")
_FRACTION = 0.8  # of what is free: NCCL and others use it too
_PAGES = 16384  # bytes of a batch beside its images


@dataclass(frozen=True)
class Handover:
    """The batches that worker processes hand over. train_batch, test_batch: bytes of the images of one batch."""

    workers: int
    prefetch: int
    train_batch: int
    test_batch: int

    @property
    def test_workers(self) -> int:
        """Workers for evaluation: half of `workers`, rounded up."""
        return (self.workers + 1) // 2

    @property
    def needed(self) -> int:
        """Bytes of /dev/shm for the larger loader: every batch prepared ahead, and the one in use."""
        if self.workers == 0:
            return 0
        both = ((self.workers, self.train_batch), (self.test_workers, self.test_batch))
        return max((workers * self.prefetch + 1) * (batch + _PAGES) for workers, batch in both)


def free_bytes(folder: Path = FOLDER) -> int | None:
    """Bytes of free shared memory; 0 where there is none or it is read-only, None where it has no limit."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 0
    if facts.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        return 0
    return facts.f_bavail * facts.f_frsize if facts.f_blocks else None


def fit(wanted: Handover, free: int | None, ranks: int) -> tuple[Handover, str | None]:
    """The settings that fit for each of `ranks` ranks, and a line for the user where they are less than was wanted.

    First fewer batches are prepared ahead, then there are fewer workers; with none, the training process reads itself.
    """
    if free is None or wanted.needed * ranks <= free * _FRACTION:
        return wanted, None
    sizes = [(wanted.workers, prefetch) for prefetch in range(wanted.prefetch, 0, -1)]
    sizes += [(workers, 1) for workers in range(wanted.workers - 1, 0, -1)]
    smaller = (replace(wanted, workers=workers, prefetch=prefetch) for workers, prefetch in sizes)
    none = replace(wanted, workers=0)
    found = next((less for less in smaller if less.needed * ranks <= free * _FRACTION), none)
    does = f"--num-workers {found.workers}" + (f" --prefetch-factor {found.prefetch}" if found.workers else "")
    line = (
        f"/dev/shm has {free / 1e6:.0f} MB free, and {wanted.workers} loader workers on each of {ranks} ranks would "
        f"need {wanted.needed * ranks / 1e6:.0f} MB: continues with {does}; in a container --shm-size gives more"
    )
    return found, line
