"""Classes that only the stored form of their images tells apart: trained, evaluated and predicted by the programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from ddp_train import evaluate, predict
from ddp_train.main import main

SIDE = 16


def shallow(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Sees the mean colours of 4 x 4 fields."""
    channels = image_shape[0]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 32), nn.ReLU(), nn.Linear(32, num_classes)
    )


def save_one(folder: Path, number: int, random: np.random.Generator) -> None:
    """One image of each class."""

    def path(label: str, suffix: str) -> Path:
        file = folder / label / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def deep(least: int) -> Image.Image:  # 12 bits in 16
        return Image.fromarray(random.integers(least, least + 200, (SIDE, SIDE)).astype(np.uint16))

    deep(900).save(path("dark", "png"))
    deep(2900).save(path("bright", "tif"))
    for label, alpha in (("clear", 0), ("solid", 255)):
        pixels = random.integers(0, 20, (SIDE, SIDE, 4), np.uint8)
        pixels[..., 3] = alpha
        Image.fromarray(pixels).save(path(label, "png"))
    for label, orientation in (("up", 1), ("down", 3)):
        pixels = random.integers(0, 40, (SIDE, SIDE, 3), np.uint8)
        pixels[: SIDE // 2, :, 0] += 200
        pixels[SIDE // 2 :, :, 2] += 200
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(path(label, "jpg"), exif=exif, quality=95)


@pytest.mark.timeout(120)
def test_what_the_stored_form_says_is_learnt_and_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(tmp_path / "cache"))
    random, data, run = np.random.default_rng(0), tmp_path / "data", tmp_path / "run"
    for number in range(30):
        save_one(data, number, random)
    options = "--epochs 20 --batch-size 30 --device cpu --augment none --lr 0.05 --no-tensorboard --no-examine"
    options += f" --model {__name__}:shallow --val-split 0.2"
    assert main([*options.split(), "--data-dir", str(data), "--out-dir", str(run)]) == 0
    best = json.loads((run / "training_history.json").read_text())["best"]
    assert best["val_accuracy"] == 1.0
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(run), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out  # the images that were held out, and no other
    assert "on the val split of folder: 36 images" in shown and "top-1    100.00%" in shown
    save_one(tmp_path / "new" / "test", 0, random)
    (tmp_path / "new" / "test" / "up" / "notes.txt").write_text("")
    files = sorted(str(file) for file in (tmp_path / "new").rglob("0.*"))
    assert predict.main([str(run), *files, "--json", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    for row in rows:
        assert row["predictions"][0]["class"] == Path(row["image"]).parent.name
    assert predict.main([str(run), str(tmp_path / "new"), "--json", "--device", "cpu"]) == 0  # the folder of them
    assert json.loads(capsys.readouterr().out)["images"] == rows
    words = ["--checkpoint", str(run), "--device", "cpu", "--json", "--data-dir"]
    assert evaluate.main([*words, str(tmp_path / "new")]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["top1"] == 1.0 and json.loads(shown.out)["samples"] == 6
    assert "1 file or folder is skipped: .txt (1)" in shown.err
    shutil.copytree(tmp_path / "new" / "test", tmp_path / "few", ignore=shutil.ignore_patterns("down"))
    assert (
        evaluate.main([*words, str(tmp_path / "few")]) == 0
    )  # some of the classes are enough, and no test/ around them
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == 1.0 and found["samples"] == 5 and len(found["per_class"]) == 6
