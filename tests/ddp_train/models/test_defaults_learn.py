"""Every model by name learns the digits with the optimizer, rate and warm-up that it gets by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.config.recommend import recommend_for_data
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


@pytest.mark.parametrize("name", names())
def test_it_learns_the_digits(name: str, tmp_path: Path) -> None:
    options, epochs = SMALL[name]
    words = f"--model {name} {options} --epochs {epochs} --dataset digits --device cpu --amp off --no-tensorboard"
    run = build(parse([*words.split(), "--out-dir", str(tmp_path / "run")]), Ranks(), torch.device("cpu"))
    assert run.trainer.fit().best_accuracy > 0.6  # by chance 0.1


@pytest.mark.parametrize(
    ("words", "optimizer", "rate"),
    [
        ("--model vit", "adamw", 0.001),
        ("--model vit_b_16", "adamw", 0.0005),
        ("--model torchvision:swin_t", "adamw", 0.0005),
        ("--model vgg11", "sgd", 0.007),
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
