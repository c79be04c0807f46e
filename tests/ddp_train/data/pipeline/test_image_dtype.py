"""Images in the type that autocast casts them to: the same bits, and only where nothing else looks at them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data import load
from ddp_train.data.pipeline.build import create_augmentation
from ddp_train.models import create_model
from ddp_train.models.trial import only_convolves
from tests.ddp_train.techniques import runs

SHAPE, CPU = (3, 32, 32), torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_they_are_rounded_once(dtype: torch.dtype, channels_last: bool) -> None:
    dataset = load("synthetic", DataOptions(dataset="synthetic", synthetic_samples=16))
    augmentation = create_augmentation(dataset, AugmentOptions(augment="heavy"), 0, "cpu", channels_last=channels_last)
    pixels, samples = torch.from_numpy(dataset.train.images), torch.arange(16)
    full = augmentation(pixels, samples, 3), augmentation.normalise(pixels)
    augmentation.dtype = dtype
    for given, wanted in zip((augmentation(pixels, samples, 3), augmentation.normalise(pixels)), full, strict=True):
        assert given.dtype == dtype and torch.equal(given, wanted.to(dtype)) and given.stride() == wanted.stride()


def test_a_run_is_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("cast before", "cast in the layer"):
        run = runs.make("--amp bf16 --augment balanced --ema 0.9", tmp_path / name, runs.STATEFUL)
        before = next(iter(run.trainer.components.pipeline.evaluate())).images.dtype
        assert before == (torch.bfloat16 if name == "cast before" else torch.float32)
        run.trainer.fit()
        found.append((runs.weights(run), runs.rows_of_history(run)))
        monkeypatch.setattr("ddp_train.assemble.build.deliver_as_cast", lambda *_: None)
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize(
    "options", ["--amp off", "--amp bf16 --mixup 0.5", "--amp bf16 --technique tests.ddp_train.techniques.own:smoother"]
)
def test_whoever_looks_at_them_gets_float32(options: str, tmp_path: Path) -> None:
    run = runs.make(options, tmp_path / "run", runs.PLAIN)
    assert run.trainer.components.pipeline.image_dtype == torch.float32


class Twice(nn.Module):
    """Convolves the images, and adds them to what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[0] == len(images)
        return (self.convolution(images) + images).mean((2, 3))


class Typed(nn.Conv2d):
    """Looks at the type."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (2 if images.dtype == torch.float32 else 1)


class Noisy(nn.Conv2d):
    """Augments the images in training."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + torch.randn_like(images) if self.training else images)


def test_what_a_network_does_with_its_images_is_found() -> None:
    for name in ("small", "power", "residual", "resnet18", "speedrun", "vit"):
        assert only_convolves(create_model(name, num_classes=10), SHAPE, CPU), name
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    normed = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    for network in (Twice(), Typed(3, 4, 3), Noisy(3, 4, 3), flat, normed):
        assert not only_convolves(network, SHAPE, CPU), network
