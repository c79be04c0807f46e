"""mixup and CutMix against torchvision's, pair by pair."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp_train.optim.losses import cross_entropy_sum
from ddp_train.technique import Moment
from ddp_train.techniques import mixing
from tests.ddp_train.contexts import make_context


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 12, 16, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.arange(8)


def technique(**options: Any):
    made = mixing.create(make_context(nn.Identity(), **options)).batch
    assert made is not None
    return made


def in_pairs(transform: Any, params: dict[str, Any], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """torchvision's transform on one pair at a time: it pairs neighbours in a circle, so two are each other's."""
    transform.make_params = lambda flat_inputs: params
    pairs = [transform(images[i : i + 2], labels[i : i + 2]) for i in range(0, len(images), 2)]
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def test_mixup_is_torchvisions(batch: tuple[Tensor, Tensor]) -> None:
    from torchvision.transforms.v2 import MixUp

    images, labels = batch
    expected = in_pairs(MixUp(num_classes=10), {"lam": 0.3}, images, labels)
    mixed = mixing.blend(images, torch.nn.functional.one_hot(labels, 10).float(), 0.3)
    for one, other in zip(mixed, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert mixed[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("box", [(2, 7, 3, 16), (0, 12, 0, 16), (5, 5, 5, 5)])
def test_cutmix_is_torchvisions(batch: tuple[Tensor, Tensor], box: tuple[int, int, int, int]) -> None:
    from torchvision.transforms.v2 import CutMix

    images, labels = batch
    top, bottom, left, right = box
    params = {"box": (left, top, right, bottom), "lam_adjusted": 1 - (bottom - top) * (right - left) / (12 * 16)}
    expected = in_pairs(CutMix(num_classes=10), params, images, labels)
    before = images.clone()
    mixed = mixing.paste(images, torch.nn.functional.one_hot(labels, 10).float(), box)
    assert torch.equal(mixed[0], expected[0])
    torch.testing.assert_close(mixed[1], expected[1])
    assert torch.equal(images, before), "a second pass over the same batch must find it as it was"


def test_rectangles_have_the_area_that_was_drawn() -> None:
    draw = random.Random(0)
    for share in (0.1, 0.5, 0.9):
        areas = []
        for _ in range(2000):
            top, bottom, left, right = mixing.rectangle(32, 64, share, draw)
            assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 64
            areas.append((bottom - top) * (right - left) / (32 * 64))
        assert max(areas) == pytest.approx(1 - share, abs=0.08)  # where the border cuts nothing off


def test_both_together_draw_one_a_step(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    mix = technique(mixup=1.0, cutmix=1.0, mixup_prob=0.8)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for step in range(1000):
        mixed, targets = mix(images, labels, Moment(0, step, 0, 0))
        if targets is labels:
            kinds["none"] += 1
            continue
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        share = float(targets[0, 0])
        blended = torch.allclose(mixed[0], share * images[0] + (1 - share) * images[1], atol=1e-5)
        if not blended:  # each pixel is of one of the two, as many as the target says
            own = (mixed[0] == images[0]).all(0)
            assert bool((own | (mixed[0] == images[1]).all(0)).all())
            assert float(own.float().mean()) == pytest.approx(share, abs=1e-6)
        kinds["mixup" if blended else "cutmix"] += 1
    assert abs(kinds["none"] - 200) < 60 and abs(kinds["mixup"] - 400) < 90 and abs(kinds["cutmix"] - 400) < 90


def test_shares_follow_the_beta_distribution(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    mix = technique(mixup=0.4)
    shares = torch.stack([mix(images, labels, Moment(0, step, 3, 0))[1][0, 0] for step in range(3000)])
    assert abs(float(shares.mean()) - 0.5) < 0.03
    assert abs(float(shares.var()) - 1 / (4 * (2 * 0.4 + 1))) < 0.01


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_parts_that_begin_at_even_positions_see_the_same(
    batch: tuple[Tensor, Tensor], options: dict[str, float]
) -> None:
    images, labels = batch
    mix = technique(**options)
    for step in range(20):
        whole = mix(images, labels, Moment(0, step, 0, 0))
        parts = [
            mix(images[a:b], labels[a:b], Moment(0, step, 0, shard)) for shard, (a, b) in enumerate([(0, 2), (2, 8)])
        ]
        for index in (0, 1):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_odd_batches_and_soft_targets(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    soft = torch.softmax(torch.randn(3, 10, generator=torch.Generator().manual_seed(1)), 1)
    mixed, targets = technique(mixup=1.0)(images[:3], soft, Moment(0, 0, 0, 0))
    assert not torch.equal(mixed[0], images[0])
    assert torch.equal(mixed[2], images[2]) and torch.equal(targets[2], soft[2])  # without a partner
    assert technique(mixup=1.0)(images[:1], labels[:1], Moment(0, 0, 0, 0))[0].shape == (1, 3, 12, 16)


def test_class_weights_of_mixed_targets(batch: tuple[Tensor, Tensor]) -> None:
    """Each of a pair counts by its own class and share, and the weights of a batch add up to what they were."""
    images, labels = batch
    weights = torch.linspace(0.2, 3.0, 10)
    logits = torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(3))
    one_hot = nn.functional.one_hot(labels, 10).float()
    _, mixed = mixing.blend(images, one_hot, 0.3)
    partners = [min(at ^ 1, len(labels) - 1) for at in range(len(labels))]
    each = [nn.functional.cross_entropy(logits, of, reduction="none") for of in (labels, labels[partners])]
    expected = (0.3 * weights[labels] * each[0] + 0.7 * weights[labels[partners]] * each[1]).sum()
    assert torch.allclose(cross_entropy_sum(0.0, weights)(logits, mixed), expected)
    assert torch.allclose((mixed @ weights).sum(), weights[labels].sum())
