"""The files of an image folder, train/<class>/* and test/<class>/* (or val/): names, labels and stamps."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddp_core.errors import UserError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".avif")
)


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """The images of train/ or test/, sorted by class and name.

    names: relative to root. stamps: int64 [N, 3], of each file its size in bytes, mtime in ns and inode.
    unreadable: why, by name, for names without a file (a link that leads nowhere).
    """

    root: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    stamps: np.ndarray
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """The name of its folder: train, test or val."""
        return self.root.name

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.root}{os.sep}{name}" for name in self.names)

    def without(self, left_out: Collection[str]) -> FolderSplit:
        """The same but for the files of these names."""
        if not left_out:
            return self
        kept = np.array([name not in left_out for name in self.names], dtype=bool)
        names = tuple(name for name in self.names if name not in left_out)
        return FolderSplit(self.root, self.classes, self.labels[kept], names, self.stamps[kept])


Listed = tuple[FolderSplit, FolderSplit]
"""The training and the test images."""


def has_image_folder(data_dir: Path) -> bool:
    return (data_dir / "train").is_dir()


def scan(data_dir: Path) -> Listed:
    """List the training and the test images. Errors: UserError for a missing or empty folder or class, for
    classes that differ between the two, and for folders that cannot be read."""
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
    labels: list[int] = []
    stamps: list[tuple[str, int, int, int]] = []
    unreadable: dict[str, str] = {}
    try:
        classes = class_names(root)
        for label, name in enumerate(classes):
            found = sorted(_images(root, name, unreadable))
            if not found:
                raise UserError(f"{root / name}: no images in this class folder ({' '.join(sorted(SUFFIXES))})")
            labels += [label] * len(found)
            stamps += found
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not classes:
        raise UserError(f"{root}: no class folders with images in it")
    names = tuple(stamp[0] for stamp in stamps)
    facts = np.array([stamp[1:] for stamp in stamps], dtype=np.int64)
    return FolderSplit(root, classes, np.asarray(labels, dtype=np.int64), names, facts, unreadable)


def _images(root: Path, relative: str, unreadable: dict[str, str]) -> Iterator[tuple[str, int, int, int]]:
    """(name relative to root, size, mtime in ns, inode) of the images below a folder."""
    with os.scandir(root / relative) as entries:
        for entry in entries:
            name = f"{relative}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 (a Path for each file is slow)
                try:
                    facts = entry.stat()
                    yield name, facts.st_size, facts.st_mtime_ns, facts.st_ino
                except OSError as error:
                    unreadable[name] = f"cannot be read ({error.strerror})"
                    yield name, 0, 0, 0
            elif entry.is_dir(follow_symlinks=False):
                yield from _images(root, name, unreadable)
