"""Progressive resizing (Howard 2018, "Training Imagenet in 3 hours for 25 minutes"): training on images that grow.

Effect: the early epochs cost a fraction (work grows as the square of the side), and a model that was trained small and
then large is often no worse. Cost: one interpolation of each batch. Evaluation is always at full size. The model has to
take images of any size; with --compile each size is compiled separately.

Whole batches are scaled down on the device, bilinearly and with antialiasing. The size depends on the epoch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.config.options import AugmentOptions
from ddp_train.technique import Context, Moment, Technique

GROWING_FRACTION = 0.8
STEP = 4
"""Pixels by which images grow at a time: fewer shapes to choose kernels for, or to compile."""


def create(context: Context) -> Technique:
    """Create the technique of `--progressive-resize START` and `--progressive-resize-end`, `...-epochs`, `...-stages`.

    Errors: UserError for sizes that the images do not have, and for a model that takes images of one size only.
    """
    options = context.config.augment
    start, own = options.progressive_resize, min(context.image_shape[1:])
    assert start is not None
    end = own if options.progressive_resize_end is None else options.progressive_resize_end
    if end > own:
        raise UserError(f"--progressive-resize-end {end}: the images have {own} pixels at their shorter side")
    if start > end:
        raise UserError(f"--progressive-resize {start}: above the size at the end, {end} pixels")
    resizing = _Resizing(start, end, own, growing_epochs(options, context.epochs), options.progressive_resize_stages)
    for side in sorted({start, end} - {own}):
        _try(context, resizing.shape(context.image_shape[1:], side))
    return Technique(name="progressive_resize", batch=resizing)


def growing_epochs(options: AugmentOptions, epochs: int) -> int:
    """The epochs of a run of `epochs` in which images grow."""
    if options.progressive_resize is None:
        return 0
    return options.progressive_resize_epochs or max(1, round(GROWING_FRACTION * epochs))


def side_in_epoch(epoch: int, start: int, end: int, growing: int, stages: int | None = None) -> int:
    """The shorter side in an epoch (from 0): `start` in the first, `end` from epoch `growing` on, between them a
    straight line in steps of 4 pixels.

    stages: the number of sizes; all but the last take equal parts of the `growing` epochs.
    """
    if epoch >= growing:
        return end
    grown = (end - start) * epoch / growing
    if stages is not None:
        grown = (end - start) * (epoch * (stages - 1) // growing) / (stages - 1)
    return min(end, start + STEP * int(grown / STEP + 0.5))


class _Resizing:
    def __init__(self, start: int, end: int, own: int, growing: int, stages: int | None = None) -> None:
        self._start, self._end, self._own, self._growing, self._stages = start, end, own, growing, stages

    def __call__(self, images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        side = side_in_epoch(moment.epoch, self._start, self._end, self._growing, self._stages)
        if side == self._own:
            return images, targets
        size = self.shape((images.shape[2], images.shape[3]), side)
        return nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True), targets

    def shape(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """Height and width with `side` as the shorter one."""
        return max(1, round(size[0] * side / self._own)), max(1, round(size[1] * side / self._own))


def _try(context: Context, size: tuple[int, int]) -> None:
    """Pass two images of this size through the network. Errors: UserError when it does not take them."""
    network, training = context.network, context.network.training
    images = torch.zeros((2, context.image_shape[0], *size), device=context.device)
    network.eval()  # leaves no trace in batch statistics
    try:
        with torch.no_grad():
            network(images)
    except Exception as error:  # whatever a model raises for a size that it does not take
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--progressive-resize: --model {context.config.model.model} takes images of one size only, or none as "
            f"small as {size[0]}x{size[1]} ({reason}); take one that pools globally, such as power or resnet18"
        ) from None
    finally:
        network.train(training)
