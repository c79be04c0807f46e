"""Operations with draws of their own: against torchvision's functions with the same parameters, and their ranges."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.augment import keyed_random
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.pipeline.build import create_augmentation, create_operations
from ddp_train.data.sources.samples import Dataset, Split
from tests.ddp_train.data.augment.test_policies import images

COUNT = 200
EVERYTHING: dict[str, Any] = {
    "random_resized_crop": 0.3,
    "rotation": 15.0,
    "augment_policy": "randaugment",
    "color_jitter": 0.4,
    "grayscale": 0.3,
    "erasing": 0.7,
    "flip": "alternating",
}


def only(**options: Any):
    (operation,) = create_operations(AugmentOptions(**options), (32, 32))
    return operation, operation.draw(keyed_random.words(5, torch.arange(COUNT), operation.words))


def furthest(ours: Tensor, expected: list[Tensor]) -> int:
    """The largest difference in grey levels. expected: [C, H, W] each."""
    return int((ours.permute(0, 3, 1, 2).int() - torch.stack(expected).int()).abs().max())


def test_rotation_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    operation, drawn = only(rotation=30.0)
    batch, angles = images(COUNT), [operation.angles[place] for place in drawn]
    expected = [
        functional.rotate(image.permute(2, 0, 1), angle, interpolation=functional.InterpolationMode("bilinear"))
        for image, angle in zip(batch, angles, strict=True)
    ]
    assert furthest(operation.apply(batch.clone(), drawn), expected) <= 1
    assert min(angles) < -29 and max(angles) > 29 and abs(float(np.mean(angles))) < 4


@pytest.mark.parametrize("padding", [1, 2, 5])
def test_crops_are_of_images_widened_by_so_many_pixels(padding: int) -> None:
    """Each is one of torchvision's crops of the reflected image, and all places come up."""
    from torchvision.transforms.v2 import functional

    (image,) = images(1)
    split = Split(torch.zeros(COUNT, dtype=torch.int64).numpy(), image.expand(COUNT, -1, -1, -1).numpy())
    dataset = Dataset("one", ("a",), split, split, (0.0,) * 3, (1 / 255,) * 3, (3, 32, 32), flip_ok=False)
    options = AugmentOptions(augment="balanced", crop_padding=padding)
    found = create_augmentation(dataset, options, 3, "cpu")(images(1).expand(COUNT, -1, -1, -1), torch.arange(COUNT), 0)
    wide = functional.pad(image.permute(2, 0, 1), [padding] * 4, padding_mode="reflect")
    sides = range(2 * padding + 1)
    crops = torch.stack([functional.crop(wide, top, left, 32, 32) for top in sides for left in sides]).float()
    places = [int((crops - one).abs().amax((1, 2, 3)).argmin()) for one in found]
    assert max(float((crops[place] - one).abs().max()) for place, one in zip(places, found, strict=True)) < 1e-3
    assert len(set(places)) > 0.7 * min(COUNT, len(crops))


def test_a_crop_wider_than_the_image_is_refused() -> None:
    (image,) = images(1)
    split = Split(torch.zeros(1, dtype=torch.int64).numpy(), image[None].numpy())
    dataset = Dataset("one", ("a",), split, split, (0.0,) * 3, (1.0,) * 3, (3, 32, 32))
    with pytest.raises(UserError, match="--crop-padding 32: the images of one have 32 pixels"):
        create_augmentation(dataset, AugmentOptions(augment="balanced", crop_padding=32), 0, "cpu")


def test_colour_jitter_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    operation, drawn = only(color_jitter=0.4)
    batch, expected = images(COUNT), []
    for image, (bright, contrast, colours, hue) in zip(batch, drawn.tolist(), strict=True):
        result = functional.adjust_brightness(image.permute(2, 0, 1), float(operation.factors[bright]))
        result = functional.adjust_contrast(result, float(operation.factors[contrast]))
        result = functional.adjust_saturation(result, float(operation.factors[colours]))
        expected.append(functional.adjust_hue(result, float(operation.shifts[hue])))
    # Rounded four times, once (hue) to the nearest level where torchvision rounds down.
    assert furthest(operation.apply(batch.clone(), drawn), expected) <= 3
    assert float(operation.factors.min()) == pytest.approx(0.6) and float(operation.factors.max()) == pytest.approx(1.4)
    assert float(operation.shifts.abs().max()) == pytest.approx(0.1)
    assert float(operation.factors[512]) == 1 and float(operation.shifts[512]) == 0
    assert drawn.min() < 30 and drawn.max() > 994


def test_resized_crop_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    operation, drawn = only(random_resized_crop=0.1)
    batch = images(COUNT)
    expected = [
        functional.resized_crop(image.permute(2, 0, 1), *box, [32, 32], antialias=True)
        for image, box in zip(batch, drawn.tolist(), strict=True)
    ]
    assert furthest(operation.apply(batch.clone(), drawn), expected) <= 1
    top, left, height, width = drawn.long().unbind(1)
    assert top.min() == 0 and left.min() == 0 and (top + height).max() == 32 and (left + width).max() == 32
    area, ratio = height * width / 32**2, height / width
    assert 0.08 < area.min() < 0.2 and area.max() > 0.85
    assert 0.65 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.5


def test_grayscale_has_its_probability() -> None:
    operation, drawn = only(grayscale=0.25)
    batch = images(COUNT)
    result = operation.apply(batch.clone(), drawn)
    grey = (result == result[..., :1]).flatten(1).all(1)
    assert torch.equal(grey, drawn.bool()) and torch.equal(result[~grey], batch[~grey])
    assert abs(float(grey.float().mean()) - 0.25) < 0.1


def augmentation(**options: Any) -> Augmentation:
    """Of CIFAR-10's shape."""
    return create_augmentation(made_up(45), AugmentOptions(**options), 3, "cpu")


def made_up(count: int, side: int = 32) -> Dataset:
    random = np.random.default_rng(0)
    splits = [Split(np.arange(n) % 3, random.integers(0, 256, (n, side, side, 3), dtype=np.uint8)) for n in (count, 10)]
    return Dataset("made up", ("a", "b", "c"), *splits, (0.5,) * 3, (0.25,) * 3, (3, side, side))


def test_zero_is_absence() -> None:
    plain, zero = (augmentation(augment="heavy", **more) for more in ({}, {"rotation": 0.0, "color_jitter": 0.0,
                                                                         "grayscale": 0.0}))  # fmt: skip
    assert zero.further == () and plain.further == ()
    assert not augmentation(augment="heavy", erasing=0.0).erases
    assert not augmentation(augment="heavy", flip="off").flips
    assert augmentation(augment="none", flip="random").flips
    assert augmentation(augment="heavy", random_resized_crop=0.5).pad_pixels == 0


def test_further_operations_leave_the_levels_draws_alone() -> None:
    samples = torch.arange(100)
    plain = augmentation(augment="heavy").draw(samples, 2)
    more = augmentation(augment="heavy", augment_policy="autoaugment", rotation=5.0, grayscale=0.1).draw(samples, 2)
    assert len(more.further) == 3
    for field, other in zip(plain.fields, more.fields[:3], strict=True):
        assert field is not None and other is not None and torch.equal(field, other)


def test_an_alternating_flip_shows_each_side_every_other_epoch() -> None:
    samples = torch.arange(1000)
    alternating, drawn = augmentation(augment="minimal", flip="alternating"), augmentation(augment="minimal")
    flips = [alternating.draw(samples, epoch).flip for epoch in range(4)]
    assert all(flip is not None for flip in flips)
    first, second, third, fourth = (flip for flip in flips if flip is not None)
    assert torch.equal(first, third) and torch.equal(second, fourth) and torch.equal(first, ~second)
    again = drawn.draw(samples, 0).flip
    assert again is not None and torch.equal(first, again)
    assert abs(float(first.float().mean()) - 0.5) < 0.06


def test_erasing_at_any_level() -> None:
    box = augmentation(augment="none", erasing=0.2).draw(torch.arange(5000), 0).box
    assert box is not None and abs(float((box.sum(1) > 0).float().mean()) - 0.2) < 0.03


def test_cutout_is_a_square_inside_every_image() -> None:
    found = augmentation(augment="none", cutout=5)
    white = torch.full((5000, 32, 32, 3), 255, dtype=torch.uint8)
    erased = found(white, torch.arange(5000), 0)[:, 0] != found.normalise(white)[:, 0]
    assert torch.equal(erased.sum((1, 2)), torch.full((5000,), 25))
    assert set(erased.any(2).sum(1).tolist()) == set(erased.any(1).sum(1).tolist()) == {5}
    assert erased.any(0).all(), "every place is reached"


def test_a_sample_does_not_depend_on_its_batch_with_everything_on() -> None:
    augment, batch, samples = augmentation(**EVERYTHING), images(60), torch.randperm(1000)[:60]
    whole = augment(batch, samples, 2)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    for part in (slice(0, 1), slice(3, 20), slice(7, 60), slice(0, 0)):
        assert torch.equal(augment(batch[part], samples[part], 2), whole[part])


def test_both_pipelines_give_the_same_bits_with_everything_on() -> None:
    dataset, steps = made_up(45), []
    for kind in ("resident", "loader"):
        options = DataOptions(pipeline=kind, num_workers=0)  # type: ignore[arg-type]
        pipe = data.build_pipeline(
            dataset, options, AugmentOptions(**EVERYTHING), world_size=1, rank=0, device=torch.device("cpu"),
            global_batch=16, accumulate=2, seed=1,
        )  # fmt: skip
        steps.append([batch.images for window in pipe.train(1) for batch in window.batches])
    assert len(steps[0]) == len(steps[1]) == 6
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))
