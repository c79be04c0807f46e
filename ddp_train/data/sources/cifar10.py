"""CIFAR-10 (Krizhevsky 2009): torchvision's files or an image folder, and the download.

torchvision is imported only for the first reading of its files and for the download: the import takes seconds.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ddp_core.errors import UserError
from ddp_core.files import is_file, is_folder
from ddp_train.data.sources import cache
from ddp_train.data.sources.decode import fit
from ddp_train.data.sources.listing import class_names, find_splits, has_image_folder
from ddp_train.data.sources.pixels import RULES
from ddp_train.data.sources.samples import Dataset, Split, channel_statistics

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
"""The URL that torchvision uses (a test compares them)."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TORCHVISION_FOLDER = "cifar-10-batches-py"
_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_PROBE_SECONDS = 4.0
_STALL_SECONDS = 30.0
SIDE = 32


def has_torchvision_folder(data_dir: Path) -> bool:
    """Whether torchvision's unpacked CIFAR-10 is there."""
    return is_folder(data_dir / TORCHVISION_FOLDER)


def missing_file(data_dir: Path) -> Path | None:
    """The first of torchvision's files that is missing from its folder; None without the folder."""
    folder = data_dir / TORCHVISION_FOLDER
    return next((folder / name for name in _FILES if is_folder(folder) and not is_file(folder / name)), None)


def use_torchvision_files(data_dir: Path) -> bool:
    """Whether to read torchvision's files; where they are incomplete, an image folder is used instead."""
    lacking = missing_file(data_dir) is not None
    return has_torchvision_folder(data_dir) and not (lacking and has_image_folder(data_dir))


def check_image_folder(data_dir: Path) -> None:
    """Check for CIFAR-10 as an image folder in data_dir. Errors: UserError."""
    if not has_image_folder(data_dir):
        raise UserError(f"--dataset cifar10: not in {data_dir}; {how_to_get(data_dir)}")
    if (found := len(class_names(find_splits(data_dir)["train"]))) != len(CLASSES):
        raise UserError(
            f"--dataset cifar10: the image folder {data_dir} has {found} classes, not 10; "
            "for any image folder: --dataset folder"
        )


def how_to_get(data_dir: Path) -> str:
    """Advice for a message where CIFAR-10 is missing."""
    layouts = f"{TORCHVISION_FOLDER}/, or with train/<class>/ and test/<class>/"
    return f"unpack {URL} into {data_dir}, or point --data-dir at a folder with {layouts}"


def load_torchvision(
    data_dir: Path, *, image_size: int | None = None, resize: int | None = None, verify: bool = False
) -> Dataset:
    """CIFAR-10 from cifar-10-batches-py in data_dir. Errors: UserError naming a missing or damaged file."""
    side, stamps = image_size or SIDE, list[object]()
    for name in _FILES:
        path = data_dir / TORCHVISION_FOLDER / name
        try:
            facts = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        stamps.append((name, facts.st_size, facts.st_mtime_ns, facts.st_ino))
    scaled = side != SIDE or resize is not None
    key = cache.key("cifar-10-batches-py", (side, stamps, *((RULES, resize) if scaled else ())))
    entry = cache.find(key, verify=verify)
    if entry is None:
        entry = _build(key, data_dir, side, resize)
    arrays, about = entry.arrays, entry.facts
    train = Split(arrays["train_labels"], arrays["train"])
    test = Split(arrays["test_labels"], arrays["test"])
    classes, mean, std = (tuple(about[name]) for name in ("classes", "mean", "std"))
    more: dict[str, Any] = {"content": about["content"], "resize": resize}
    return Dataset("cifar10", classes, train, test, mean, std, (3, side, side), **more)


def _build(key: str, data_dir: Path, side: int, resize: int | None) -> cache.Entry:
    """Verify the checksums of torchvision's pickles, and copy the images into a cache entry."""
    from PIL import Image
    from torchvision.datasets import CIFAR10

    _check_sums(data_dir / TORCHVISION_FOLDER)
    parts = {part: CIFAR10(str(data_dir), train=part == "train") for part in ("train", "test")}
    with cache.begin(key, sum(len(data.data) for data in parts.values()) * side * side * 3) as draft:
        for part, data in parts.items():
            draft.put(f"{part}_labels", np.asarray(data.targets, dtype=np.int64))
            out = draft.create(part, (len(data.data), side, side, 3), np.uint8)
            if side == SIDE and resize is None:
                out[...] = data.data
            else:
                for row, image in enumerate(data.data):  # one by one: all of them may be larger than the memory
                    out[row] = fit(Image.fromarray(image), (side, side), resize)
            if part == "train":
                mean, std = channel_statistics(out)
        # The checksums matched the original's, so only one content is possible.
        facts = {
            "classes": list(parts["train"].classes),
            "mean": mean,
            "std": std,
            "content": f"cifar-10 {side}{f' of {resize}' if resize else ''}",
        }
        return draft.commit(facts)


def _check_sums(folder: Path) -> None:
    """Compare checksums before anything is unpickled. Errors: UserError naming the first file that differs."""
    from torchvision.datasets import CIFAR10

    listed = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    for name, expected in listed:
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if found != expected:
            sums = f"MD5 {found}, the original has {expected}"
            raise UserError(f"{folder / name}: damaged ({sums}); delete it and {how_to_get(folder.parent)}")


def has_archive(data_dir: Path) -> bool:
    """Whether the whole archive is in data_dir, so that download() unpacks it and needs no network."""
    archive = data_dir / URL.rpartition("/")[2]
    if is_file(archive):
        from torchvision.datasets import CIFAR10

        with suppress(OSError), archive.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == CIFAR10.tgz_md5
    return False


def unreachable(url: str = URL, seconds: float = _PROBE_SECONDS) -> str | None:
    """Why a download cannot start, briefly, or None; answers within `seconds`, name resolution included."""
    answers: list[str | None] = []

    def ask() -> None:
        """Send a HEAD request and append the answer: None if reachable, else the reason."""
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310  # https alone
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
                answers.append(None)
        except urllib.error.HTTPError as error:
            knows_head = error.code not in (405, 501)
            answers.append(f"HTTP status {error.code}" if knows_head else None)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            answers.append(str(getattr(reason, "strerror", None) or reason))

    # In a thread, since name resolution has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no answer within {seconds:g} s"


def download(data_dir: Path, kind: str = "CIFAR10") -> str | None:
    """Download torchvision's dataset `kind` into data_dir, with its progress and checksum. Returns why it failed, or
    None.

    Errors: UserError when the folder cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        what = "CIFAR-10" if kind == "CIFAR10" else kind
        raise UserError(f"--data-dir {data_dir}: {what} cannot be downloaded there ({error.strerror})") from error
    from torchvision import datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)  # torchvision waits forever on a silent connection
    try:
        for split in ({"split": "train"}, {"split": "test"}) if kind == "SVHN" else ({},):
            getattr(datasets, kind)(str(data_dir), download=True, **split)
    except (OSError, RuntimeError, EOFError) as error:
        return f"the download failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    finally:
        socket.setdefaulttimeout(before)
    return None
