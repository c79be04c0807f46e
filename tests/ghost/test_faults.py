"""Faults of the GPU half that only a run could show, each with its kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data import load
from ddp_train.data.pipeline.build import create_augmentation
from ddp_train.models.speedrun import GlobalMaxPool
from ddp_train.optim import create_optimizer
from ddp_train.optim.muon import Muon
from ddp_train.techniques.mixing import _paired
from tests.ddp_train.contexts import make_context
from tests.ghost import Ghost
from tests.ghost.runs import GPU, STEPS, make


@pytest.fixture
def cudnn_as_before():
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags
    torch.use_deterministic_algorithms(False)


def test_speedrun_is_reproducible_on_a_gpu(ghost: Ghost, tmp_path: Path, cudnn_as_before: None) -> None:
    run = make(
        "--preset speedrun --width-mult 0.1 --reproducible --reproducible-shards 2", tmp_path / "run", "speedrun"
    )
    run.trainer.fit()
    assert run.trainer.progress.step == STEPS


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_the_largest_of_a_channel_is_torchs(order: torch.memory_format) -> None:
    values = torch.randint(4, (3, 5, 4, 4)).float().contiguous(memory_format=order)  # with ties
    found = []
    for pool in (nn.AdaptiveMaxPool2d(1), GlobalMaxPool()):
        images = values.clone().requires_grad_()
        out = pool(images)
        out.square().sum().backward()
        found.append((out, images.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def train_a_little(kind: str, found_inf: list[float], ghost: Ghost) -> list[torch.Tensor]:
    """The weights after steps with gradients of 1, or infinite ones where `found_inf` says so."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).to(GPU)
    junk = [torch.full((64,), 7e3) for _ in range(50)]  # what the allocator hands out again
    options = {"optimizer": "muon", "muon_rest": "sgd"} if kind == "muon" else {"optimizer": kind}
    optimizer = create_optimizer(network, make_context(network, **options).config.optim, 0.05, GPU)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0, growth_interval=1000, backoff_factor=0.5)
    del junk
    for bad in found_inf:
        scaler.scale(torch.zeros((), device=GPU))
        scale = scaler._scale.clone()
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf if bad else 1.0) * scale
        ghost.waits.forget()
        scaler.step(optimizer)
        scaler.update()
        assert ghost.waits.places() == []
    return [parameter.detach().cpu() for parameter in network.parameters()]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_a_first_step_that_overflows_leaves_nothing_behind(kind: str, ghost: Ghost) -> None:
    """Kind: a library's kernel that is trusted in a state which it does not initialise."""
    without = train_a_little(kind, [0, 0], ghost)
    after = train_a_little(kind, [1, 0, 1, 0], ghost)
    for one, other in zip(without, after, strict=True):
        torch.testing.assert_close(one, other)


def test_muon_alone_can_be_left_out_too(ghost: Ghost) -> None:
    weight = nn.Parameter(torch.ones(3, 3, device=GPU))
    muon = Muon([weight], None, lr=0.1)
    weight.grad = torch.full_like(weight, torch.nan)
    muon.found_inf = torch.ones((), device=GPU)
    muon.step()
    assert torch.equal(weight.detach().cpu(), torch.ones(3, 3))


def test_padding_takes_nothing_from_the_host(ghost: Ghost) -> None:
    dataset = load("synthetic", DataOptions(dataset="synthetic", synthetic_samples=16))
    augmentation = create_augmentation(dataset, AugmentOptions(augment="balanced"), 0, GPU)
    images = torch.from_numpy(dataset.train.images).to(GPU)
    ghost.waits.forget()
    augmentation.pad(images)
    assert ghost.waits.places() == []


def test_the_pipeline_delivers_the_memory_order_that_is_asked_for(tmp_path: Path) -> None:
    dataset = load("synthetic", DataOptions(dataset="synthetic", synthetic_samples=16))
    found = []
    for channels_last in (True, False):
        augmentation = create_augmentation(
            dataset, AugmentOptions(augment="heavy"), 0, "cpu", channels_last=channels_last
        )
        images = augmentation(torch.from_numpy(dataset.train.images), torch.arange(16), 3)
        order = torch.channels_last if channels_last else torch.contiguous_format
        mixed = _paired(images)
        assert all(one.is_contiguous(memory_format=order) for one in (images, mixed))
        found.append((images, mixed, augmentation.normalise(torch.from_numpy(dataset.test.images))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_no_channels_last_reaches_the_network(ghost: Ghost, tmp_path: Path) -> None:
    """Kind: an option that changes one side of two that must agree."""
    for options, contiguous in (("", False), ("--no-channels-last", True)):
        run = make(f"{options} --pipeline loader --num-workers 0", tmp_path / f"run{contiguous}", "small")
        first = next(m for m in run.trainer.components.network.modules() if isinstance(m, nn.Conv2d))
        batches = next(run.trainer.components.pipeline.train(0)).batches
        images = [next(batches).images, next(run.trainer.components.pipeline.evaluate()).images]
        assert [one.is_contiguous() for one in (*images, first.weight)] == [contiguous] * 3


def test_cudnn_chooses_by_time_for_fixed_shapes_alone(ghost: Ghost, tmp_path: Path, cudnn_as_before: None) -> None:
    chosen = {}
    for number, options in enumerate(
        ("", "--progressive-resize 16", "--tune lr", "--reproducible", "--no-cudnn-benchmark")
    ):
        make(options, tmp_path / str(number), "tests.ddp_train.techniques.tiny:pooled")
        chosen[options] = torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(False)
    assert chosen == {
        "": True,
        "--progressive-resize 16": False,
        "--tune lr": False,
        "--reproducible": False,
        "--no-cudnn-benchmark": False,
    }


def test_averages_follow_plain_arithmetic_and_never_wait(ghost: Ghost, tmp_path: Path) -> None:
    run = make("--ema 0.9", tmp_path / "run")
    components, (ema,) = run.trainer.components, [t for t in run.trainer.components.techniques if t.name == "ema"]
    assert ema.after_step is not None and ema.evaluated is not None
    weight, mean = next(components.network.parameters()), next(ema.evaluated.parameters())
    ghost.waits.forget()
    expected = None
    for value in (1.0, 3.0, 2.0):
        with torch.no_grad():
            weight.fill_(value)
        ema.after_step(None)  # type: ignore[arg-type]  # without --ema-warmup the moment is not asked
        expected = value if expected is None else 0.9 * expected + 0.1 * value
    assert ghost.waits.places() == []
    assert mean.flatten()[0].item() == pytest.approx(expected)
