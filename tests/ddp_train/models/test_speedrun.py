"""The network of the fastest runs: its whitening, its identity, what is trained, and its look at the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks
from ddp_train.models import create_model, parameter_count
from ddp_train.models.blocks import UncountedBatchNorm
from ddp_train.models.speedrun import SpeedrunNet, whitening_kernels
from ddp_train.models.sync_batch_norm import synchronise

CPU = torch.device("cpu")


def test_its_sizes() -> None:
    groups = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    biases = 24 + 2 * (64 + 256 + 256)
    assert parameter_count(create_model("speedrun", num_classes=10)) == groups + biases + 256 * 10 == 1_971_352


def test_three_convolutions_a_group_end_in_a_residual_branch() -> None:
    model = create_model("speedrun", num_classes=10, width_mult=2.0, n_layers=3).eval()
    kernels = [tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4 and "whiten" not in name]
    pairs = [(24, 128), (128, 128), (128, 128), (128, 384), (384, 384), (384, 384), (384, 512), (512, 512), (512, 512)]
    assert kernels == [(after, before, 3, 3) for before, after in pairs]
    images, act = torch.randn(2, 3, 32, 32), nn.functional.silu
    assert isinstance(model, SpeedrunNet)
    x = act(model.whiten(images))
    convolutions = [module for module in model.layers.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.layers.modules() if isinstance(module, nn.BatchNorm2d)]
    for group in range(3):
        a, b, c = range(3 * group, 3 * group + 3)
        x = act(norms[a](nn.functional.max_pool2d(convolutions[a](x), 2)))
        x = act(x + norms[c](convolutions[c](act(norms[b](convolutions[b](x))))))
    torch.testing.assert_close(model(images), model.head(x.amax((2, 3))) * model.scale)
    with pytest.raises(UserError, match="--n-layers 4: a group of speedrun has 2 or 3 convolutions"):
        create_model("speedrun", num_classes=10, n_layers=4)


def test_whitened_patches_are_uncorrelated_and_of_variance_1() -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 34, 34), 3, stride=1)
    kernels = whitening_kernels(smooth, 2)
    found = nn.functional.conv2d(smooth, kernels).permute(0, 2, 3, 1).reshape(-1, 12).double()
    moments = found.T @ found / len(found)
    least = 5e-4
    # The variance of a direction with variance v is v / (v + 0.0005): below 1 where v is small.
    patches = smooth.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
    variances = torch.linalg.eigvalsh(patches.T @ patches / len(patches))
    torch.testing.assert_close(moments, torch.diag(variances / (variances + least)), atol=1e-4, rtol=0)
    assert torch.equal(kernels, whitening_kernels(smooth, 2))


def test_the_first_layer_shows_each_direction_in_both_signs_and_is_frozen() -> None:
    model = create_model("speedrun", num_classes=10, width_mult=0.25)
    assert isinstance(model, SpeedrunNet)
    model.init_from_data(torch.randn(16, 3, 32, 32))
    kernels = model.whiten.weight
    assert torch.equal(kernels[:12], -kernels[12:])
    assert not kernels.requires_grad
    assert [name for name, p in model.named_parameters() if not p.requires_grad and "whiten" not in name] == [
        f"layers.{index}.weight" for index, layer in enumerate(model.layers) if isinstance(layer, nn.BatchNorm2d)
    ]


def test_a_convolution_starts_as_the_identity_of_its_inputs() -> None:
    model = create_model("speedrun", num_classes=10, width_mult=0.5)
    convolutions = [layer for layer in model.layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 6
    for convolution in convolutions:
        images = torch.randn(2, convolution.in_channels, 8, 8)
        same = min(convolution.in_channels, convolution.out_channels)
        torch.testing.assert_close(convolution(images)[:, :same], images[:, :same])


def test_a_run_shows_it_the_training_images(tmp_path: Path) -> None:
    words = "--dataset digits --model speedrun --width-mult 0.1 --epochs 1 --no-tensorboard --amp off --out-dir"
    run = build(parse([*words.split(), str(tmp_path / "run")]), Ranks(), CPU)
    images = torch.from_numpy(run.dataset.train.images).permute(0, 3, 1, 2).float() / 255
    rows = torch.linspace(0, len(images) - 1, min(5000, len(images)), dtype=torch.float64).long()
    expected = whitening_kernels((images[rows] - run.dataset.mean[0]) / run.dataset.std[0], 2)
    torch.testing.assert_close(run.trainer.components.network.whiten.weight[:4], 1.702 * expected)


def test_the_activation_is_gelus_approximation() -> None:
    """The network is the one with x sigmoid(1.702 x) behind plain kernels and norms."""
    torch.manual_seed(0)
    model = create_model("speedrun", num_classes=10, width_mult=0.25).train()
    model.init_from_data(torch.randn(64, 3, 32, 32))
    images = torch.randn(32, 3, 32, 32)
    found = model(images)
    x = nn.functional.conv2d(images, model.whiten.weight / 1.702)
    for layer in model.layers:
        if isinstance(layer, nn.SiLU):
            x = x * torch.sigmoid(1.702 * x)
        elif isinstance(layer, nn.BatchNorm2d):
            x = nn.functional.batch_norm(x, None, None, training=True)
        else:
            x = layer(x)
    torch.testing.assert_close(found, model.head(x) / (0.48 * x.shape[1]), rtol=1e-4, atol=1e-4)


def test_its_batch_norm_is_torchs_but_for_the_count() -> None:
    ours, theirs = UncountedBatchNorm(4, momentum=0.4), nn.BatchNorm2d(4, momentum=0.4)
    for _ in range(3):
        images = torch.randn(6, 4, 5, 5)
        assert torch.equal(ours(images), theirs(images))
    counted = theirs.num_batches_tracked
    assert counted is not None and ours.num_batches_tracked == 0
    counted.zero_()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    ours.momentum = None  # a plain mean, for which SWA counts
    ours(torch.randn(6, 4, 5, 5))
    assert ours.num_batches_tracked == 1
    assert synchronise(create_model("speedrun", num_classes=10, width_mult=0.1)) == 6
