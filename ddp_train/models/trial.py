"""A user's network is tried before the run: what it takes and returns, and which parameters get a gradient.

A dummy batch of two images in training mode, one image in evaluation mode: the smallest that a run may have. It leaves
no trace in weights, buffers or random state.
"""

from __future__ import annotations

import copy
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ddp_core.errors import UserError
from ddp_train.models.blocks import ImageShape

PASSES = 16
"""Passes that show which layers a network leaves out now and then: one that it skips with a probability of 0.2 is
noticed in 96 of 100 trials, one of several such layers almost surely."""
PASSES_S = 2.0
"""Once they have taken so many seconds, only the one in evaluation mode follows: a large network on a CPU."""
SOMETIMES = " (in some passes)"
"""Follows the name of a parameter that only some of the passes do not reach."""


def check_parameters(network: nn.Module) -> None:
    """Refuse parameters that cannot be trained here. Errors: UserError."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise UserError(f"{name} is lazy, without a shape: give its layer the sizes, or pass a batch through it")
        if tensor.is_meta:
            raise UserError(f"{name} is on the meta device, without values: make the network on the CPU")
        if tensor.is_complex() and isinstance(tensor, nn.Parameter):
            raise UserError(
                f"{name} is complex, which the optimizers here do not train: hold it as two real parameters"
            )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("no parameter is to be trained (requires_grad): to keep some of them as they are use --freeze")


def check_outputs(
    network: nn.Module, classes: int, image_shape: ImageShape, device: torch.device, *, channels_last: bool = True
) -> None:
    """Refuse a network that does not give logits [N, classes] for images [N, *image_shape]. Errors: UserError.

    If the output is a dictionary or an object, such as Hugging Face's ModelOutput, its field `logits` is used.
    """
    with _tried(network, device) as tried, torch.no_grad():
        for images in (_images(count, image_shape, device, channels_last) for count in (2, 1)):
            output: object = _pass(tried.train(len(images) > 1), images)
            if not isinstance(output, Tensor) and isinstance(_logits(output), Tensor):
                for module in {network, tried}:
                    module.register_forward_hook(lambda module, inputs, output: _logits(output))
                output = _logits(output)
            wanted = (
                f"logits of shape [{len(images)}, {classes}] are needed: a number for each of the {classes} classes"
            )
            if not isinstance(output, Tensor):
                keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
                raise UserError(f"returns a {type(output).__name__}{keys}; {wanted}, or a field logits with them")
            if output.shape != (len(images), classes):
                raise UserError(f"returns shape {list(output.shape)} for {list(images.shape)}; {wanted}")
            if not output.is_floating_point():
                raise UserError(f"returns {str(output.dtype).removeprefix('torch.')}; logits are real numbers")


def without_gradient(
    network: nn.Module, image_shape: ImageShape, device: torch.device, *, passes: int = 1, channels_last: bool = True
) -> tuple[str, ...]:
    """The trainable parameters that a backward pass does not reach. Errors: UserError where it reaches none.

    passes: the last of several is in evaluation mode, in which a rank without samples takes part in a step.
    """
    missed: Counter[str] = Counter()
    with _tried(network, device) as tried, torch.enable_grad():
        end, made, last = time.monotonic() + PASSES_S, 0, False
        while not last:
            last, made = (made > 0 and time.monotonic() > end) or made + 1 >= passes, made + 1
            images = _images(2, image_shape, device, channels_last)
            output = _pass(tried.train(made == 1 or not last), images)
            if not output.requires_grad:
                raise UserError("its logits do not depend on a trainable parameter (detach, no_grad?)")
            reporting(lambda output=output: output.float().sum().backward())
            sparse = (n for n, p in tried.named_parameters() if p.grad is not None and p.grad.layout != torch.strided)
            if (name := next(sparse, None)) is not None:
                raise UserError(f"{name} gets a sparse gradient, which the optimizers here do not take: sparse=False")
            # A forward that was assigned to the network (`network.forward = function`) may use the original's.
            both = zip(network.named_parameters(), tried.parameters(), strict=True)
            missed.update(n for (n, p), q in both if p.requires_grad and p.grad is None and q.grad is None)
            for one in (network, tried):
                one.zero_grad(set_to_none=True)
    return tuple(name if count == made else name + SOMETIMES for name, count in missed.items())


def only_convolves(
    network: nn.Module, image_shape: ImageShape, device: torch.device, *, channels_last: bool = True
) -> bool:
    """Whether a network passes its images to convolutions and linear layers alone, for which autocast casts them: in
    evaluation and in training, where it may augment them itself."""
    images = _images(2, image_shape, device, channels_last)
    found: list[bool] = []
    with _tried(network, device) as tried:
        for training in (False, True):
            uses = _Uses(images)
            with torch.set_grad_enabled(training), uses:
                tried.train(training)(images)
            found.append(bool(uses.found) and all(function in _CASTING for function in uses.found))
    return all(found)


_CASTING = frozenset({torch.conv1d, torch.conv2d, torch.conv3d, nn.functional.linear})
_ASKING = frozenset({Tensor.size, Tensor.dim, Tensor.__len__, Tensor.shape.__get__, Tensor.ndim.__get__})  # type: ignore[attr-defined]
"""Functions whose results do not depend on a tensor's values or type."""


class _Uses(TorchFunctionMode):
    """Records the torch functions that are applied to `images`, in order."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self._images = images
        self.found: list[object] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        given += [one for several in given if isinstance(several, list | tuple) for one in several]
        if function not in _ASKING and any(one is self._images for one in given):
            self.found.append(function)
        return function(*args, **(kwargs or {}))


def _logits(output: object) -> Any:
    """The logits in a model's output."""
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)


def _images(count: int, image_shape: ImageShape, device: torch.device, channels_last: bool) -> Tensor:
    """Images as a pipeline hands them over: float32."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = image_shape
    images = torch.rand((count, height, width, channels), generator=generator).to(device).permute(0, 3, 1, 2)
    return images if channels_last else images.contiguous()


def _pass(network: nn.Module, images: Tensor) -> Any:
    """A forward pass; its errors name the shape of the images."""
    shape = " x ".join(map(str, images.shape[1:]))
    try:
        return reporting(lambda: network(images), f" for images of {shape} (image_shape; of a folder: --image-size)")
    except UserError as error:
        if "view size is not compatible" in str(error) and not images.is_contiguous():
            raise UserError(f"{error} Or add --no-channels-last") from error.__cause__
        raise


def refuse_order_of_chance(error: Exception) -> None:
    """Raise a UserError where `error` is about a layer for which torch has no deterministic implementation."""
    if isinstance(error, RuntimeError) and "deterministic implementation" in str(error):
        words = str(error).split(", but")[0]
        raise UserError(f"--reproducible: {words}; take another layer, or leave it out") from None


def reporting(function: Any, what: str = "") -> Any:
    """Call `function` and return its result. Errors: UserError, one line with the place of an error in user code."""
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception):
            refuse_order_of_chance(error)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames and frames[-1].filename != __file__ else ""
        reason = (str(error).strip().splitlines() or [""])[0]
        kind = type(error).__name__
        raise UserError(f"fails{what}: {place}{kind}: {reason}") from error


@contextmanager
def _tried(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """A copy to try, or the network itself where it cannot be copied, such as with torch's older weight_norm; buffers
    and generators are afterwards as before."""
    try:
        tried = copy.deepcopy(network)
    except Exception:
        tried = network
    modules = {module for one in (network, tried) for module in one.modules()}
    buffers = [(m, n, b, b.clone()) for m in modules for n, b in m._buffers.items() if b is not None]
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield tried
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer.copy_(value)
            for one in (network, tried):
                one.zero_grad(set_to_none=True)
                one.train()
