"""A user's own photos, from the weights of an earlier run: one command, a validation split, the right card.

With --whole 3,000 of the size of a small phone's; else 2,000 small ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from ddp_train import evaluate, predict
from ddp_train.evaluation.saved_model import open_saved_model

CLASSES = ("ground", "horizon", "sky")
"""Where an upright photo is bright: below, in the middle, above."""
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By EXIF orientation, how the camera stores what is upright."""
OPTIONS = "--model resnet18 --width-mult 0.0625 --device cpu --amp off --no-tensorboard"


def take_photos(folder: Path, count: int, side: int) -> None:
    """JPEGs of mixed sizes and all orientations, of which two are broken."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        place = number % 3
        height, width = generator.integers(side, 2 * side, 2).tolist()
        rows = np.linspace(0, 1, height)[:, None, None]
        bright = np.exp(-20 * (rows - (1 - place / 2)) ** 2) * generator.uniform(120, 190, 3)
        pixels = bright + generator.uniform(0, 60, 3) + generator.normal(0, 15, (height, width, 1))
        image, exif = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.Exif()
        exif[274] = orientation = number // 3 % 8 + 1
        image = image.transpose(STORED[orientation]) if orientation in STORED else image
        image.save(folder / CLASSES[place] / f"IMG_{number:04d}.jpg", quality=85, exif=exif)
    for number in (30, count // 2):
        file = folder / CLASSES[number % 3] / f"IMG_{number:04d}.jpg"
        file.write_bytes(file.read_bytes()[: 300 if number == 30 else 0])


def test_photos_from_the_weights_of_an_earlier_run(
    trainer: Callable[..., Any], tmp_path: Path, pytestconfig: pytest.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    count, side = (3000, 400) if pytestconfig.getoption("--whole") else (2000, 20)
    photos, first, run = tmp_path / "photos", tmp_path / "first", tmp_path / "run"
    earlier = trainer(
        *f"{OPTIONS} --dataset synthetic --synthetic-samples 200 --epochs 1".split(), "--out-dir", str(first)
    )
    assert earlier.returncode == 0, earlier.stderr
    take_photos(photos, count, side)
    words = f"{OPTIONS} --epochs 3 --val-split 0.2 --image-size 32 --resize 36 --on-bad-sample skip"
    done = trainer(*words.split(), "--weights", str(first), "--data-dir", str(photos), "--out-dir", str(run))
    assert done.returncode == 0, done.stderr
    assert "2 bad images are left out" in done.stderr and "IMG_0030.jpg" in done.stderr
    assert "but for its last layer" in done.stderr and "(10 classes there, 3 here)" in done.stderr

    history = json.loads((run / "training_history.json").read_text())
    best, held_out = history["best"]["val_accuracy"], round((count - 2) * 0.2)
    assert best > 0.95, "by what is stored, without its orientation, it would be a third"
    card = (run / "model_card.md").read_text()
    assert "## Results on the validation split" in card and f"{best:.2%}" in card
    assert f"{count - 2 - held_out:,} for training, {held_out:,} for validation" in card

    capfd.readouterr()
    assert evaluate.main(["--checkpoint", str(run), "--device", "cpu", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["samples"] == held_out and found["top1"] == pytest.approx(best)

    files = [file for file in sorted(photos.glob("*/*.jpg"))[:: count // 100] if file.stat().st_size > 300]
    facts = json.loads((run / "dataset.json").read_text())
    steps = transforms.Compose(
        [
            ImageOps.exif_transpose,
            transforms.Resize(36),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(facts["mean"], facts["std"]),
        ]
    )
    network = open_saved_model(str(run), torch.device("cpu")).network
    with torch.no_grad():
        expected = network(torch.stack([steps(Image.open(file)) for file in files])).softmax(1)
    right = expected.argmax(1) == torch.tensor([CLASSES.index(file.parent.name) for file in files])
    assert right.double().mean() > 0.9
    assert predict.main([str(run), *map(str, files), "--device", "cpu", "--json"]) == 0
    for row, wanted in zip(json.loads(capfd.readouterr().out)["images"], expected, strict=True):
        for guess in row["predictions"]:
            assert guess["probability"] == pytest.approx(wanted[CLASSES.index(guess["class"])].item(), abs=0.02)
