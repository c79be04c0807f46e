"""Every model by name learns the digits with the optimizer, rate and warm-up that it gets by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.config.recommend import recommend_for_data
from ddp_train.data.sources.builtin import load_digits
from ddp_train.distributed.process_group import Ranks
from ddp_train.models import names

# The smallest of each kind, and epochs.
SMALL = {
    "small": ("", 6),
    "power": ("--width-mult 0.25", 8),
    "residual": ("--width-mult 0.0625", 6),
    "wideresnet": ("--n-layers 10 --width-mult 1", 8),
    "resnet18": ("--width-mult 0.125", 8),
    "speedrun": ("--width-mult 0.25", 6),
    "vit": ("--hidden-dim 64 --n-layers 2 --accumulate 1", 6),
}


# Of torchvision: the smallest of each family, the side of the images that it takes, epochs, and what it must reach.
# With --whole; the first one always.
FAMILIES = {
    "shufflenet_v2_x0_5": (16, 6, 0.6),
    "mobilenet_v2": (16, 6, 0.5),
    "mobilenet_v3_small": (16, 6, 0.6),
    "mnasnet0_5": (16, 6, 0.25),
    "torchvision:resnet18": (16, 5, 0.8),
    "regnet_y_400mf": (16, 6, 0.5),
    "efficientnet_b0": (16, 6, 0.3),
    "densenet121": (32, 3, 0.7),
    "squeezenet1_1": (32, 6, 0.25),
    "convnext_tiny": (32, 3, 0.7),
    "vit_b_16": (16, 2, 0.5),
    "alexnet": (64, 3, 0.3),
    "vgg11": (32, 2, 0.2),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests beside one another share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", names())
def test_it_learns_the_digits(name: str, tmp_path: Path) -> None:
    options, epochs = SMALL[name]
    words = f"--model {name} {options} --epochs {epochs} --dataset digits --device cpu --amp off --no-tensorboard"
    run = build(parse([*words.split(), "--out-dir", str(tmp_path / "run")]), Ranks(), torch.device("cpu"))
    assert run.trainer.fit().best_accuracy > 0.6  # by chance 0.1


@pytest.fixture(scope="module")
def digits_in_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as an image folder, which is scaled to what a model takes."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    assert digits.test is not None
    for part, split in (("train", digits.train), ("test", digits.test)):
        for number, (image, label) in enumerate(zip(split.take(slice(None)), split.labels, strict=True)):
            file = folder / part / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_torchvisions_learns_the_digits(
    name: str, tmp_path: Path, digits_in_files: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != next(iter(FAMILIES)) and not pytestconfig.getoption("--whole"):
        pytest.skip("only with --whole: minutes")
    monkeypatch.setenv("DDP_TRAIN_CACHE", str(tmp_path / "cache"))
    side, epochs, least = FAMILIES[name]
    words = f"--model {name} --epochs {epochs} --dataset folder --data-dir {digits_in_files} --image-size {side}"
    words += f" --augment none --device cpu --amp off --no-tensorboard --out-dir {tmp_path / 'run'}"
    run = build(parse(words.split()), Ranks(), torch.device("cpu"))
    assert run.trainer.fit().best_accuracy > least  # by chance 0.1


@pytest.mark.parametrize(
    ("words", "optimizer", "rate"),
    [
        ("--model vit", "adamw", 0.001),
        ("--model vit_b_16", "adamw", 0.0005),
        ("--model torchvision:swin_t", "adamw", 0.0005),
        ("--model vgg11", "sgd", 0.007),
        ("--model squeezenet1_1", "adamw", 0.001),
        ("--model efficientnet_b0", "sgd", 0.01),
        ("--model resnet34", "sgd", 0.05),
        ("--model vit --optimizer sgd", "sgd", 0.05),
        ("--model vit --beta1 0.8", "adamw", 0.001),
        ("--model mine:vit", "sgd", 0.05),
    ],
)
def test_optimizer_and_rate_follow_the_model(words: str, optimizer: str, rate: float) -> None:
    wanted = parse(words.split())
    found = {r.name: r.value for r in recommend_for_data("cifar10", 50_000, 128, wanted)}
    assert (wanted.optim.optimizer, found["lr"]) == (optimizer, rate)


def test_batch_and_rate_are_capped_by_the_data(tmp_path: Path) -> None:
    words = "--batch-size 100000 --dataset digits --epochs 1 --device cpu --no-tensorboard --out-dir"
    run = build(parse([*words.split(), str(tmp_path / "run")]), Ranks(), torch.device("cpu"))
    samples = len(run.dataset.train.labels)
    assert run.config.data.batch_size == run.facts.global_batch == samples
    peak = run.trainer.components.optimizer.param_groups[0]["initial_lr"]
    assert peak == pytest.approx(0.05 * (samples / 128) ** 0.5)
