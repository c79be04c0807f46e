"""The models by name: our own, any classification model of torchvision, and yours as package.module:function.

A family of our own is one file with its module class, added to `_OWN` below. torchvision is
imported only when one of its names is asked for: its import costs seconds on every rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

from torch import nn

from ddp_train.models import imported
from ddp_train.models.power import PowerCifarNet
from ddp_train.models.shape import ImageShape
from ddp_train.models.small import SmallCifarNet
from ddp_train.options import UserError

__all__ = ["ImageShape", "PowerCifarNet", "SmallCifarNet", "create_model", "names", "parameter_count"]

_OWN: dict[str, Callable[..., nn.Module]] = {
    "small": lambda classes, shape, width, dropout: SmallCifarNet(classes, shape, dropout=dropout or 0.0),
    "power": lambda classes, shape, width, dropout: PowerCifarNet(
        classes, shape, width_mult=width, dropout=0.5 if dropout is None else dropout
    ),
}


def names() -> tuple[str, ...]:
    """The names of our own models; torchvision's classification names are accepted beside them."""
    return tuple(_OWN)


def create_model(
    name: str,
    *,
    num_classes: int,
    image_shape: ImageShape = (3, 32, 32),
    width_mult: float = 1.0,
    dropout: float | None = None,
) -> nn.Module:
    """A freshly initialised model: images float32 [N, C, H, W] to logits [N, num_classes].

    `image_shape` is (C, H, W). `width_mult` counts for `power` alone. `dropout` None is the model's
    own default, 0.0 is off. Weights come from torch's global generator: seed it first. Raises UserError for an unknown
    name, a value out of range, and images smaller than the model's pooling can take.
    """
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise UserError(f"--dropout {dropout}: a probability of at least 0 and below 1 is needed")
    if not (math.isfinite(width_mult) and int(64 * width_mult) >= 1):
        raise UserError(f"--width-mult {width_mult}: a number of at least {1 / 64} is needed")
    if ":" in name:
        return imported.create(name, num_classes, image_shape)
    if name in _OWN:
        return _OWN[name](num_classes, image_shape, width_mult, dropout)

    from ddp_train.models import torchvision_models  # here, not above: imports torchvision

    if name in torchvision_models.names():
        return torchvision_models.create(name, num_classes, image_shape, dropout)
    raise UserError(_unknown(name, torchvision_models.names()))


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _unknown(name: str, torchvision_names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name.lower(), [*_OWN, *torchvision_names], n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return (
        f"--model {name} is not known: {hint}Accepted are {', '.join(_OWN)}, "
        f"torchvision's classification models by name, such as resnet18, and package.module:function"
    )
