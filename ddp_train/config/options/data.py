"""Options of the data: which images, how many at a time, and how they reach the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data"""

    dataset: Literal["cifar10", "folder", "digits", "synthetic"] | None = None
    """Dataset; None is CIFAR-10 from --data-dir or by download, and the bundled digits where neither is possible."""
    data_dir: str = "data"
    """Folder with cifar-10-batches-py, or with train/<class>/* and test/<class>/* images."""
    batch_size: int | None = None
    """GLOBAL batch: images per optimizer step over all ranks (None: by hardware)."""
    batch_size_per_rank: int | None = None
    """Images per step and rank, for those who want the global batch to grow with the ranks."""
    accumulate: int | None = None
    """Micro-batches per optimizer step; the global batch is divided, the mathematics stays (None: 1, vit more)."""
    shares: Literal["equal", "measured"] = "equal"
    """Ranks' parts of a global batch: measured gives unlike devices what each computes in the same time."""
    pipeline: Literal["auto", "resident", "loader"] = "auto"
    """resident holds decoded images in the device's memory; loader has worker processes; auto: resident if they fit."""
    num_workers: int | None = None
    """Loader worker processes per rank (None: by cores)."""
    prefetch_factor: int = 4
    """Batches that each loader worker prepares ahead."""
    image_size: int | None = None
    """Side in pixels that folder images are scaled and cropped to (None: their own where all are alike, else 224)."""
    drop_last: bool = False
    """Leave out the last, partial global batch of an epoch."""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """An image that cannot be read ends the run, or is left out and counted (up to 0.1% of its split)."""
    changed_data: Literal["stop", "accept"] = "stop"
    """Files that vanished or changed since they were last read end the run, or are taken as they are, this once."""
    synthetic_samples: int = 2048
    """Training images of --dataset synthetic (32 x 32, 10 classes)."""
