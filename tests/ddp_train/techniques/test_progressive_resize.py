"""Progressive resizing: the sizes by epoch, the images against Pillow's, and models that cannot."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddp_core.errors import UserError
from ddp_train.models import SmallCifarNet
from ddp_train.technique import Moment
from ddp_train.techniques import progressive_resize
from tests.ddp_train.contexts import make_context
from tests.ddp_train.techniques.tiny import pooled


def technique(network: nn.Module | None = None, **options: Any):
    made = progressive_resize.create(make_context(network or pooled(10, (3, 32, 32)), **options)).batch
    assert made is not None
    return made


def sides(**options: Any) -> list[int]:
    """By epoch, of a run of four."""
    grow, images = technique(**options), torch.zeros(2, 3, 32, 32)
    return [grow(images, torch.zeros(2), Moment(epoch, 0, 0, 0))[0].shape[-1] for epoch in range(5)]


def test_images_are_pillows() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small, _ = technique(progressive_resize=12)(images, torch.zeros(2), Moment(0, 0, 0, 0))
    for image, result in zip(images.flatten(0, 1), small.flatten(0, 1), strict=True):
        expected = Image.fromarray(image.numpy()).resize((12, 12), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(result.numpy(), np.asarray(expected), atol=1e-5)


def test_sizes_grow_in_steps_of_four_to_the_images_own() -> None:
    assert sides(progressive_resize=16) == [16, 20, 28, 32, 32]  # 3 of 4 epochs
    assert sides(progressive_resize=16, progressive_resize_epochs=1) == [16, 32, 32, 32, 32]
    assert sides(progressive_resize=10, progressive_resize_end=26, progressive_resize_epochs=4) == [10, 14, 18, 22, 26]
    assert sides(progressive_resize=32) == [32] * 5
    every = [progressive_resize.side_in_epoch(epoch, 64, 224, 80) for epoch in range(100)]
    assert every == sorted(every) and every[0] == 64 and every[80:] == [224] * 20
    assert {side % 4 for side in every} == {0}


def test_a_number_of_stages_gives_so_many_sizes_for_equal_parts() -> None:
    stages: dict[str, Any] = {"progressive_resize": 16, "progressive_resize_epochs": 4}
    assert sides(**stages, progressive_resize_stages=2) == [16, 16, 16, 16, 32]
    assert sides(**stages, progressive_resize_stages=3) == [16, 16, 24, 24, 32]
    assert sides(**stages, progressive_resize_stages=5) == [16, 20, 24, 28, 32]
    every = [progressive_resize.side_in_epoch(epoch, 128, 224, 90, 4) for epoch in range(100)]
    assert [(side, every.count(side)) for side in sorted(set(every))] == [(128, 30), (160, 30), (192, 30), (224, 10)]


def test_the_shorter_side_counts() -> None:
    resizing = progressive_resize._Resizing(16, 32, 32, 4)
    images = torch.zeros(2, 3, 32, 48)
    assert resizing(images, torch.zeros(2), Moment(0, 0, 0, 0))[0].shape == (2, 3, 16, 24)


def test_a_model_of_one_size_is_refused_in_one_line() -> None:
    network = SmallCifarNet(10)
    with pytest.raises(UserError, match="one size only") as refused:
        technique(network, progressive_resize=16)
    assert "\n" not in str(refused.value) and network.training
    technique(network, progressive_resize=32)  # never another size than its own


def test_the_trial_leaves_no_trace_in_batch_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    technique(network, progressive_resize=16)
    assert int(network[0].num_batches_tracked) == 0


def test_sizes_that_the_images_do_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="32 pixels"):
        technique(progressive_resize=48)
    with pytest.raises(UserError, match="--progressive-resize-end 40"):
        technique(progressive_resize=16, progressive_resize_end=40)
