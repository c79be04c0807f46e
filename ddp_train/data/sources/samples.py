"""The trainer's view of a dataset: its splits, facts about them, and the samples that cannot be used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddp_core.errors import UserError
from ddp_train.data.sources.pixels import Levels, Reading

SCHEMA = "ddp-train-dataset/1"
Padding = Literal["zero", "reflect"]
Policy = Literal["stop", "skip"]
_UNREAD = "unread"
_CACHE_KEY = re.compile("[0-9a-f]{32}")
"""The content of image folders in the files of earlier releases, which cannot be compared with that of today."""
LARGEST_FRACTION = 0.001
"""Largest share of bad images in a split that may be left out; more of them are a sign of another problem."""
_COUNTED = 1 << 20  # pixels counted at a time: numpy's bincount copies them as 8 bytes each


@dataclass(frozen=True, order=True)
class BadSample:
    """A file of a split that is left out, or ends the run. index: in the split as it was listed."""

    part: str
    index: int
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} (image {self.index} of {self.part}) {self.reason}"


def content_of(listed: Iterable[object], digests: np.ndarray) -> str:
    """Identity of a folder's images. listed: its splits, classes, file names and sizes; digests: SHA-256 of the files,
    uint8 [N, 32], zeros where a file has not been read.

    Two hashes: of all this, or "unread" where a digest is unknown, and of `listed` alone.
    """
    names = hashlib.sha256("\0".join(map(repr, listed)).encode(errors="surrogateescape"))
    whole = hashlib.sha256(names.digest() + digests.tobytes()).hexdigest()[:32]
    return f"{whole if digests.any(axis=1).all() else _UNREAD}:{names.hexdigest()[:32]}"


def is_read(content: str | None) -> bool:
    """Whether an identity covers what is in the files, not only their names and sizes."""
    return content is not None and not content.startswith(_UNREAD)


def same_content(one: str | None, other: str | None) -> bool:
    """Whether two identities may be those of the same data: what is in the files counts where both have read them."""
    if one is None or other is None or (is_read(one) and is_read(other)):
        return one == other
    return one.rpartition(":")[2] == other.rpartition(":")[2]


def largest_number(policy: Policy, total: int) -> int:
    """How many of a split's `total` samples may be left out."""
    return int(total * LARGEST_FRACTION) if policy == "skip" else 0


def refuse(bad: Sequence[BadSample], policy: Policy, totals: dict[str, int]) -> None:
    """Errors: UserError, one line naming the first bad sample, where a split has too many. totals: samples by part."""
    for part, total in totals.items():
        here = sorted(sample for sample in bad if sample.part == part)
        if len(here) <= largest_number(policy, total):
            continue
        others = f"; so are {len(here) - 1} more" if len(here) > 1 else ""
        if policy == "skip":
            share = f"{len(here):,} of the {total:,} images of {part} are bad, more than {LARGEST_FRACTION:.1%}"
            raise UserError(f"--on-bad-sample skip: {share}; the first: {here[0]}")
        share = f"{LARGEST_FRACTION:.1%} of a split"
        remedy = f"--on-bad-sample skip leaves up to {share} out"
        if len(here) > (most := largest_number("skip", total)):
            what = "" if "--changed-data" in here[0].reason else f"replace or remove {'them' if others else 'it'}: "
            remedy = f"{what}more than --on-bad-sample may leave out ({share}, here {most})"
        raise UserError(f"{here[0]}{others}; {remedy}")


@dataclass(frozen=True, eq=False)
class Split:
    """labels: int64 [N]; images: uint8 [N, H, W, C], perhaps memory-mapped, or None where they are only in files."""

    labels: np.ndarray
    images: np.ndarray | None = None
    files: tuple[str, ...] | None = None
    """Image files that are decoded on demand, where the decoded images are too large to keep."""
    stamps: np.ndarray | None = None
    """int64 [N, 3]: size, mtime in ns and inode of each of `files`, which must not change during a run."""
    reading: Reading = field(default_factory=Reading)
    """How `files` are read."""
    rows: np.ndarray | None = None
    """int64 [N]: this split's rows of the images or files, where another split has the others; None: all."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Decoded images of the split, which has them: uint8 [n, H, W, C]."""
        assert self.images is not None
        return np.asarray(self.images[chosen if self.rows is None else self.rows[chosen]])

    def row(self, index: int) -> int:
        """The row of a sample in `files` and `stamps`."""
        return index if self.rows is None else int(self.rows[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset. mean and std: per channel of the training images, scaled to [0, 1].

    val: images of val/ where there is a test/ beside it.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split | None
    """None where a run has no test images and uses its validation split instead."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    flip_ok: bool = True
    """Whether a mirrored image is still of its class (a mirrored digit is not)."""
    padding: Padding = "reflect"
    """What a shifted image shows beyond its border."""
    largest_shift: int | None = None
    """Pixels by which augmentation may shift an image (None: an eighth of its shorter side)."""
    content: str | None = None
    """Identity of the images, their order and their labels (see same_content); None for data that are not files."""
    left_out: tuple[BadSample, ...] = ()
    """Files that are left out of the splits, since they cannot be used."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    on_bad_sample: Policy = "stop"
    """How to handle images that turn out bad while they are read."""
    val: Split | None = None
    """The validation split: where there is one, epochs are evaluated on it and the test split is kept for the end."""
    levels: Mapping[str, Levels] = field(default_factory=dict)
    """Black and white of images of more than 8 bits, by kind of number (see pixels.py)."""
    resize: int | None = None
    """Pixels of the shorter side to which images are scaled before the centre is cut out (see decode.fit)."""
    class_weights: tuple[float, ...] | None = None
    """Weights in the training loss, whose mean over the training images is 1; None: all images count alike."""
    other_ranks_read_files: bool = False
    """Whether images that are decoded here are only in files on another rank, which has less memory."""

    @property
    def reads_files(self) -> bool:
        """Whether any rank reads images from files during the run: then all ranks agree on those that are bad."""
        return self.other_ranks_read_files or any(
            split.files is not None for split in (self.train, *self.held_out.values())
        )

    @property
    def held_out(self) -> dict[str, Split]:
        """The splits that are not trained on, by name."""
        both = {"val": self.val, "test": self.test}
        return {name: split for name, split in both.items() if split is not None}

    @property
    def selection(self) -> str:
        """The split that each epoch is evaluated on, and chosen by."""
        return "test" if self.val is None else "val"

    @property
    def final(self) -> str:
        """The split on which the best model is examined at the end."""
        return "val" if self.test is None else "test"


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of uint8 [N, H, W, C] scaled to [0, 1]; exact, by histograms.

    The deviation is at least one grey level, so that images of a single colour can be divided by it.
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    at_a_time = max(1, _COUNTED // (images.shape[1] * images.shape[2]))
    for channel in range(images.shape[3]):
        histogram = np.zeros(256, dtype=np.int64)
        for first in range(0, len(images), at_a_time):
            chunk = images[first : first + at_a_time, :, :, channel]
            histogram += np.bincount(chunk.ravel(), minlength=256)
        share = histogram / histogram.sum()
        mean = float(share @ levels)
        means.append(mean)
        deviations.append(max(float(np.sqrt(share @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(deviations)


def dataset_in_memory(name: str, classes: tuple[str, ...], train: Split, test: Split, **further: Any) -> Dataset:
    """A dataset of decoded images; mean, deviation and shape are those of the training images."""
    assert train.images is not None
    _, height, width, channels = train.images.shape
    mean, std = channel_statistics(train.images)
    return Dataset(name, classes, train, test, mean, std, (channels, height, width), **further)


@dataclass(frozen=True)
class DatasetFacts:
    """As in `Dataset`: mean and std per channel of images scaled to [0, 1]; image_shape is channels, height, width."""

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip_ok: bool
    train_samples: int
    test_samples: int
    """0 where the validation split was used instead."""
    val_samples: int = 0
    """0 where there was no validation split."""
    content: str | None = None
    """As in `Dataset`."""
    left_out: tuple[str, ...] = ()
    """Files that cannot be used, each with the reason."""
    levels: Mapping[str, Levels] = field(default_factory=dict)
    """As in `Dataset`."""
    resize: int | None = None
    """As in `Dataset`."""

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetFacts:
        """The facts of a loaded dataset."""
        same = ("name", "classes", "image_shape", "mean", "std", "flip_ok", "content", "levels", "resize")
        return cls(
            **{name: getattr(dataset, name) for name in same},
            train_samples=len(dataset.train),
            test_samples=0 if dataset.test is None else len(dataset.test),
            val_samples=0 if dataset.val is None else len(dataset.val),
            left_out=tuple(str(sample) for sample in dataset.left_out),
        )

    def refuse_other_data(self, dataset: Dataset) -> None:
        """Errors: UserError where `dataset` is not the one that these facts of the resumed run describe."""
        if None in (self.content, dataset.content):
            return
        if _CACHE_KEY.fullmatch(self.content or ""):
            now = sum(map(len, (dataset.train, *dataset.held_out.values())))
            then = self.train_samples + self.val_samples + self.test_samples
            same = (self.classes, then) == (dataset.classes, now)
        else:
            same = same_content(self.content, dataset.content) and self.levels == dataset.levels
        if not same:
            raise UserError(
                f"--resume: the images of {dataset.name} are not those that the run was trained on "
                f"({self.train_samples:,} then, {len(dataset.train):,} now); if this is expected: --changed-data accept"
            )

    def dump(self) -> str:
        """The facts as JSON text for a file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> DatasetFacts:
        """The facts in a file. Errors: UserError, one line naming it, when it is missing or not of this form."""
        try:
            document: dict[str, Any] = json.loads(Path(path).read_bytes())
            if document.pop("schema") != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            document |= {name: tuple(document[name]) for name in ("classes", "image_shape", "mean", "std")}
            document["left_out"] = tuple(document.get("left_out", ()))
            document["levels"] = {kind: (float(a), float(b)) for kind, (a, b) in document.get("levels", {}).items()}
            facts = cls(**document)
            if not (len(facts.image_shape) == 3 and len(facts.mean) == len(facts.std) == facts.image_shape[0]):
                raise ValueError("image_shape, mean and std do not fit together")
            if not (facts.resize is None or (type(facts.resize) is int and facts.resize >= max(facts.image_shape[1:]))):
                raise ValueError("resize is not a side that is larger than the images")
            if not all(-math.inf < black < white < math.inf for black, white in facts.levels.values()):
                raise ValueError("levels are not black and white")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} does not describe a dataset: {' '.join(str(error).split())}") from error
        return facts
