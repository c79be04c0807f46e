"""The models by name: our own, any classification model of torchvision, and yours as package.module:function.

Our own models are module classes that are listed in `_OWN` below. Where torchvision has a model of the same name, the
name means ours, and torchvision's is `torchvision:NAME`. torchvision is imported only when one of its names is
asked for: its import costs seconds on every rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.config.options import ModelOptions
from ddp_train.config.user_function import load_function
from ddp_train.data.pipeline.loader import ImageReader
from ddp_train.data.sources.samples import Dataset
from ddp_train.models import trial
from ddp_train.models.blocks import ImageShape, Residual
from ddp_train.models.cnn import PowerCifarNet, SmallCifarNet
from ddp_train.models.resnet import ResidualCifarNet, ResNet18, WideResNet
from ddp_train.models.speedrun import SpeedrunNet
from ddp_train.models.vit import VisionTransformer

__all__ = ["Residual", "create_from_options", "create_model", "init_from_data", "names", "parameter_count"]

TORCHVISION = "torchvision:"
_SHOWN = 5000
"""Images that `init_from_data` shows; evenly spread over the training set, which may be sorted by class."""

# Name -> module class, and which of the options of `create_model` it takes.
_OWN: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "small": (SmallCifarNet, ("dropout",)),
    "power": (PowerCifarNet, ("width_mult", "dropout")),
    "residual": (ResidualCifarNet, ("width_mult", "dropout")),
    "wideresnet": (WideResNet, ("width_mult", "n_layers", "dropout")),
    "resnet18": (ResNet18, ("width_mult", "dropout")),
    "speedrun": (SpeedrunNet, ("width_mult", "n_layers", "dropout")),
    "vit": (VisionTransformer, ("hidden_dim", "n_layers", "n_heads", "dropout", "attention")),
}


def names() -> tuple[str, ...]:
    """The names of our own models; torchvision's classification names are accepted beside them."""
    return tuple(_OWN)


def create_model(
    name: str,
    *,
    num_classes: int,
    image_shape: ImageShape = (3, 32, 32),
    width_mult: float | None = None,
    dropout: float | None = None,
    hidden_dim: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    attention: Literal["sdpa", "chunked"] | None = None,
) -> nn.Module:
    """A freshly initialised model: images float32 [N, C, H, W] to logits [N, num_classes].

    `image_shape` is (C, H, W). None is the model's own default (dropout 0.0 is off); options that a model does not
    take are ignored. Weights come from torch's global generator: seed it first. Raises UserError for an unknown name, a
    value out of range, and images that the model cannot take.
    """
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise UserError(f"--dropout {dropout}: a probability of at least 0 and below 1 is needed")
    if width_mult is not None and not (math.isfinite(width_mult) and int(64 * width_mult) >= 1):
        raise UserError(f"--width-mult {width_mult}: a number of at least {1 / 64} is needed")
    if name in _OWN:
        options: dict[str, object] = {"width_mult": width_mult, "dropout": dropout, "hidden_dim": hidden_dim}
        options |= {"n_layers": n_layers, "n_heads": n_heads, "attention": attention}
        make, takes = _OWN[name]
        return make(num_classes, image_shape, **{key: options[key] for key in takes if options[key] is not None})
    if is_users(name):
        function = load_function("--model", name, num_classes=..., image_shape=...)
        with naming(name):
            network = trial.reporting(lambda: function(num_classes=num_classes, image_shape=image_shape))
        if not isinstance(network, nn.Module):
            raise UserError(f"--model {name}: returned a {type(network).__name__}, not a torch.nn.Module")
        return network

    from ddp_train.models import torchvision_models  # here, not above: imports torchvision

    if (theirs := name.removeprefix(TORCHVISION)) in torchvision_models.names():
        return torchvision_models.create(theirs, num_classes, image_shape, dropout)
    close = difflib.get_close_matches(name.lower(), sorted({*_OWN, *torchvision_models.names()}), n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
        f"--model {name} is not known: {hint}Accepted are {', '.join(_OWN)}, torchvision's classification models by "
        "name, such as resnet34 or torchvision:resnet18, and package.module:function"
    )


def create_from_options(
    options: ModelOptions, num_classes: int, image_shape: ImageShape, device: torch.device
) -> nn.Module:
    """The model that `options` describe, on `device` in their memory layout. Errors: those of `create_model`, and
    UserError for a user's network that cannot be trained (see trial.py)."""
    network = create_model(
        options.model or "small",
        num_classes=num_classes,
        image_shape=image_shape,
        width_mult=options.width_mult,
        dropout=options.dropout,
        hidden_dim=options.hidden_dim,
        n_layers=options.n_layers,
        n_heads=options.n_heads,
        attention=options.attention,
    )
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    if not is_users(name := options.model or "small"):
        if options.weights == "imagenet" and hasattr(network, "transform_input"):
            # googlenet and inception_v3: these weights are for images of another scale.
            network.transform_input = True  # type: ignore[assignment]
        return network.to(device, memory_format=layout)  # type: ignore[call-overload, no-any-return]
    with naming(name):
        trial.check_parameters(network)
        if any(tensor.ndim == 5 for tensor in (*network.parameters(), *network.buffers())):
            layout = torch.contiguous_format  # torch refuses channels last for five dimensions (Conv3d)
        network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        trial.check_outputs(network, num_classes, image_shape, device, channels_last=options.channels_last)
    return network


def is_users(name: str) -> bool:
    """Whether `--model name` names a user's own function."""
    return ":" in name and not name.startswith(TORCHVISION)


def without_gradient(
    name: str,
    network: nn.Module,
    image_shape: ImageShape,
    device: torch.device,
    *,
    passes: int = 1,
    channels_last: bool = True,
) -> tuple[str, ...]:
    """The trainable parameters of a user's network that get no gradient in each of the passes, or in some; none in
    models by name. Errors: UserError."""
    with naming(name):
        if not is_users(name):
            return ()
        return trial.without_gradient(network, image_shape, device, passes=passes, channels_last=channels_last)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the option that names a network in front of its UserErrors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--model {name}: {error}") from error.__cause__


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@runtime_checkable
class FromData(Protocol):
    """A network whose initial weights depend on the data."""

    def init_from_data(self, images: torch.Tensor) -> None:
        """images: float32 [n, C, H, W], normalised and not augmented, on the network's device."""


def init_from_data(network: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Show some training images to a network that is FromData: the same images on any number of ranks.

    Errors: UserError for an image file that cannot be read.
    """
    if not isinstance(network, FromData):
        return
    count = len(dataset.train)
    rows = np.linspace(0, count - 1, min(_SHOWN, count)).astype(np.int64)
    found, _, bad = ImageReader(dataset.train, dataset.image_shape[1:], "train")[rows.tolist()]
    if bad and dataset.on_bad_sample == "stop":
        raise UserError(str(bad[0]))
    images = found.to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    network.init_from_data((images - mean) / std)
