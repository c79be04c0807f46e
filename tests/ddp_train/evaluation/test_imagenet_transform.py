"""`--resize`, `--image-size` and `--normalize imagenet` against torchvision's transforms, in every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ddp_train import evaluate, export, predict
from ddp_train.config.parse import parse
from ddp_train.config.recommend import recommend_for_data
from ddp_train.data.sources.decode import fit, read_image
from ddp_train.data.sources.pixels import Reading
from ddp_train.evaluation.saved_model import open_saved_model

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (max(1, height // 5), max(1, width // 5), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(300, 300), (301, 500), (777, 260), (256, 256), (256, 400), (90, 121), (640, 1203)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (29, 24), (24, 24)])
def test_it_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], resize: int, crop: int) -> None:
    image = noise(*size)
    steps = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    difference = np.abs(fit(image, (crop, crop), resize).astype(int) - np.asarray(steps(image)))
    assert difference.max() <= 1


def test_a_large_photo_is_as_torchvision_reads_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    noise(1200, 1600).save(tmp_path / "a.jpg", quality=95, exif=exif)
    found = read_image(tmp_path / "a.jpg", (224, 224), Reading(resize=256)).astype(int)
    with Image.open(tmp_path / "a.jpg") as image:
        upright = image.transpose(Image.Transpose.ROTATE_270)
    steps = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert np.abs(found - np.asarray(steps(upright))).max() <= 1
    narrow = read_image_of(tmp_path / "b.png", Image.new("RGB", (1, 60000), (255, 0, 0)))
    assert narrow.shape == (224, 224, 3) and (narrow == (255, 0, 0)).all()


def read_image_of(path: Path, image: Image.Image) -> np.ndarray:
    image.save(path)
    return read_image(path, (224, 224), Reading(resize=256))


def test_all_commands_see_what_torchvisions_transforms_give(
    trainer: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for part, count in (("train", 6), ("test", 4)):
        for label in range(3):
            (data / part / str(label)).mkdir(parents=True)
            for at in range(count):
                size = (40 + 7 * at, 70 - 5 * label)
                noise(*size, seed=100 * label + at).save(data / part / str(label) / f"{at}.png")
    options = "--model resnet18 --width-mult 0.0625 --epochs 1 --batch-size 9 --device cpu --no-tensorboard --amp off"
    options += " --image-size 24 --resize 29 --normalize imagenet"
    done = trainer(*options.split(), "--data-dir", str(data), "--out-dir", str(run))
    assert done.returncode == 0, done.stderr
    facts = json.loads((run / "dataset.json").read_text())
    assert (facts["mean"], facts["std"], facts["resize"], facts["image_shape"]) == (MEAN, STD, 29, [3, 24, 24])
    assert "scaled to 29" in (run / "model_card.md").read_text()

    steps = transforms.Compose(
        [transforms.Resize(29), transforms.CenterCrop(24), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    network = open_saved_model(str(run), torch.device("cpu")).network
    files = sorted((data / "test").glob("*/*.png"))
    with torch.no_grad():
        expected = network(torch.stack([steps(Image.open(file)) for file in files])).softmax(1)
    right = (expected.argmax(1) == torch.tensor([int(file.parent.name) for file in files])).double().mean().item()
    best = json.loads((run / "training_history.json").read_text())["best"]["test_accuracy"]
    capfd.readouterr()
    assert evaluate.main(["--checkpoint", str(run), "--device", "cpu", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["top1"] == pytest.approx(right) == pytest.approx(best)
    assert predict.main([str(run), *map(str, files), "--json", "--device", "cpu"]) == 0
    for row, wanted in zip(json.loads(capfd.readouterr().out)["images"], expected, strict=True):
        for guess in row["predictions"]:
            assert guess["probability"] == pytest.approx(wanted[int(guess["class"])].item(), abs=2e-3)
    assert export.main([str(run), "-o", str(tmp_path / "model.pt2")]) == 0
    extra = {"dataset.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["dataset.json"])["resize"] == 29


@pytest.mark.parametrize(
    ("words", "normalize"),
    [
        ("--model resnet18", "data"),
        ("--model resnet34 --weights imagenet", "imagenet"),
        ("--model resnet34 --weights imagenet --normalize data", "data"),
        ("--normalize imagenet", "imagenet"),
    ],
)
def test_imagenets_weights_are_given_imagenets_normalisation(words: str, normalize: str) -> None:
    wanted = parse(words.split())
    found = {r.name: r.value for r in recommend_for_data("folder", 1000, 128, wanted)}
    assert found.get("normalize", wanted.data.normalize) == normalize


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resize 256", "--resize needs --image-size"),
        ("--resize 200 --image-size 224", "--resize is smaller than --image-size: the crop would be larger"),
        ("--normalize imagenet --dataset digits", "--normalize imagenet: is for RGB; the images of digits have 1"),
        ("--mean 0.5", "unknown option --mean, did you mean --normalize?"),
    ],
)
def test_mistakes_are_one_line(trainer: Callable[..., Any], words: str, message: str) -> None:
    done = trainer(*words.split(), "--epochs", "1", "--device", "cpu")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
