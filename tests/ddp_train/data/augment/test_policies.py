"""The policies: tables against torchvision's own, whole samples against torchvision's transforms, draws."""

from collections import Counter
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ddp_train.data.augment import keyed_random
from ddp_train.data.augment.operations import masked
from ddp_train.data.augment.policies import Action, Policy, PolicyName, policy_table

SIZES = [(32, 32), (20, 33), (224, 224)]
NAMES = get_args(PolicyName)


def magnitudes(transform: Any, bins: int, size: tuple[int, int]) -> dict[str, tuple[list[float] | None, bool]]:
    """torchvision's space: operation -> magnitudes by bin, and whether they are signed."""
    found = {}
    for operation, (values, signed) in transform._AUGMENTATION_SPACE.items():
        made = values(bins, *size)
        found[operation] = (None if made is None else [float(value) for value in made], signed)
    return found


def both_signs(operation: str, magnitude: float, signed: bool) -> list[Action]:
    return [Action(operation, magnitude), Action(operation, -magnitude if signed else magnitude)]


def same(ours: Counter[Action], theirs: Counter[Action]) -> bool:
    """Equal probabilities."""
    mine, total = sum(ours.values()), sum(theirs.values())
    return {action: n / mine for action, n in ours.items()} == {action: n / total for action, n in theirs.items()}


@pytest.mark.parametrize("size", SIZES)
def test_autoaugment_has_torchvisions_table(size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy

    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)
    space, table = magnitudes(theirs, 10, size), policy_table("autoaugment", *size)
    assert [len(slot) for slot in table] == [len(theirs._policies)] * 2
    for number, steps in enumerate(theirs._policies):
        for slot, (operation, probability, level) in enumerate(steps):
            values, signed = space[operation]
            entries = both_signs(operation, 0.0 if values is None else values[level or 0], signed) * round(
                probability * 10
            )
            entries += [Action("Identity")] * (20 - len(entries))
            assert same(Counter(table[slot][number]), Counter(entries)), steps


@pytest.mark.parametrize("size", SIZES)
def test_randaugment_has_torchvisions_table(size: tuple[int, int]) -> None:
    from torchvision.transforms.v2 import RandAugment

    for magnitude in (0, 9, 30):
        entries = []
        for operation, (values, signed) in magnitudes(RandAugment(), 31, size).items():
            entries += both_signs(operation, 0.0 if values is None else values[magnitude], signed)
        table = policy_table("randaugment", *size, operations=3, magnitude=magnitude)
        assert len(table) == 3
        assert all(len(slot) == 1 and same(Counter(slot[0]), Counter(entries)) for slot in table)
    assert policy_table("randaugment", *size, operations=0) == ()


def test_trivialaugment_has_torchvisions_table() -> None:
    from torchvision.transforms.v2 import TrivialAugmentWide

    entries = []
    for operation, (values, signed) in magnitudes(TrivialAugmentWide(), 31, (32, 32)).items():
        for value in [0.0] * 31 if values is None else values:
            entries += both_signs(operation, value, signed)
    ((ours,),) = policy_table("trivialaugment", 32, 32)
    assert same(Counter(ours), Counter(entries))


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_torchvisions(name: PolicyName) -> None:
    """Each sample through torchvision's function for what it has drawn, one slot after the other."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import TrivialAugmentWide

    policy = Policy(policy_table(name, 32, 32), (32, 32), torch.device("cpu"))
    apply = TrivialAugmentWide()._apply_image_or_video_transform
    batch = images(400)
    drawn = policy.draw(keyed_random.words(7, torch.arange(400), policy.words))
    ours = policy.apply(batch.clone(), drawn)
    close = []
    for image, actions, result in zip(batch, drawn.tolist(), ours, strict=True):
        expected = image.permute(2, 0, 1)
        for number in actions:
            action = policy.actions[number]
            expected = apply(expected, action.operation, action.magnitude, InterpolationMode.NEAREST, {})
        difference = (result.permute(2, 0, 1).int() - expected.int()).abs()
        # A level of rounding ahead of equalize or solarize can grow; a coordinate between two pixels can go either way.
        close.append(float((difference <= 1).float().mean()) > 0.98)
    assert sum(close) >= 396
    assert not torch.equal(ours, batch)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_drawn_as_often_as_the_next(name: PolicyName) -> None:
    table = policy_table(name, 32, 32)
    policy, count = Policy(table, (32, 32), torch.device("cpu")), 100_000
    drawn = policy.draw(keyed_random.words(3, torch.arange(count), policy.words))
    for slot, rows in enumerate(table):
        expected = Counter(action for row in rows for action in row)
        total = sum(expected.values())
        found = Counter(policy.actions[number] for number in drawn[:, slot].tolist())
        for action, entries in expected.items():
            mean = count * entries / total
            assert abs(found[action] - mean) < 5 * mean**0.5, action


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_does_not_depend_on_its_batch(name: PolicyName, channels: int) -> None:
    policy = Policy(policy_table(name, 32, 32), (32, 32), torch.device("cpu"))
    batch = images(60, channels)
    drawn = policy.draw(keyed_random.words(7, torch.arange(60), policy.words))
    whole = policy.apply(batch.clone(), drawn)
    for part in (slice(0, 1), slice(3, 20), slice(7, 60)):
        assert torch.equal(policy.apply(batch[part].clone(), drawn[part]), whole[part])


@pytest.mark.parametrize("name", NAMES)
def test_a_gpus_way_gives_the_same(name: PolicyName, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(policy_table(name, 32, 32), (32, 32), torch.device("cpu"))
    batch = images(200)
    drawn = policy.draw(keyed_random.words(7, torch.arange(200), policy.words))
    gathered = policy.apply(batch.clone(), drawn)
    monkeypatch.setattr("ddp_train.data.augment.policies.change_chosen", masked)
    assert torch.equal(policy.apply(batch.clone(), drawn), gathered)


def images(count: int, channels: int = 3) -> Tensor:
    """Smooth, as photographs are: uint8 [n, 32, 32, C]."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(1)) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp_(0, 255)
    return smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
