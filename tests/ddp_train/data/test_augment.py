"""Augmentation against a per-sample oracle written with plain NumPy slicing."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ddp_train.data.augment.augmentation import Augmentation, Draws
from ddp_train.data.augment.crop import CROPS
from ddp_train.data.sources.samples import Padding

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make(level: str = "heavy", shape: tuple[int, int, int] = (3, 16, 24), **options: object) -> Augmentation:
    channels = shape[0]
    return Augmentation(level, image_shape=shape, mean=MEAN[:channels], std=STD[:channels], **options)  # type: ignore[arg-type]


def images(count: int, shape: tuple[int, int, int] = (3, 16, 24), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, shape[1], shape[2], shape[0]), dtype=torch.uint8, generator=generator)


def oracle(augmentation: Augmentation, batch: Tensor, draws: Draws, padding: Padding) -> np.ndarray:
    """One image at a time, as its definition reads: pad, crop, mirror, erase, normalise."""
    results = []
    pad, height, width = augmentation.pad_pixels, augmentation.height, augmentation.width
    mean, std = MEAN[: augmentation.channels], STD[: augmentation.channels]
    for i, image in enumerate(batch.numpy()):
        mode = {"zero": "constant", "reflect": "reflect"}[padding]
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)  # type: ignore[call-overload]
        if draws.shift is not None:
            top, left = divmod(int(draws.shift[i]), width + 2 * pad)
            image = image[top : top + height, left : left + width]
        if draws.flip is not None and draws.flip[i]:
            image = image[:, ::-1]
        if draws.box is not None:
            image = image.copy()
            top, bottom, left, right = draws.box[i].tolist()
            image[top:bottom, left:right] = np.round(np.array(mean) * 255)
        results.append(((image / 255 - mean) / std).transpose(2, 0, 1))
    return np.stack(results)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("level", ["none", "minimal", "balanced", "heavy"])
@pytest.mark.parametrize("shape", [(3, 16, 24), (1, 8, 8), (3, 5, 4)])
def test_equals_the_oracle(level: str, padding: Padding, shape: tuple[int, int, int]) -> None:
    augmentation = make(level, shape, padding=padding, seed=1)
    batch, samples = images(50, shape), torch.arange(100, 150)
    expected = oracle(augmentation, batch, augmentation.draw(samples, 3), padding)
    np.testing.assert_allclose(augmentation(batch, samples, 3).numpy(), expected, atol=2e-6)


def test_levels_do_what_they_say() -> None:
    has = {level: [field is not None for field in make(level).draw(torch.arange(3), 0).fields] for level in
           ("none", "minimal", "balanced", "heavy")}  # fmt: skip
    assert has == {
        "none": [False, False, False],
        "minimal": [False, True, False],
        "balanced": [True, True, False],
        "heavy": [True, True, True],
    }
    assert make("heavy", flip_ok=False).draw(torch.arange(3), 0).flip is None


def test_borders_are_an_eighth_of_the_image() -> None:
    sides = {side: make("balanced", (3, side, side)).pad_pixels for side in (4, 8, 32, 224)}
    assert sides == {4: 1, 8: 1, 32: 4, 224: 28}
    assert make("minimal").pad_pixels == 0
    assert make("balanced", (3, 32, 32), largest_shift=2).pad_pixels == 2


def test_draws_are_distributed_as_documented() -> None:
    augmentation, count = make("heavy", (3, 32, 32)), 20_000
    draws = augmentation.draw(torch.arange(count), 0)
    assert draws.shift is not None and draws.flip is not None and draws.box is not None
    rows = torch.bincount(draws.shift // 40, minlength=9)
    columns = torch.bincount(draws.shift % 40, minlength=9)
    for offsets in (rows, columns):  # 9 offsets, -4 .. 4
        assert len(offsets) == 9 and (offsets - count / 9).abs().max() < 5 * (count / 9) ** 0.5
    assert draws.flip.dtype == torch.bool
    assert abs(draws.flip.double().mean() - 0.5) < 0.02
    top, bottom, left, right = draws.box.long().unbind(1)
    area = (bottom - top) * (right - left)
    erased = area > 0
    assert abs(erased.double().mean() - 0.5) < 0.02
    assert top.min() >= 0 and bottom.max() <= 32 and left.min() >= 0 and right.max() <= 32
    shares = area[erased] / 32**2
    assert shares.min() > 0.015 and shares.max() < 0.36
    assert abs(shares.mean() - 0.175) < 0.01
    partial = erased & (bottom - top < 32) & (right - left < 32)
    assert top[partial].min() == 0 and left[partial].min() == 0  # every place is reached
    assert bottom[partial].max() == 32 and right[partial].max() == 32


def test_a_sample_looks_the_same_in_any_batch() -> None:
    augmentation, batch = make("heavy", seed=9), images(40)
    samples = torch.randperm(1000)[:40]
    whole = augmentation(batch, samples, 2)
    for part in (slice(0, 1), slice(3, 10), slice(7, 40)):
        assert torch.equal(augmentation(batch[part], samples[part], 2), whole[part])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    before = torch.get_num_threads()
    augmentation, batch, samples = make("heavy", (3, 32, 32)), images(301, (3, 32, 32)), torch.arange(301)
    try:
        torch.set_num_threads(threads)
        whole = augmentation(batch, samples, 0)
        assert torch.equal(
            torch.cat([augmentation(batch[i : i + 1], samples[i : i + 1], 0) for i in range(301)]), whole
        )
    finally:
        torch.set_num_threads(before)


def test_epochs_and_seeds_look_different() -> None:
    batch, samples = images(40), torch.arange(40)
    first = make("heavy", seed=0)(batch, samples, 0)
    assert not torch.equal(first, make("heavy", seed=0)(batch, samples, 1))
    assert not torch.equal(first, make("heavy", seed=1)(batch, samples, 0))
    assert torch.equal(first, make("heavy", seed=0)(batch, samples, 0))


def test_result_is_channels_last_and_the_input_is_untouched() -> None:
    batch = images(8)
    before = batch.clone()
    for level in ("none", "minimal", "balanced", "heavy"):
        result = make(level)(batch, torch.arange(8), 0)
        assert result.shape == (8, 3, 16, 24) and result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, before)


def test_no_global_random_state_is_used() -> None:
    state = torch.random.get_rng_state()
    make("heavy")(images(8), torch.arange(8), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_large_epochs_are_drawn_in_chunks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation, samples = make("heavy"), torch.arange(100)
    whole = augmentation.draw(samples, 0)
    monkeypatch.setattr("ddp_train.data.augment.augmentation._CHUNK", 7)
    for chunked, field in zip(augmentation.draw(samples, 0).fields, whole.fields, strict=True):
        assert chunked is not None and field is not None and torch.equal(chunked, field)


def test_an_empty_batch_is_fine() -> None:
    assert make("heavy")(images(0), torch.arange(0), 0).shape == (0, 3, 16, 24)


@pytest.mark.parametrize("shifted", [True, False])
def test_every_way_to_crop_gives_the_same_windows(shifted: bool) -> None:
    padded = torch.randint(256, (7, 12, 14, 3), dtype=torch.uint8)
    rows = torch.tensor([3, 0, 6, 6])
    down, right = torch.tensor([0, 4, 2, 4]), torch.tensor([4, 0, 3, 4])
    shift = down * 14 + right if shifted else None
    found = {name: crop(padded, rows, shift, 8, 10) for name, crop in CROPS.items()}
    for number, (row, y, x) in enumerate(zip(rows, down, right, strict=True)):
        y, x = (y, x) if shifted else (0, 0)
        window = padded[row, y : y + 8, x : x + 10].flatten(1)
        assert all(torch.equal(images[number], window) for images in found.values())
