"""Image folders: train/<class>/* and test/<class>/* ("val" is accepted too), decoded once into the cache.

scan -> key -> the cached copy; where there is none: size -> decode -> statistics -> cache. Sets whose decoded
images would fill the memory stay files, which the loader pipeline decodes as it goes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddp_train.data import cache
from ddp_train.data.decode import decode_files, probe_size
from ddp_train.data.memory import available_memory
from ddp_train.data.samples import Dataset, Split, channel_statistics
from ddp_train.options import UserError

__all__ = ["FolderSplit", "class_names", "has_image_folder", "load_image_folder", "scan"]

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".avif")
)
MIXED_SIZE = 224  # pixels; what most image classifiers were made for
_MEMORY_SHARE = 0.5
_SAMPLE = 4096  # images of which the statistics are taken where not all are decoded


@dataclass(frozen=True)
class FolderSplit:
    """The images of train/ or test/, sorted by class and name. stamps: (relative name, size, mtime in ns) of each."""

    root: Path
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    stamps: tuple[tuple[str, int, int], ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.root}{os.sep}{name}" for name, _, _ in self.stamps)


def has_image_folder(data_dir: Path) -> bool:
    return (data_dir / "train").is_dir()


def scan(data_dir: Path) -> tuple[FolderSplit, FolderSplit]:
    """List the training and the test images. Errors: UserError for a missing or empty folder or class, for
    classes that differ between the two, and for what cannot be read."""
    if not has_image_folder(data_dir):
        raise UserError(f"--data-dir {data_dir}: no folder train/<class>/ with images in it")
    held_out = next((data_dir / name for name in ("test", "val") if (data_dir / name).is_dir()), None)
    if held_out is None:
        raise UserError(f"--data-dir {data_dir}: has train/, but neither test/ nor val/ to evaluate on")
    train, test = _scan_split(data_dir / "train"), _scan_split(held_out)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        listed = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")
        raise UserError(f"--data-dir {data_dir}: train/ and {held_out.name}/ differ in their classes ({listed})")
    return train, test


def class_names(root: Path) -> tuple[str, ...]:
    """The class folders of a split, sorted. Errors: UserError where it cannot be read."""
    try:
        with os.scandir(root) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from error


def _scan_split(root: Path) -> FolderSplit:
    try:
        classes = class_names(root)
        labels: list[int] = []
        stamps: list[tuple[str, int, int]] = []
        for label, name in enumerate(classes):
            found = sorted(_images(root, name))
            if not found:
                raise UserError(f"{root / name}: no images in this class folder ({' '.join(sorted(SUFFIXES))})")
            labels += [label] * len(found)
            stamps += found
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not classes:
        raise UserError(f"{root}: no class folders with images in it")
    return FolderSplit(root, classes, tuple(labels), tuple(stamps))


def _images(root: Path, relative: str) -> Iterator[tuple[str, int, int]]:
    """(name relative to root, size, mtime in ns) of the images below a folder."""
    with os.scandir(root / relative) as entries:
        for entry in entries:
            name = f"{relative}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 (a Path for each file is slow)
                facts = entry.stat()
                yield name, facts.st_size, facts.st_mtime_ns
            elif entry.is_dir(follow_symlinks=False):
                yield from _images(root, name)


def load_image_folder(
    name: str, data_dir: Path, *, image_size: int | None = None, verify: bool = False, limit: int | None = None
) -> Dataset:
    """The dataset in an image folder, from the cached copy where there is one.

    image_size: side in pixels to scale and crop to (None: the images' own size where all are alike, else 224).
    verify: compare the cached copy's checksum. limit: bytes of decoded images above which they stay files
    (None: half of the memory that is available). Errors: UserError, see scan() and decode_files().
    """
    train, test = scan(data_dir)
    key = cache.key("image-folder", (image_size, train.stamps, test.root.name, test.stamps))
    limit = limit if limit is not None else int(available_memory() * _MEMORY_SHARE)
    entry = cache.find(key, verify=verify)
    if entry is not None and verify and not entry.arrays and entry.facts["bytes"] <= limit:
        cache.discard(key)  # made when there was less memory
        entry = None
    if entry is None:
        entry = _build(key, train, test, image_size, limit)
    facts, arrays = entry.facts, entry.arrays
    height, width = facts["size"]
    return Dataset(
        name,
        train.classes,
        _split(train, arrays.get("train")),
        _split(test, arrays.get("test")),
        tuple(facts["mean"]),
        tuple(facts["std"]),
        (3, int(height), int(width)),
    )


def _split(listed: FolderSplit, images: np.ndarray | None) -> Split:
    return Split(np.asarray(listed.labels, dtype=np.int64), images, listed.files if images is None else None)


def _build(key: str, train: FolderSplit, test: FolderSplit, image_size: int | None, limit: int) -> cache.Entry:
    """A new entry: the decoded images or, above `limit` bytes, only facts about them."""
    if image_size is not None:
        size = (image_size, image_size)
    else:
        size = probe_size((*train.files, *test.files)) or (MIXED_SIZE, MIXED_SIZE)
    total = (len(train.labels) + len(test.labels)) * size[0] * size[1] * 3
    facts = {"size": size, "bytes": total}
    with cache.begin(key, total if total <= limit else 0) as draft:
        # Without a cache each rank would keep a copy of its own.
        if total > limit or (draft.folder is None and total > limit // 8):
            _say(
                f"{train.root.parent}: {total / 1e9:.1f} GB when decoded, too large to keep; images are read from files"
            )
            mean, std = _sampled_statistics(train.files, size)
            return draft.commit({**facts, "mean": mean, "std": std})
        count, where = len(train.labels) + len(test.labels), draft.folder.parent if draft.folder else "memory"
        _say(f"decoding {count:,} images, this once, into {where} ({total / 1e6:.0f} MB)")
        for part, split in (("train", train), ("test", test)):
            out = draft.create(part, (len(split.labels), *size, 3), np.uint8)
            decode_files(split.files, out, progress=_Percent(f"{part}/", len(split.labels)))
        mean, std = channel_statistics(draft.array("train"))
        return draft.commit({**facts, "mean": mean, "std": std})


def _sampled_statistics(files: tuple[str, ...], size: tuple[int, int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of some of the images, evenly spread."""
    sample = files[:: -(-len(files) // _SAMPLE)]
    with cache.Draft("sample", None) as scratch:
        images = scratch.create("sample", (len(sample), *size, 3), np.uint8)
        decode_files(sample, images)
        return channel_statistics(images)


class _Percent:
    """Progress on a terminal; silent elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total

    def __call__(self, done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done >= self.total else ""
            print(f"\r  {self.name} {100 * done // self.total}%", end=end, file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
