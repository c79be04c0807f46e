"""Any classification model of torchvision by name, untrained, fitted to the images at hand."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn

from ddp_core.errors import UserError
from ddp_train.models.blocks import ImageShape

_REFUSALS = (RuntimeError, ValueError, AssertionError)  # what models raise for images that they cannot take
_LARGEST_SIDE = 512
LEAST_MOMENTUM = 0.1
"""Least momentum of batch norm's running statistics: torch's default. mnasnet has 0.0003, mobilenet_v3 and the larger
efficientnets 0.01, for recipes of a million steps: after a few hundred they would still be near the initial values."""


def names() -> tuple[str, ...]:
    """The names of torchvision's classification models."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def create(name: str, num_classes: int, image_shape: ImageShape, dropout: float | None) -> nn.Module:
    """Model `name` without trained weights, for images of `image_shape` (C, H, W).

    `dropout` sets every dropout layer of the model. Raises UserError when the model has none to set,
    and for images that it cannot take, with a larger size that it can.
    """
    try:
        model = _build(name, num_classes, image_shape)
        _dry_run(model, image_shape)
    except _REFUSALS as error:
        remedy = _remedy(name, num_classes, image_shape, error)
        raise UserError(f"--model {name} cannot take {image_shape[1]}x{image_shape[2]} images: {remedy}") from error
    if dropout is not None:
        layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        if dropout > 0 and not layers:
            raise UserError(f"--dropout {dropout}: {name} has no dropout layers; leave the option out")
        for layer in layers:
            layer.p = dropout
    return model


def _build(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """torchvision's model for these classes and images, freshly initialised."""
    channels, height, width = image_shape
    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}  # auxiliary heads would change the output's type
    elif name.startswith("vit_"):
        options = {"image_size": height}
    elif name == "maxvit_t":
        options = {"input_size": (height, width)}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)
    if channels != 3:  # the first convolution gets as many input channels, freshly initialised
        path, old = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
        window: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
        new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **window)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(path, new)
    return model


def _dry_run(model: nn.Module, image_shape: ImageShape) -> None:
    """Pass two images through by shapes alone (meta device), so that a size too small shows before training."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    model.eval()  # batch norm on a 1x1 map refuses to train on one image, not on a batch
    with torch.no_grad():
        torch.func.functional_call(model, shapes, (torch.empty(2, *image_shape, device="meta"),))
    model.train()


def _remedy(name: str, num_classes: int, image_shape: ImageShape, refusal: Exception) -> str:
    """The smallest larger square image that the model takes, else torch's own reason."""
    channels, height, width = image_shape
    for side in range(max(height, width) + 1, _LARGEST_SIDE + 1):
        try:
            with torch.device("meta"):
                _dry_run(_build(name, num_classes, (channels, side, side)), (channels, side, side))
        except _REFUSALS:
            continue
        return f"{side}x{side} pixels is the next size that it takes"
    return (str(refusal).strip() or type(refusal).__name__).splitlines()[0]
