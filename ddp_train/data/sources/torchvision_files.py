"""Datasets by name from the files that torchvision keeps of them: CIFAR-100, MNIST, Fashion-MNIST and SVHN.

torchvision is imported only to read its files for the first time, and to download: the import takes seconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp_core.errors import UserError
from ddp_core.files import is_file
from ddp_train.data.sources import cache, cifar10
from ddp_train.data.sources.decode import fit
from ddp_train.data.sources.pixels import RULES
from ddp_train.data.sources.samples import Dataset, Padding, Split, channel_statistics

_IDX = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


@dataclass(frozen=True)
class Source:
    """kind: torchvision's class. files: below the data folder; `archives` are what torchvision makes them from."""

    kind: str
    folder: str
    files: tuple[str, ...]
    archives: tuple[str, ...]
    url: str
    flip_ok: bool = True
    padding: Padding = "zero"


SOURCES = {
    "cifar100": Source(
        "CIFAR100",
        "cifar-100-python",
        ("train", "test", "meta"),
        ("../cifar-100-python.tar.gz",),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        padding="reflect",
    ),
    "mnist": Source(
        "MNIST",
        "MNIST/raw",
        _IDX,
        tuple(f"{name}.gz" for name in _IDX),
        "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
        flip_ok=False,
    ),
    "fashion_mnist": Source(
        "FashionMNIST",
        "FashionMNIST/raw",
        _IDX,
        tuple(f"{name}.gz" for name in _IDX),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
    ),
    "svhn": Source(
        "SVHN",
        ".",
        ("train_32x32.mat", "test_32x32.mat"),
        (),
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        flip_ok=False,
        padding="reflect",
    ),
}


def missing_file(name: str, data_dir: Path) -> Path | None:
    """The first missing file of a dataset; None where all are there."""
    source = SOURCES[name]
    paths = (data_dir / source.folder / file for file in source.files)
    return next((path for path in paths if not is_file(path)), None)


def ensure(name: str, data_dir: Path) -> str | None:
    """Download a dataset if it is not in the data folder; returns a line on that. Errors: UserError if it fails."""
    missing = missing_file(name, data_dir)
    if missing is None:
        return None
    source = SOURCES[name]
    archived = any(is_file(data_dir / source.folder / archive) for archive in source.archives)
    reason = None if archived else cifar10.unreachable(source.url)
    if reason is None:
        reason = cifar10.download(data_dir, source.kind)
    if reason is not None:
        remedy = f"put torchvision's files ({', '.join(source.files)}) into {missing.parent}, from {source.url}"
        raise UserError(f"--dataset {name}: {missing} is missing, and cannot be downloaded ({reason}); {remedy}")
    return f"{name} is now in {data_dir / source.folder}"


def load(
    name: str, data_dir: Path, image_size: int | None = None, resize: int | None = None, *, verify: bool = False
) -> Dataset:
    """A dataset of SOURCES, at its own size or scaled. Errors: UserError naming a missing file or damaged ones."""
    source = SOURCES[name]
    if (missing := missing_file(name, data_dir)) is not None:
        raise UserError(f"--dataset {name}: {missing} is missing")
    stamps = [(f.st_size, f.st_mtime_ns) for f in ((data_dir / source.folder / file).stat() for file in source.files)]
    key = cache.key(name, (image_size, resize, RULES, str(data_dir.resolve()), stamps))
    entry = cache.find(key, verify=verify)
    if entry is None:
        entry = _build(key, name, data_dir, image_size, resize)
    arrays, facts = entry.arrays, entry.facts
    classes, mean, std, shape = (tuple(facts[what]) for what in ("classes", "mean", "std", "shape"))
    train, test = (Split(arrays[f"{part}_labels"], arrays[part]) for part in ("train", "test"))
    about: dict[str, Any] = {"content": facts["content"], "flip_ok": source.flip_ok, "padding": source.padding}
    about["resize"] = resize
    return Dataset(name, classes, train, test, mean, std, (shape[0], shape[1], shape[2]), **about)


def _build(key: str, name: str, data_dir: Path, image_size: int | None, resize: int | None) -> cache.Entry:
    """Copy torchvision's images and labels into a cache entry."""
    parts = {part: _read(name, data_dir, train=part == "train") for part in ("train", "test")}
    classes = parts["train"][2]
    content = hashlib.sha256()
    images = parts["train"][0]
    image = images[0].size if image_size is None else image_size**2 * images.shape[-1]
    with cache.begin(key, image * sum(len(images) for images, _, _ in parts.values())) as draft:
        for part, (images, labels, _) in parts.items():
            draft.put(f"{part}_labels", labels)
            size = images.shape[1:3] if image_size is None else (image_size, image_size)
            out = draft.create(part, (len(images), *size, images.shape[3]), np.uint8)
            if image_size is None:
                out[...] = images
            else:
                _scale(images, out, resize)
            content.update(out.data)
            content.update(labels.data)
            if part == "train":
                mean, std = channel_statistics(out)
        _, height, width, channels = out.shape
        facts = {"classes": classes, "mean": mean, "std": std, "shape": (channels, height, width)}
        return draft.commit({**facts, "content": f"{name} {content.hexdigest()[:32]}"})


def _read(name: str, data_dir: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """uint8 images [N, H, W, C], int64 labels [N] and class names. torchvision unpickles only files with the
    right checksum. Errors: UserError."""
    from torchvision import datasets

    kind = getattr(datasets, SOURCES[name].kind)
    which = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    try:
        data = kind(str(data_dir), **which)
        images, labels = np.asarray(data.data), np.asarray(getattr(data, "targets", getattr(data, "labels", None)))
        images = images[..., None] if images.ndim == 3 else images
        images = images.transpose(0, 2, 3, 1) if name == "svhn" else images
        classes = [str(each) for each in getattr(data, "classes", range(10))]
        known = len(images) and 0 <= labels.min() <= labels.max() < len(classes)
        if images.dtype != np.uint8 or len(images) != len(labels) or not known:
            raise ValueError("images and labels do not fit together")
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        folder = data_dir / SOURCES[name].folder
        raise UserError(f"--dataset {name}: the files in {folder} are damaged ({reason}); delete them") from error
    return images, labels.astype(np.int64), classes


def _scale(images: np.ndarray, out: np.ndarray, resize: int | None) -> None:
    """Scale images uint8 [n, height, width, channels] to the size of `out`, one by one: all of them may be larger than
    the memory."""
    from PIL import Image

    grey = images.shape[3] == 1
    for row, one in enumerate(images):
        scaled = fit(Image.fromarray(one[..., 0] if grey else one), (out.shape[1], out.shape[2]), resize)
        out[row] = scaled[..., None] if grey else scaled
