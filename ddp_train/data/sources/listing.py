"""The files of an image folder: train/<class>/*, test/<class>/* and val/<class>/*, or <class>/* alone.

Every file is either listed or counted as skipped.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ddp_core.errors import UserError
from ddp_train.config.data_formats import other_format

SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".gif", ".webp", ".avif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga"),
    )
)
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
"""The names of the folders of each split, in any letter case."""
_NOT_CLASSES = frozenset(("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information"))
_SHOWN = 6
_OUTSIDE = "images outside of a class folder"

Skipped = Counter[str]
"""The number of skipped files and folders by kind."""


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """The images of a split, sorted by class and name.

    part: train, test or val. names: relative to root. stamps: int64 [N, 3], of each file its size in bytes, mtime in
    ns and inode. unreadable: reason by name, for what is not a regular file (such as a link that leads nowhere).
    """

    root: Path
    part: str
    classes: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    stamps: np.ndarray
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of all images."""
        return tuple(f"{self.root}{os.sep}{name}" for name in self.names)

    def without(self, left_out: Collection[str]) -> FolderSplit:
        """The same without the files of these names."""
        if not left_out:
            return self
        kept = np.array([name not in left_out for name in self.names], dtype=bool)
        names = tuple(name for name in self.names if name not in left_out)
        return replace(self, labels=self.labels[kept], names=names, stamps=self.stamps[kept], unreadable={})


@dataclass(frozen=True, eq=False)
class Listed:
    """The splits of an image folder, and lines for the user. test is val/ where there is no test/; val is None then."""

    train: FolderSplit | None
    test: FolderSplit | None
    val: FolderSplit | None = None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, FolderSplit]:
        """The existing splits by purpose."""
        splits = {"train": self.train, "test": self.test, "val": self.val}
        return {name: split for name, split in splits.items() if split is not None}


def find_splits(data_dir: Path) -> dict[str, Path]:
    """The existing folders by part. Beside train/, a folder of images without class folders is none: their classes are
    not known. Errors: UserError where a part has several, or a folder cannot be read."""
    found = _split_folders(data_dir)
    if "train" not in found:
        return found
    return {part: path for part, path in found.items() if part == "train" or not _is_flat(path)}


def _split_folders(data_dir: Path) -> dict[str, Path]:
    """The folders with a split's name, by part. Errors: as find_splits()."""
    try:
        with os.scandir(data_dir) as entries:
            folders = sorted(entry.name for entry in entries if _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"--data-dir {data_dir}: cannot be read ({error.strerror})") from error
    found: dict[str, Path] = {}
    for part, names in SPLITS.items():
        of_part = [name for name in folders if name.lower() in names]
        if len(of_part) > 1:
            raise UserError(f"--data-dir {data_dir}: {of_part[0]}/ and {of_part[1]}/ are both {part} images; keep one")
        if of_part:
            found[part] = data_dir / of_part[0]
    return found


def _is_flat(root: Path) -> bool:
    """Whether a folder has images, but no class folders. Errors: UserError if unreadable."""
    skipped: Skipped = Counter()
    return not class_names(root, skipped) and skipped[_OUTSIDE] > 0


def has_image_folder(data_dir: Path) -> bool:
    """Whether there is a folder `train`."""
    return "train" in find_splits(data_dir)


def class_folders(root: Path) -> tuple[str, ...]:
    """The subfolders, if each has images directly in it, as in a data folder without train/; otherwise ()."""
    if find_splits(root):
        return ()
    try:
        names = class_names(root)
        return names if all(any(_is_image(file.name) for file in (root / name).iterdir()) for name in names) else ()
    except (OSError, UserError):
        return ()


def scan(data_dir: Path, *, to_evaluate: bool = False, divided: bool = False) -> Listed:
    """List the images of all splits. Errors: UserError for a missing or empty folder, for a class without images or one
    that train/ lacks, and for folders that cannot be read.

    to_evaluate: the test images alone, for which test/ is enough, or a folder of classes. divided: the training images
    will be divided by --val-split, for which train/ is enough, or a folder of classes.
    """
    found = find_splits(data_dir)
    flat = [path for part, path in _split_folders(data_dir).items() if part not in found]
    parts = {path: part for part, path in found.items()}
    if not found and (to_evaluate or divided) and class_folders(data_dir):
        found = {"train": data_dir}
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if to_evaluate:
        test = found.get("test") or (found.get("train") if divided or not parts else None)
        if test is None:
            raise UserError(f"--data-dir {data_dir}: has neither test/ nor val/ to evaluate on{_but_flat(flat)}")
        found = {"test": test}
    elif "train" not in found:
        instead = other_data(data_dir)
        but = f", but {instead}" if instead else ""
        raise UserError(f"--data-dir {data_dir}: no folder train/<class>/ with images in it{but}")
    elif "test" not in found and not divided:
        hint = f" (--val-split 0.1 keeps a part of train/ for that){_but_flat(flat)}"
        raise UserError(f"--data-dir {data_dir}: has train/, but neither test/ nor val/ to evaluate on{hint}")
    skipped: Skipped = Counter()
    splits: dict[str, FolderSplit] = {}
    notes = [f"{path} is not evaluated: no class folders with images in it" for path in flat]
    for path in flat:
        class_names(path, skipped)
    for name in (name for name in ("train", "test", "val") if name in found):
        trained = splits["train"].classes if "train" in splits else None
        part = parts.get(found[name], name)
        splits[name] = _scan_split(found[name], part, skipped, trained, notes, to_evaluate=to_evaluate)
    first = next(iter(splits.values()))
    notes = [*_notes(data_dir, first, skipped), *notes]
    return Listed(splits.get("train"), splits.get("test"), splits.get("val"), tuple(notes))


def _but_flat(folders: Sequence[Path]) -> str:
    """The end of a message where folders of splits have images without class folders; empty without such folders."""
    return "".join(f"; {path.name}/ has no class folders with images in it" for path in folders)


def files_below(folder: str) -> list[str]:
    """The images in a folder and its subfolders. Errors: UserError where there are none, or they cannot be read."""
    root = Path(folder)
    try:
        names = [name for name, *_ in _images(root, ".", {}, Counter(), _above(root))]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not names:
        raise UserError(f"{folder}: no images in this folder ({' '.join(sorted(SUFFIXES))})")
    return [os.path.normpath(f"{folder}/{name}") for name in names]


def other_data(data_dir: Path) -> str | None:
    """What a folder has instead of train/<class>/, and how to fix it, as text that follows its name."""
    classes = class_folders(data_dir)
    in_table = len(classes) == 1 and any(map(other_format, data_dir.iterdir()))  # images/ beside a table of labels
    if classes and not in_table:
        named = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        return f"folders of images ({named}): --val-split 0.1 keeps a part of each for validation"
    try:
        with os.scandir(data_dir) as entries:
            below = sorted(entry.name for entry in entries if _is_folder(entry))
        if deeper := next((name for name in below if _may_be_meant(data_dir / name)), None):
            return f"one in {deeper}/: --data-dir {data_dir / deeper}"
        files = sorted(file for name in ("", *below) for file in (data_dir / name).iterdir() if not file.is_dir())
    except OSError:
        return None
    return next(filter(None, map(other_format, files)), None) or _misplaced(data_dir, below, files)


def _misplaced(data_dir: Path, below: Sequence[str], files: Sequence[Path]) -> str | None:
    """How a folder's images miss the layout, as text; None without images. files: in it and in the folders `below`."""
    holding = {file.parent for file in files if _is_image(file.name) and not _is_other_folder(file.parent.name)}
    way = "move the class folders into train/"
    if not holding:
        halves = [path.name for path in _split_folders(data_dir).values() if class_folders(path)]
        return f"class folders in {halves[0]}/ alone: {way}" if halves else None
    if data_dir in holding:
        return "images in no class folder: move each into train/<class>/"
    named = sorted(path.name for path in holding)
    empty = [name for name in below if name not in named and not _is_other_folder(name)]
    which = f"images in {', '.join(named[:3])}{', ...' if named[3:] else ''}"
    if empty:
        return f"{which}, and none directly in {empty[0]}: {way}"
    return f"{which}: {way}"


def _may_be_meant(folder: Path) -> bool:
    """Whether a subfolder is an image folder; one that cannot be read (lost+found) is none."""
    try:
        return has_image_folder(folder)
    except UserError:
        return False


def _notes(data_dir: Path, first: FolderSplit, skipped: Skipped) -> list[str]:
    """Notes on skipped files, and on a single class."""
    notes = []
    if skipped:
        kinds = skipped.most_common(_SHOWN)
        named = ", ".join(f"{what} ({count:,})" for what, count in kinds) + (", ..." if len(skipped) > _SHOWN else "")
        count = f"{skipped.total():,} files and folders are" if skipped.total() > 1 else "1 file or folder is"
        notes.append(f"{data_dir}: {count} skipped: {named}")
    if len(first.classes) == 1:
        note = f"{first.root} has a single class, {first.classes[0]}: there is nothing to tell apart"
        below = sorted({name.split("/")[1] for name in first.names if name.count("/") > 1})
        if len(below) > 1:
            note += f"; it holds folders ({', '.join(below[:3])}{', ...' if below[3:] else ''}): are the data one "
            note += "folder too deep?"
        notes.append(note)
    return notes


def class_names(root: Path, skipped: Skipped | None = None) -> tuple[str, ...]:
    """The class folders of a split, sorted; all else is counted in `skipped`. Errors: UserError if unreadable."""
    skipped = Counter() if skipped is None else skipped
    names = []
    try:
        above = _above(root)
        with os.scandir(root) as entries:
            for entry in entries:
                if not _is_folder(entry):
                    skipped[_OUTSIDE if _is_image(entry.name) else _kind(entry.name)] += 1
                elif _is_other_folder(entry.name):
                    skipped[f"{entry.name}/"] += 1
                elif entry.is_symlink() and _identity(entry.stat()) in above:
                    skipped["links to a folder above them"] += 1
                else:
                    names.append(entry.name)
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from error
    return tuple(sorted(names))


def _scan_split(
    root: Path,
    part: str,
    skipped: Skipped,
    trained: tuple[str, ...] | None,
    notes: list[str],
    *,
    to_evaluate: bool = False,
) -> FolderSplit:
    """List one split. trained: the classes of train/, for a split beside it; a note names those that it lacks.

    to_evaluate: a class folder without images is no class.
    """
    counts: dict[str, int] = {}
    stamps: list[tuple[str, int, int, int]] = []
    unreadable: dict[str, str] = {}
    empty: list[str] = []
    try:
        here = class_names(root, skipped)
        classes = trained or here
        if foreign := [name for name in here if name not in classes]:
            odd = ", ".join(sorted(set(classes) ^ set(here))[:_SHOWN])
            differ = f"train/ and {root.name}/ differ in their classes ({odd})"
            raise UserError(f"--data-dir {root.parent}: {differ}: train/ has no images of {_some(foreign)}")
        for name in here:
            before = skipped.copy()
            seen = {*_above(root), _identity((root / name).stat())}
            found = sorted(_images(root, name, unreadable, skipped, seen))
            if not found and (trained is not None or to_evaluate):
                empty.append(name)
            elif not found:
                others = ", ".join(f"{what} ({count:,})" for what, count in (skipped - before).items())
                accepted = f"{' '.join(sorted(SUFFIXES))}{f'; instead there are {others}' if others else ''}"
                raise UserError(f"{root / name}: no images in this class folder ({accepted})")
            else:
                counts[name] = len(found)
            stamps += found
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if not stamps:
        raise UserError(f"{root}: no class folders with images in it")
    if to_evaluate:
        classes = tuple(name for name in classes if name not in empty)
    if lacking := [name for name in classes if name not in here or name in empty]:
        notes.append(lacks(root, lacking))
    names = tuple(stamp[0] for stamp in stamps)
    facts = np.array([stamp[1:] for stamp in stamps], dtype=np.int64)
    labels = np.repeat([classes.index(name) for name in counts], list(counts.values()))
    return FolderSplit(root, part, classes, labels.astype(np.int64), names, facts, unreadable)


def _images(
    root: Path, relative: str, unreadable: dict[str, str], skipped: Skipped, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, int, int, int]]:
    """(name relative to root, size, mtime in ns, inode) of the images below a folder.

    seen: folders that were or are being read, and are not read again: links may form a cycle.
    """
    with os.scandir(root / relative) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{relative}/{entry.name}"
        if _is_folder(entry):
            if _is_other_folder(entry.name):
                skipped[f"{entry.name}/"] += 1
            elif (identity := _identity(entry.stat())) in seen:
                skipped["links to a folder that is read already"] += 1
            else:
                seen.add(identity)
                yield from _images(root, name, unreadable, skipped, seen)
        elif not _is_image(entry.name):
            skipped[_kind(entry.name)] += 1
        else:
            try:
                facts = entry.stat()
                if not stat.S_ISREG(facts.st_mode):
                    unreadable[name] = "is not a regular file"
                yield name, facts.st_size, facts.st_mtime_ns, facts.st_ino
            except OSError as error:
                unreadable[name] = f"cannot be read ({error.strerror})"
                yield name, 0, 0, 0


def lacks(root: Path, classes: Sequence[str]) -> str:
    """A line for the user on classes without images in a held-out split."""
    return f"{root} has no images of {_some(classes)}: its accuracy is that of the other classes"


def _some(names: Sequence[str]) -> str:
    """The first class names, and the number of others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'class' if len(names) == 1 else 'the classes'} {', '.join(names[:_SHOWN])}{more}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder. Links are followed; a link that leads nowhere, or to itself, is not a folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_other_folder(name: str) -> bool:
    """Whether a folder is the system's or a program's own, not the user's images."""
    return name.startswith(".") or name.lower() in _NOT_CLASSES


def _is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (slow)


def _kind(name: str) -> str:
    """The suffix of a skipped file, for a note."""
    if name.startswith("."):
        return "hidden files"
    return os.path.splitext(name)[1].lower() or "files without suffix"  # noqa: PTH122 (slow)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    """Device and inode of a file."""
    return facts.st_dev, facts.st_ino


def _above(root: Path) -> set[tuple[int, int]]:
    """The identities of a folder and its parents."""
    real = root.resolve()
    return {_identity(folder.stat()) for folder in (real, *real.parents)}
