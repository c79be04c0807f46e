"""Options of the data: which images, how many at a time, and how they reach the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, When, option


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data"""

    dataset: (
        Literal["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "folder", "digits", "synthetic"] | None
    ) = option(
        None,
        "Dataset (default: CIFAR-10 from --data-dir or by download; the bundled digits where neither is possible).",
    )
    data_dir: str = option(
        "data", "Folder with cifar-10-batches-py, or with train/<class>/* and test/<class>/* images."
    )
    batch_size: int | None = option(
        None,
        "GLOBAL batch: images per optimizer step over all ranks (default: by hardware).",
        Range(1, 10**7),
        excludes={When("batch_size_per_rank"): "give one (--batch-size is the global batch)"},
    )
    batch_size_per_rank: int | None = option(
        None, "Images per step on each rank, for a global batch that grows with the number of ranks.", Range(1, 10**7)
    )
    accumulate: int | None = option(
        None,
        "Micro-batches per optimizer step; they divide the global batch, the result is the same (default: 1, more for "
        "vit).",
        Range(1, 10**5),
    )
    shares: Literal["equal", "measured"] = option(
        "equal",
        "How the global batch is divided among the ranks; measured: different GPUs get what each computes in the same "
        "time.",
    )
    pipeline: Literal["auto", "resident", "loader"] = option(
        "auto",
        "resident: decoded images stay in the device's memory; loader: worker processes; auto: resident if they fit.",
    )
    num_workers: int | None = option(
        None,
        "Loader worker processes per rank (default: by cores).",
        Range(0, 1024),
        only_with=When("pipeline", "loader", "auto"),
    )
    prefetch_factor: int = option(
        4,
        "Batches that each loader worker prepares ahead.",
        Range(1, 1024),
        only_with=When("pipeline", "loader", "auto"),
    )
    image_size: int | None = option(
        None,
        "Side in pixels to which folder images are scaled and cropped (default: their own where all are equal, else "
        "224).",
        Range(4, 4096),
        excludes={When("dataset", "digits", "synthetic"): "only folders of images are scaled; these have a fixed size"},
    )
    resize: int | None = option(
        None,
        "Scale the shorter side of images to this many pixels and cut out the centre of --image-size: --resize 256 "
        "--image-size 224 is what torchvision's models are evaluated with (default: scaled to --image-size itself).",
        Range(4, 8192),
        only_with=When("image_size"),
    )
    normalize: Literal["data", "imagenet"] | None = option(
        None,
        "Mean and deviation by which images are normalised. data: those of the training images; imagenet: ImageNet's "
        "(default: imagenet with --weights imagenet, else data).",
    )
    background: str = option(
        "white",
        "Colour behind transparent pixels of folder images: a name, or '#rrggbb'.",
        only_with=When("dataset", "folder", "cifar10", None),
    )
    max_pixels: int = option(
        200_000_000,
        "Pixels above which an image file counts as unreadable: decoding it would fill the memory.",
        Range(1, 10**11),
        only_with=When("dataset", "folder", "cifar10", None),
    )
    balanced_sampling: bool = option(
        False,
        "Train on each class equally often: in an epoch of the same length, images of rare classes come several times.",
        excludes={When("class_weights"): "each makes up for unequal classes; together rare ones would count twice"},
    )
    drop_last: bool = option(False, "Leave out the last, partial global batch of an epoch.")
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop", "An unreadable image ends the run (stop), or is left out and counted, up to 0.1% of its split (skip)."
    )
    changed_data: Literal["stop", "accept"] = option(
        "stop",
        "Files that vanished or changed since they were last read end the run (stop), or are used as they are, this "
        "once (accept).",
    )
    val_split: float | None = option(
        None,
        "Share of the training images, the same of each class, kept for validation: it chooses the best epoch, and the "
        "test split is evaluated once, at the end (default: the val/ folder, else the test split chooses).",
        Range(0, 0.9, exclusive=True),
    )
    synthetic_samples: int = option(
        2048,
        "Training images of --dataset synthetic (32 x 32, 10 classes).",
        Range(1, 10**7),
        only_with=When("dataset", "synthetic"),
    )
