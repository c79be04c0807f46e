"""The model registry: shapes, sizes, initial loss, errors, and what is imported for it."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from ddp_core.errors import UserError
from ddp_train.models import create_model, names, parameter_count

_ROOT = Path(__file__).parents[3]


def test_small_has_about_1_2_million_parameters() -> None:
    # conv 32-64-128 of 3x3 (no bias) + batch norm + fully connected 2048-512-10
    convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 128)
    expected = convolutions + 2 * (32 + 64 + 128) + (2048 * 512 + 512) + (512 * 10 + 10)
    assert parameter_count(create_model("small", num_classes=10)) == expected == 1_147_690


@pytest.mark.parametrize(("width", "first"), [(0.25, 16), (1.0, 64), (1.51, 96), (2.5, 160)])
def test_power_doubles_its_channels_from_the_scaled_64(width: float, first: int) -> None:
    model = create_model("power", num_classes=10, width_mult=width)
    channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert channels == [first, first, 2 * first, 2 * first, 4 * first, 4 * first, 8 * first, 8 * first]
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 3


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("small", (3, 32, 32)),
        ("small", (1, 8, 8)),
        ("small", (3, 37, 50)),
        ("power", (3, 32, 32)),
        ("power", (1, 16, 24)),
        ("residual", (3, 32, 32)),
        ("residual", (1, 8, 8)),
        ("wideresnet", (3, 32, 32)),
        ("wideresnet", (1, 11, 8)),
        ("resnet18", (3, 32, 32)),
        ("resnet18", (1, 8, 9)),
        ("speedrun", (3, 32, 32)),
        ("speedrun", (1, 9, 12)),
        ("vit", (3, 32, 32)),
        ("vit", (1, 8, 12)),
        ("torchvision:resnet18", (3, 32, 32)),
        ("mobilenet_v3_small", (1, 32, 32)),
        ("regnet_x_400mf", (3, 32, 32)),
        ("googlenet", (3, 32, 32)),
    ],
)
def test_every_parameter_gets_a_gradient(name: str, image_shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, image_shape=image_shape, width_mult=0.25)
    assert model.training
    logits = model(torch.randn(4, *image_shape))
    assert logits.shape == (4, 7)
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 6])).backward()
    without = [path for path, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_own_models_start_at_the_loss_of_a_guess(name: str, classes: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes, width_mult=0.5)
    labels = torch.arange(64) % classes
    with torch.no_grad():
        loss = functional.cross_entropy(model(torch.randn(64, 3, 32, 32)), labels)
    assert float(loss) == pytest.approx(math.log(classes), rel=0.08)


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return create_model("small", num_classes=10, image_shape=(1, 8, 8)).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def _dropouts(model: nn.Module) -> set[float]:
    return {module.p for module in model.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))}


def test_dropout_is_the_models_own_or_what_is_asked_for() -> None:
    assert _dropouts(create_model("small", num_classes=10)) == {0.0}
    assert _dropouts(create_model("small", num_classes=10, dropout=0.3)) == {0.3}
    assert _dropouts(create_model("power", num_classes=10, width_mult=0.1)) == {0.5, 0.1}
    assert _dropouts(create_model("power", num_classes=10, width_mult=0.1, dropout=0.0)) == {0.0}
    for name in ("residual", "wideresnet", "resnet18", "speedrun", "vit"):
        assert _dropouts(create_model(name, num_classes=10, width_mult=0.1)) == {0.0}
        assert _dropouts(create_model(name, num_classes=10, width_mult=0.1, dropout=0.3)) == {0.3}
    assert _dropouts(create_model("mobilenet_v3_small", num_classes=10)) == {0.2}
    assert _dropouts(create_model("mobilenet_v3_small", num_classes=10, dropout=0.0)) == {0.0}


def test_power_drops_whole_channels_in_training_alone() -> None:
    torch.manual_seed(0)
    model = create_model("power", num_classes=10, width_mult=0.25, dropout=0.5)
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "small", "image_shape": (3, 7, 32)}, "--model small cannot take 7x32 images: at least 8x8 pixels"),
        ({"name": "power", "image_shape": (1, 8, 8)}, "--model power cannot take 8x8 images: at least 16x16 pixels"),
        ({"name": "alexnet"}, "--model alexnet cannot take 32x32 images: 63x63 pixels is the next size"),
        ({"name": "vit_b_32", "image_shape": (3, 40, 40)}, "cannot take 40x40 images: 64x64 pixels is the next size"),
        ({"name": "torchvision:resnet18", "dropout": 0.1}, "--dropout 0.1: resnet18 has no dropout layers"),
        ({"name": "residual", "image_shape": (3, 7, 32)}, "--model residual cannot take 7x32 images: at least 8x8"),
        ({"name": "vit", "image_shape": (3, 30, 32)}, "--model vit cuts images into patches of 4x4: 30x32 is no"),
        (
            {"name": "vit", "hidden_dim": 96, "n_heads": 5},
            "--hidden-dim 96: it must be a multiple of 4 and",
        ),
        ({"name": "wideresnet", "n_layers": 12}, "--n-layers 12: wideresnet has 6 n + 4 of them: 10, 16, 22"),
        ({"name": "small", "dropout": 1.0}, "--dropout 1.0: a probability"),
        ({"name": "small", "dropout": float("nan")}, "--dropout nan: a probability"),
        ({"name": "power", "width_mult": 0.01}, "--width-mult 0.01: a number of at least"),
        ({"name": "power", "width_mult": float("inf")}, "--width-mult inf: a number of at least"),
        ({"name": "resnet_18"}, "--model resnet_18 is not known: did you mean resnet18 or"),
        ({"name": "Small"}, "did you mean small"),
        (
            {"name": "xyzzy"},
            "not known: Accepted are small, power, residual, wideresnet, resnet18, speedrun, vit, torchvision",
        ),
    ],
)
def test_a_users_mistake_is_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        create_model(num_classes=10, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_models_import_no_torchvision() -> None:
    code = (
        "import sys\n"
        "from ddp_train.models import create_model, names\n"
        "[create_model(name, num_classes=10, width_mult=0.1) for name in names()]\n"
        "assert 'torchvision' not in sys.modules, 'own models'\n"
        "create_model('squeezenet1_1', num_classes=10)\n"
        "assert 'torchvision' in sys.modules, 'the check itself'\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["mnasnet0_5", "mobilenet_v3_small", "torchvision:resnet18"])
def test_batch_norm_settles_within_a_short_run(name: str) -> None:
    """torchvision's own momentum may be for runs of a million steps."""
    network = create_model(name, num_classes=10, image_shape=(3, 32, 32))
    assert {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, image_shape):\n"
        "    channels, height, width = image_shape\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))\n"
        "def no_net(num_classes, image_shape):\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    network = create_model("my_models:net", num_classes=7, image_shape=(3, 8, 8))
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    for name, words in (
        ("my_models:absent", "no function 'absent'"),
        ("no_such_module:net", "no module named 'no_such_module'"),
        ("./my_models.py:net", "is a path"),
        ("my_models:no_net", "returned a int"),
        (":net", "no function"),
    ):
        with pytest.raises(UserError, match=words):
            create_model(name, num_classes=7, image_shape=(3, 8, 8))


@pytest.mark.parametrize("error", ["ValueError", "AttributeError"])
def test_an_error_inside_ones_own_module_is_shown(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"broken_{error}.py").write_text(f"def net(num_classes, image_shape): ...\nraise {error}('mine')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, AttributeError), match="mine"):
        create_model(f"broken_{error}:net", num_classes=7, image_shape=(3, 8, 8))


@pytest.mark.parametrize("name", ["small", "power"])
def test_pooling_before_relu_is_pooling_after_it_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    ours = create_model(name, num_classes=10, **({} if name == "small" else {"width_mult": 0.125, "dropout": 0.0}))
    other = copy.deepcopy(ours)
    swapped = 0
    for layers in [module for module in other.modules() if isinstance(module, nn.Sequential)]:
        for at in range(len(layers) - 1):
            if isinstance(layers[at], nn.MaxPool2d) and isinstance(layers[at + 1], nn.ReLU):
                layers[at], layers[at + 1] = layers[at + 1], layers[at]
                swapped += 1
    assert swapped == (3 if name == "small" else 4)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    losses = [functional.cross_entropy(network(images), labels) for network in (ours, other)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for one, two in zip(ours.parameters(), other.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        assert torch.equal(one.grad, two.grad)
