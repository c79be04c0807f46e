"""CIFAR-100, MNIST, Fashion-MNIST and SVHN from files in torchvision's forms, written by the test."""

from __future__ import annotations

import hashlib
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import DataOptions
from ddp_train.data.sources import torchvision_files

datasets = pytest.importorskip("torchvision.datasets")

Parts = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images [N, H, W, C] and labels by split."""
NAMES = {
    "cifar100": ((32, 32, 3), 100),
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "svhn": ((32, 32, 3), 10),
}


def write_idx(folder: Path, parts: Parts) -> None:
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = parts[part]
        head = struct.pack(">IIII", 0x803, *images.shape[:3])
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, len(labels)) + bytes(labels.tolist())
        )


def write_cifar100(folder: Path, parts: Parts, patch: pytest.MonkeyPatch) -> None:
    contents = {"meta": {"fine_label_names": [f"class {i}" for i in range(100)]}}
    for part, (images, labels) in parts.items():
        contents[part] = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "fine_labels": labels.tolist()}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    patch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    patch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    patch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})


def write_svhn(folder: Path, parts: Parts, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    listed = {}
    for part, (images, labels) in parts.items():
        path = folder / f"{part}_32x32.mat"
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        listed[part] = ["http://127.0.0.1/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    patch.setattr(datasets.SVHN, "split_list", listed)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Parts]:
    """write(name) makes the files of a dataset in tmp_path; what they hold."""

    def make(name: str) -> Parts:
        (height, width, channels), classes = NAMES[name]
        random = np.random.default_rng(0)
        parts = {
            part: (random.integers(0, 256, (count, height, width, channels), np.uint8), np.arange(count) % classes)
            for part, count in (("train", 30), ("test", 20))
        }
        folder = tmp_path / torchvision_files.SOURCES[name].folder
        folder.mkdir(parents=True, exist_ok=True)
        if name == "cifar100":
            write_cifar100(folder, parts, monkeypatch)
        elif name == "svhn":
            write_svhn(folder, parts, monkeypatch)
        else:
            write_idx(folder, parts)
        return parts

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_by_name_holds_what_its_files_hold(
    name: str, tmp_path: Path, write: Callable[[str], Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write(name)
    options = DataOptions(dataset=name, data_dir=str(tmp_path))  # type: ignore[arg-type]
    assert data.resolve(options) == (name, None)
    data.prepare(name, options)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # the decoded copy needs none
    found = data.load(name, options)
    (height, width, channels), classes = NAMES[name]
    assert found.image_shape == (channels, height, width) and len(found.classes) == classes
    assert found.flip_ok == (name in ("cifar100", "fashion_mnist"))
    for split, (images, labels) in ((found.train, parts["train"]), (found.test, parts["test"])):
        assert np.array_equal(split.images, images) and np.array_equal(split.labels, labels)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.mean, parts["train"][0].reshape(-1, channels).mean(0) / 255)


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_other_sizes_are_scaled(name: str, tmp_path: Path, write: Callable[[str], Parts]) -> None:
    write(name)
    found = data.load(name, DataOptions(dataset=name, data_dir=str(tmp_path), image_size=16))  # type: ignore[arg-type]
    assert found.image_shape == (NAMES[name][0][2], 16, 16) and found.train.images is not None
    assert found.train.images.shape == (30, 16, 16, NAMES[name][0][2])


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_scaled_images_are_not_held_in_memory(name: str, tmp_path: Path, write: Callable[[str], Parts]) -> None:
    write(name)
    options = DataOptions(dataset=name, data_dir=str(tmp_path), image_size=1024)  # type: ignore[arg-type]
    tracemalloc.start()
    found = data.load(name, options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.train.images is not None and peak < found.train.images.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_and_cannot_be_downloaded_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = replace(torchvision_files.SOURCES[name], url="http://127.0.0.1:9/")
    monkeypatch.setitem(torchvision_files.SOURCES, name, closed)
    with pytest.raises(UserError, match=rf"--dataset {name}: .* is missing, and cannot be downloaded \(.*refused"):
        data.resolve(DataOptions(dataset=name, data_dir=str(tmp_path)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_one_line(name: str, tmp_path: Path, write: Callable[[str], Parts]) -> None:
    write(name)
    source = torchvision_files.SOURCES[name]
    path = tmp_path / source.folder / source.files[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"--dataset {name}: the files in .* are damaged") as caught:
        data.load(name, DataOptions(dataset=name, data_dir=str(tmp_path)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_labels_and_images_of_other_counts_are_damaged(tmp_path: Path, write: Callable[[str], Parts]) -> None:
    parts = write("mnist")
    write_idx(tmp_path / "MNIST/raw", {**parts, "test": (parts["test"][0], parts["test"][1][:-1])})
    with pytest.raises(UserError, match="do not fit together"):
        data.load("mnist", DataOptions(dataset="mnist", data_dir=str(tmp_path)))
