"""The validation split: drawn by class and seed, kept apart from training and from the test split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddp_core.errors import UserError
from ddp_train.assemble import build
from ddp_train.checkpoint.progress import Progress, why_not_resumed
from ddp_train.config.options import AugmentOptions, DataOptions, to_dict
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.build import build_pipeline
from ddp_train.data.sources.builtin import load_digits
from ddp_train.data.sources.dataset import load_on_ranks
from ddp_train.data.sources.samples import Dataset, DatasetFacts
from ddp_train.data.sources.validation import split_off
from ddp_train.distributed.process_group import Ranks
from ddp_train.evaluation.saved_model import SavedModel, load_split, open_saved_model


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3])
def test_each_class_gives_its_share(share: float) -> None:
    whole = load_digits()
    parted = split_off(whole, share, seed=3)
    assert parted.val is not None and parted.train.rows is not None and parted.val.rows is not None
    assert sorted([*parted.train.rows, *parted.val.rows]) == list(range(len(whole.train)))
    assert len(parted.val) == round(len(whole.train) * share)
    counts, taken = np.bincount(whole.train.labels), np.bincount(parted.val.labels)
    assert (np.abs(taken - counts * share) < 1).all()
    for part in (parted.train, parted.val):
        assert (part.labels == whole.train.labels[part.rows]).all()
    again, other = split_off(whole, share, seed=3), split_off(whole, share, seed=4)
    assert again.val is not None and other.val is not None
    assert (again.val.rows == parted.val.rows).all() and (other.val.rows != parted.val.rows).any()


@pytest.mark.parametrize("kind", ["resident", "loader"])
@pytest.mark.parametrize("augment", ["none", "balanced"])  # without and with a padded copy of the images
def test_every_image_is_in_the_split_that_it_belongs_to(kind: Any, augment: Any) -> None:
    parted = split_off(load_digits(), 0.2, seed=0)
    options = DataOptions(dataset="digits", pipeline=kind, num_workers=0)
    seen: dict[str, list[tuple[int, bytes]]] = {"train": [], "val": [], "test": []}
    for rank in (0, 1):
        pipeline = build_pipeline(
            parted,
            options,
            AugmentOptions(augment=augment, flip="off"),
            world_size=2,
            rank=rank,
            device=torch.device("cpu"),
            global_batch=128,
            accumulate=1,
            seed=0,
        )
        assert pipeline.selection == "val"
        batches = {"val": list(pipeline.evaluate()), "test": list(pipeline.evaluate("test"))}
        batches["train"] = [batch for window in pipeline.train(0) for batch in window.batches]
        for name, found in batches.items():
            seen[name] += [
                (int(label), image.numpy().tobytes())
                for batch in found
                for label, image in zip(batch.labels, batch.images, strict=True)
            ]
    assert [len(seen[name]) for name in seen] == [len(parted.train), len(parted.held_out["val"]), 359]
    mean, std = parted.mean[0], parted.std[0]
    for name in ("val", "test") if augment != "none" else seen:
        split = parted.train if name == "train" else parted.held_out[name]
        images = ((split.take(slice(None)).astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        labels = sorted(int(label) for label in split.labels)
        assert sorted(label for label, _ in seen[name]) == labels
        pixels = sorted(float(np.frombuffer(data, np.float32).sum()) for _, data in seen[name])
        assert np.allclose(pixels, sorted(float(image.sum()) for image in images), atol=1e-2)


def test_mistakes() -> None:
    whole = load_digits()
    with pytest.raises(UserError, match="has a validation split already"):
        split_off(split_off(whole, 0.5, 0), 0.5, 0)
    few = replace(whole, train=replace(whole.train, labels=whole.train.labels[:12], images=whole.train.images[:12]))
    with pytest.raises(UserError, match=r"leaves no training image of class '|that is none"):
        split_off(few, 0.9, 0)
    with pytest.raises(UserError, match="of 12 training images that is none"):
        split_off(few, 0.01, 0)


def accuracy(network: torch.nn.Module, dataset: Dataset, name: str) -> float:
    """In plain torch, one image at a time."""
    split = dataset.train if name == "train" else dataset.held_out[name]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    hits = 0
    with torch.no_grad():
        for image, label in zip(split.take(slice(None)), split.labels, strict=True):
            pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
            hits += int(network(pixels[None]).argmax()) == label
    return hits / len(split)


def test_the_run_chooses_by_it_and_examines_the_test_split_once(
    trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracies of the run are those of an evaluation in plain torch; the test images have no part in the run."""
    options = "--device cpu --dataset digits --epochs 3 --val-split 0.2 --early-stopping 5 --seed 7 --no-tensorboard"

    def run(name: str) -> tuple[dict[str, Any], Path]:
        folder = tmp_path / name
        done = trainer(*options.split(), "--out-dir", str(folder))
        assert done.returncode == 0, done.stderr
        assert "val loss" in done.stderr and "best val accuracy" in done.stderr
        history: dict[str, Any] = json.loads((folder / "training_history.json").read_text())
        return history, folder

    history, folder = run("run")
    best = history["best"]
    assert best["val_accuracy"] == max(epoch["val_accuracy"] for epoch in history["epochs"])
    saved = open_saved_model(str(folder), torch.device("cpu"))
    parted = split_off(load_digits(), 0.2, seed=7)
    assert accuracy(saved.network, parted, "val") == pytest.approx(best["val_accuracy"])
    assert history["examination"]["split"] == "test"
    assert accuracy(saved.network, parted, "test") == pytest.approx(history["examination"]["top1"])
    card = (folder / "model_card.md").read_text()
    assert "chosen by the accuracy on the validation split" in card and "## Results on the test split" in card
    assert "1,150 for training, 288 for validation, 359 for testing" in card

    from ddp_train.data.sources import dataset as sources

    def other_test_images() -> Dataset:
        digits = load_digits()
        assert digits.test is not None
        return replace(digits, test=replace(digits.test, labels=digits.test.labels[::-1].copy()))

    monkeypatch.setattr(sources, "load_digits", other_test_images)
    other, _ = run("other")
    timeless = [{key: value for key, value in epoch.items() if "second" not in key} for epoch in history["epochs"]]
    assert timeless == [{k: v for k, v in epoch.items() if "second" not in k} for epoch in other["epochs"]]
    assert other["examination"]["top1"] < 0.5


@pytest.mark.parametrize("layout", ["train/", ""])
def test_a_folder_without_test_images(
    layout: str, trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright and dark images, in train/ alone or in folders of classes: the validation split has the last word."""
    for name, level in (("dark", 40), ("light", 210)):
        folder = tmp_path / "data" / layout / name
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (16, 16), (level + number,) * 3).save(folder / f"{number}.png")
    options = ["--device", "cpu", "--data-dir", str(tmp_path / "data"), "--epochs", "2", "--no-tensorboard"]
    refused = trainer(*options, "--out-dir", str(tmp_path / "none"))
    assert refused.returncode == 2 and "--val-split 0.1 keeps a part of" in refused.stderr
    done = trainer(*options, "--val-split", "0.25", "--batch-size", "6", "--out-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run" / "training_history.json").read_text())
    assert history["best"]["val_accuracy"] == history["examination"]["top1"]
    assert history["examination"]["split"] == "val" and history["examination"]["samples"] == 6
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "## Results on the validation split" in card and "18 for training, 6 for validation" in card


def images(folder: Path, layout: str, count: int) -> Path:
    """Two classes of `count` images each, every one of another level."""
    for place, name in enumerate(("dark", "light")):
        (folder / layout / name).mkdir(parents=True)
        for number in range(count):
            level = 100 * place + number
            Image.new("RGB", (8, 8), (level,) * 3).save(folder / layout / name / f"{number}.png")
    return folder


def divided(folder: Path, name: str = "folder") -> tuple[SavedModel, Dataset]:
    """A run that took a quarter of the images for validation, and its data."""
    config = parse(["--data-dir", str(folder), "--val-split", "0.25", "--seed", "5"])
    dataset = split_off(load_on_ranks("folder", config.data, Ranks()), 0.25, seed=5)
    facts = replace(DatasetFacts.of(dataset), name=name)
    return SavedModel(folder, torch.nn.Identity(), config, facts, torch.device("cpu")), dataset


@pytest.mark.parametrize("layout", ["train", ""])
@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_evaluate_takes_only_the_images_that_the_run_kept_for_validation(
    layout: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "data", layout, 12)
    saved, dataset = divided(folder, name)
    assert dataset.val is not None
    shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for place in (None, str(folder), "data", str(tmp_path / "moved"), "moved"):
        found = load_split(saved, place, Ranks())
        assert found.final == "val" and found.val is not None and found.test is None
        assert np.array_equal(found.val.take(slice(None)), dataset.val.take(slice(None)))
    other = load_split(saved, str(images(tmp_path / "new", "test", 12)), Ranks())
    assert other.final == "test" and other.test is not None and len(other.test) == 24


@pytest.mark.parametrize("layout", ["train", ""])
def test_evaluate_refuses_images_that_the_run_did_not_divide(layout: str, tmp_path: Path) -> None:
    folder = images(tmp_path / "data", layout, 12)
    saved, _ = divided(folder)
    Image.new("RGB", (8, 8)).save(folder / layout / "dark" / "new.png")
    with pytest.raises(UserError, match="has 25 images, the run divided 24: its validation images cannot be told from"):
        load_split(saved, None, Ranks())
    other = images(tmp_path / "other", "", 5)  # folders of classes elsewhere are other images
    found = load_split(saved, str(other), Ranks())
    assert found.final == "test" and found.test is not None and len(found.test) == 10


@pytest.mark.parametrize("changed", ["--seed 6", "--val-split 0.3"])
def test_a_resumed_run_keeps_its_validation_images(changed: str) -> None:
    """Drawn anew, they would be images that were trained on."""
    words = ["--val-split", "0.25", "--seed", "5"]
    then, now = ({"config": to_dict(parse([*words, *more]))} for more in ([], changed.split()))
    assert why_not_resumed(then, then, Progress(epoch=1)) is None
    why = why_not_resumed(then, now, Progress(epoch=1))
    assert why is not None and why.startswith("its --val-split and --seed were 0.25 and 5, those of this run are 0.")
    accepted = {"config": to_dict(parse([*words, *changed.split(), "--changed-data", "accept"]))}
    assert why_not_resumed(then, accepted, Progress(epoch=1)) is None
    without = {"config": to_dict(parse(["--seed", "6"]))}
    assert why_not_resumed({"config": to_dict(parse(["--seed", "5"]))}, without, Progress(epoch=1)) is None


def test_a_note_says_that_the_validation_images_of_changed_data_are_drawn_anew(tmp_path: Path) -> None:
    saver: Any = SimpleNamespace(restore=lambda source: (Progress(epoch=1), ("continues",)))
    for words, expected in (([], 1), (["--changed-data", "accept"], 2)):
        resolved = parse(["--val-split", "0.25", *words])
        folder: Any = SimpleNamespace()
        _, notes = build._resume(tmp_path / "checkpoint-latest.pt", saver, folder, load_digits(), resolved, Ranks())
        assert len(notes) == expected
    assert "drawn anew and may include images that were trained on" in notes[1]
