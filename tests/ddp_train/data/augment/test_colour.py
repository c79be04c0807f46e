"""Colour operations on batches against torchvision's functions, image by image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddp_train.data.augment import colour

COUNT = 24


def images(channels: int = 3, size: tuple[int, int] = (20, 28)) -> Tensor:
    """Noise, gradients, planes of one colour, and images of few levels: uint8 [n, H, W, C]."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (COUNT, *size, channels), dtype=torch.uint8, generator=generator)
    made[8:12] = made[8:12, :1, :1]
    made[12:16] = made[12:16] // 64 * 10 + 100
    made[16:20] = torch.linspace(0, 255, size[1]).to(torch.uint8)[:, None]
    made[20:24] = made[20:24] // 4 + 60
    return made


def one_by_one(function: Callable[..., Tensor], batch: Tensor, *values: Tensor) -> Tensor:
    """torchvision's function on each image as [C, H, W], with its own value of each kind."""
    results = [
        function(image.permute(2, 0, 1), *(value[i].item() for value in values)) for i, image in enumerate(batch)
    ]
    return torch.stack(results).permute(0, 2, 3, 1)


def assert_close(ours: Tensor, expected: Tensor, *, levels: int, share: float) -> None:
    """At most so many grey levels apart, and that at no more than a share of the values."""
    difference = (ours.int() - expected.int()).abs()
    assert ours.dtype == torch.uint8 and ours.shape == expected.shape
    assert int(difference.max()) <= levels, f"{int(difference.max())} levels"
    assert float((difference > 0).float().mean()) <= share, f"{float((difference > 0).float().mean()):.2%} differ"


FACTORS = torch.linspace(0, 2.2, COUNT)
CASES = {
    "brightness": ("adjust_brightness", FACTORS, 1, 0.001),
    "contrast": ("adjust_contrast", FACTORS, 1, 0.01),
    "saturation": ("adjust_saturation", FACTORS, 1, 0.01),
    "sharpness": ("adjust_sharpness", FACTORS, 1, 0.01),
    "hue": ("adjust_hue", torch.linspace(-0.5, 0.5, COUNT), 1, 0.6),  # torchvision rounds down, ours to the nearest
    "solarize": ("solarize", torch.linspace(0, 255, COUNT), 0, 0.0),
    "posterize": ("posterize", torch.arange(COUNT) % 9, 0, 0.0),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", CASES)
def test_is_torchvisions(name: str, channels: int) -> None:
    from torchvision.transforms.v2 import functional

    other, values, levels, share = CASES[name]
    batch = images(channels)
    expected = one_by_one(getattr(functional, other), batch, values)
    assert_close(getattr(colour, name)(batch.clone(), values), expected, levels=levels, share=share)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["autocontrast", "equalize", "invert"])
def test_is_torchvisions_without_a_magnitude(name: str, channels: int) -> None:
    from torchvision.transforms.v2 import functional

    batch = images(channels)
    expected = one_by_one(getattr(functional, name), batch)
    assert_close(getattr(colour, name)(batch.clone()), expected, levels=0, share=0.0)


def test_grayscale_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    batch = images()
    expected = one_by_one(lambda image: functional.rgb_to_grayscale(image, num_output_channels=3), batch)
    assert_close(colour.grayscale(batch), expected, levels=1, share=0.01)


def test_the_neutral_magnitude_changes_nothing() -> None:
    batch, ones = images(), torch.ones(COUNT)
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        assert torch.equal(getattr(colour, name)(batch.clone(), ones), batch), name
    assert torch.equal(colour.hue(batch, torch.zeros(COUNT)), batch)
    assert torch.equal(colour.posterize(batch, torch.full((COUNT,), 8)), batch)


def test_small_images_are_not_sharpened() -> None:
    batch = images(size=(2, 9))
    assert torch.equal(colour.sharpness(batch, torch.zeros(COUNT)), batch)
