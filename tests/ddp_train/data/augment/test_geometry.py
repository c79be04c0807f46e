"""Geometric operations on batches against torchvision's functions, image by image."""

import math

import pytest
import torch
from torch import Tensor

from ddp_train.data.augment import geometry

IDENTITY: geometry.Map = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def images(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (6, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def through(maps: list[geometry.Map], batch: Tensor, mode: str) -> Tensor:
    return geometry.affine(batch, torch.tensor(maps), mode)  # type: ignore[arg-type]


def share_that_differs(ours: Tensor, expected: list[Tensor], levels: int = 0) -> float:
    """Values more than so many grey levels apart."""
    assert ours.dtype == torch.uint8
    difference = (ours.permute(0, 3, 1, 2).int() - torch.stack(expected).int()).abs()
    return float((difference > levels).float().mean())


@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotation_is_torchvisions(mode: str, size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import functional

    batch, angles = images(size), [-135.0, -30.0, -3.0, 0.0, 17.0, 91.0]
    expected = [
        functional.rotate(image.permute(2, 0, 1), angle, interpolation=functional.InterpolationMode(mode))
        for image, angle in zip(batch, angles, strict=True)
    ]
    ours = through([geometry.rotation(angle) for angle in angles], batch, mode)
    # In between two pixels the last bit of a coordinate decides.
    assert share_that_differs(ours, expected, levels=0 if mode == "nearest" else 1) < 0.002


@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_shear_is_torchvisions(axis: str, size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import functional

    batch, slopes = images(size), [-0.99, -0.3, -0.033, 0.0, 0.21, 0.77]
    expected = []
    for image, slope in zip(batch, slopes, strict=True):
        degrees = math.degrees(math.atan(slope))
        shear = [degrees, 0.0] if axis == "x" else [0.0, degrees]
        expected.append(
            functional.affine(image.permute(2, 0, 1), 0.0, [0, 0], 1.0, shear, center=[0, 0])  # as the policies do
        )
    make, side = (geometry.shear_x, size[0]) if axis == "x" else (geometry.shear_y, size[1])
    assert share_that_differs(through([make(slope, side) for slope in slopes], batch, "nearest"), expected) < 0.002


def test_translation_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    batch, moves = images((20, 33)), [(0, 0), (5, 0), (-5, 0), (0, 7), (0, -19), (32, 0)]
    expected = [
        functional.affine(image.permute(2, 0, 1), 0.0, list(move), 1.0, [0.0, 0.0])
        for image, move in zip(batch, moves, strict=True)
    ]
    ours = through([geometry.translation(*move) for move in moves], batch, "nearest")
    assert share_that_differs(ours, expected) == 0


@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
def test_resized_crop_is_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import functional

    batch = images(size)
    boxes = [(0, 0, *size), (3, 4, 10, 12), (0, 0, 1, 1), (19, 20, 1, 13), (5, 0, 15, 33), (2, 30, 18, 2)]
    boxes = [(t, min(left, size[1] - 1), h, min(w, size[1] - left)) for t, left, h, w in boxes]
    expected = [
        functional.resized_crop(image.permute(2, 0, 1), *box, list(size), antialias=True)
        for image, box in zip(batch, boxes, strict=True)
    ]
    ours = geometry.resized_crop(batch, torch.tensor(boxes, dtype=torch.int16))
    assert share_that_differs(ours, expected, levels=1) == 0
    assert torch.equal(ours[0], batch[0])


def test_the_identity_changes_nothing() -> None:
    for size in ((32, 32), (20, 33)):
        batch = images(size)
        for mode in ("nearest", "bilinear"):
            assert torch.equal(through([IDENTITY] * 6, batch, mode), batch)
