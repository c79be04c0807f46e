"""Augmentation of whole batches: uint8 images in, normalised images out, in float32 or in autocast's dtype.

A batch is one gather of windows from padded images (the crop), a mirrored copy chosen by a mask (the flip), a
rectangle of the mean colour (random erasing: Zhong et al., arXiv 1708.04896, with torchvision's default
probability, areas and aspect ratios), and the normalisation. Further operations come between flip and erasing. All
draws are keyed by (seed, epoch, sample) and made of integers, so a sample looks the same in an epoch whatever batch,
rank or kind of device it falls on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddp_train.data.augment import keyed_random
from ddp_train.data.augment.crop import CROPS
from ddp_train.data.augment.operations import Operation, box_sizes
from ddp_train.data.sources.samples import Padding

Level = Literal["none", "minimal", "balanced", "heavy"]
Flip = Literal["random", "alternating", "off"]

_WORDS = 7  # y, x, flip; erase or not, rectangle, top, left
_ERASE_PROBABILITY = 0.5
_ERASE_AREA = (0.02, 0.33)
_ERASE_RATIO = (0.3, 3.3)
_CHUNK = 1 << 18  # samples hashed at a time, so that an epoch of millions needs no gigabytes


@dataclass(frozen=True)
class Draws:
    """The random choices for n samples; a field is None where the level does not use it."""

    shift: Tensor | None
    """Offset of the crop in pixels of the padded image, row by row: int64 [n]."""
    flip: Tensor | None
    """Whether the image is mirrored: bool [n]."""
    box: Tensor | None
    """Erased rectangle as top, bottom, left, right (bottom and right exclusive; all 0: none): int16 [n, 4]."""

    further: tuple[Tensor, ...] = ()
    """The draws of each further operation: [n, ...] each."""

    @property
    def fields(self) -> tuple[Tensor | None, ...]:
        """All draws, in a fixed order."""
        return self.shift, self.flip, self.box, *self.further

    def __getitem__(self, part: slice) -> Draws:
        return _draws([None if field is None else field[part] for field in self.fields])


class Augmentation:
    """The augmentation of one dataset on one device.

    level: none, minimal (flip), balanced (crop and flip) or heavy (crop, flip and erasing); there is no
    flip where flip_ok is False. largest_shift: pixels by which images are padded for the crop (None: an eighth of
    their shorter side, which is 4 for CIFAR-10; 0: no crop). flip: off, random, or alternating (Keller Jordan 2024,
    arXiv:2404.00498): drawn in the first epoch, then toggled in each epoch, so that two epochs show both sides (None:
    random where the level has it). erasing: its probability (None: by level). cutout: side of a square that replaces
    the rectangles, in every image (0: none). further: operations between flip and erasing.
    image_shape: (channels, height, width). mean, std: per channel, of images scaled to [0, 1]. channels_last: the
    memory order of the result.
    """

    def __init__(
        self,
        level: Level,
        *,
        image_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        flip_ok: bool = True,
        padding: Padding = "reflect",
        largest_shift: int | None = None,
        flip: Flip | None = None,
        erasing: float | None = None,
        cutout: int = 0,
        further: Sequence[Operation] = (),
        channels_last: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.channels, self.height, self.width = image_shape
        self.device, self.seed, self.padding = torch.device(device), seed, padding
        shift = max(1, min(self.height, self.width) // 8) if largest_shift is None else largest_shift
        self.pad_pixels = shift if level in ("balanced", "heavy") else 0
        self.flips = flip_ok and (level != "none" if flip is None else flip != "off")
        self.alternates = flip == "alternating"
        probability = (_ERASE_PROBABILITY if level == "heavy" else 0.0) if erasing is None else erasing
        probability = 1.0 if cutout else probability
        self.erases = probability > 0
        self.further = tuple(further)
        self._erased = int(probability * (1 << 20))
        pixels = self.height * self.width
        self.channels_last = channels_last
        self.dtype = torch.float32
        """Dtype of the result, which is computed in float32 and rounded once."""
        self._crop = CROPS["windows"]
        self._mean = self._of_pixels(torch.tensor(mean, dtype=torch.float64) * 255, pixels)
        self._factor = self._of_pixels(1 / (torch.tensor(std, dtype=torch.float64) * 255), pixels)
        self._fill = (torch.tensor(mean) * 255).round().to(torch.uint8).repeat(self.width).to(self.device)
        self._sides = torch.tensor([self.height, self.width]).to(self.device)
        boxes = box_sizes(self.height, self.width, _ERASE_AREA, _ERASE_RATIO)
        self._boxes = (torch.tensor([[cutout, cutout]]) if cutout else boxes).to(self.device)
        self._rows = torch.arange(self.height, dtype=torch.int16, device=self.device)
        self._padded = None
        if self.pad_pixels and padding != "zero":
            rows, columns = _reflected(self.height, shift), _reflected(self.width, shift)
            self._padded = (rows[:, None] * self.width + columns).flatten().to(self.device)
        """For each pixel of a padded image, the index of the pixel that it copies, counted row by row."""
        self._columns = torch.arange(self.width, dtype=torch.int16).repeat_interleave(self.channels).to(self.device)

    def _of_pixels(self, of_channels: Tensor, pixels: int) -> Tensor:
        """One number per channel [C], repeated for each value of an image in its memory order: float32 [C * H * W]."""
        values = of_channels.float()
        values = values.repeat(pixels) if self.channels_last else values.repeat_interleave(pixels)
        return values.to(self.device)

    def __call__(self, images: Tensor, samples: Tensor, epoch: int) -> Tensor:
        """images: uint8 [n, H, W, C]; samples: their indices in the training set, int64 [n]; both on the device.

        Returns [n, C, H, W] as `normalise` does.
        """
        rows = torch.arange(len(images), dtype=torch.int64, device=self.device)
        return self.apply(self.pad(images), rows, self.draw(samples, epoch))

    def pad(self, images: Tensor) -> Tensor:
        """uint8 [n, H, W, C] -> [n, H + 2 pad, W + 2 pad, C]; the images themselves where the level needs no border."""
        pad = self.pad_pixels
        if pad == 0:
            return images
        if self._padded is None:
            return torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
        # One gather over whole pixels; gathering rows and then columns takes several times as long.
        shape = (len(images), self.height + 2 * pad, self.width + 2 * pad, self.channels)
        return images.flatten(1, 2).index_select(1, self._padded).view(shape)

    def draw(self, samples: Tensor, epoch: int) -> Draws:
        """The draws of these samples in an epoch (counted from 0). samples: int64 [n] on the device."""
        starts = range(0, max(1, len(samples)), _CHUNK)
        parts = [self._draw(samples[first : first + _CHUNK], epoch).fields for first in starts]
        joined: list[Tensor | None] = []
        for same in zip(*parts, strict=True):
            tensors = [field for field in same if field is not None]
            joined.append(torch.cat(tensors) if tensors else None)
        return _draws(joined)

    def _draw(self, samples: Tensor, epoch: int) -> Draws:
        """The draws of these samples in an epoch, by keys alone."""
        count = _WORDS + sum(operation.words for operation in self.further)
        words = keyed_random.words(keyed_random.key(self.seed, epoch, keyed_random.AUGMENTATION), samples, count)
        shift = flip = box = None
        if self.pad_pixels:
            offsets = keyed_random.integers(words[:, :2], 2 * self.pad_pixels + 1)
            shift = offsets[:, 0] * (self.width + 2 * self.pad_pixels) + offsets[:, 1]
        if self.flips:
            mirrored = keyed_random.integers(words[:, 2], 2)
            if self.alternates:  # drawn in the first epoch, then toggled in each epoch
                first_epoch = keyed_random.key(self.seed, 0, keyed_random.AUGMENTATION)
                mirrored = (keyed_random.integers(keyed_random.words(first_epoch, samples, 3)[:, 2], 2) + epoch) & 1
            flip = mirrored.bool()
        if self.erases:
            size = self._boxes.index_select(0, keyed_random.integers(words[:, 4], len(self._boxes)))
            corner = keyed_random.integers(words[:, 5:7], self._sides + 1 - size)
            chosen = keyed_random.integers(words[:, 3:4], 1 << 20) < self._erased
            box = (torch.stack([corner, corner + size], dim=2).flatten(1) * chosen).to(torch.int16)
        further, first = [], _WORDS
        for operation in self.further:
            further.append(operation.draw(words[:, first : first + operation.words]))
            first += operation.words
        return Draws(shift, flip, box, tuple(further))

    def apply(self, padded: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        """Augmented and normalised images of some rows of a padded array.

        padded: uint8 [m, H + 2 pad, W + 2 pad, C], contiguous; rows: int64 [n], which of them; draws: of n samples.
        Returns [n, C, H, W] as `normalise` does.
        """
        if len(rows) == 0:
            return self.normalise(padded.new_empty((0, self.height, self.width, self.channels)))
        images = self._crop(padded, rows, draws.shift, self.height, self.width)
        if draws.flip is not None:
            mirrored = images.view(-1, self.height, self.width, self.channels).flip(2).view_as(images)
            if self.device.type == "cuda":
                images = torch.where(draws.flip[:, None, None], mirrored, images)
            else:  # on a CPU, bit masks of 255 or 0 are faster
                images ^= (images ^ mirrored) & draws.flip.view(torch.uint8).neg()[:, None, None]
        if self.further:
            images = images.view(-1, self.height, self.width, self.channels)
            for operation, drawn in zip(self.further, draws.further, strict=True):
                images = operation.apply(images, drawn)
            images = images.contiguous().flatten(2)
        if draws.box is not None:
            images ^= (images ^ self._fill) & self._erase_mask(draws.box)
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [n, H, W, C], or with dimensions flattened -> `dtype` [n, C, H, W], in the order of `channels_last`."""
        if not self.channels_last:  # in the same pass as the conversion to float
            images = images.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)
            images = images.to(torch.float32, memory_format=torch.contiguous_format)
        # Two separately rounded steps: a fused one could round differently at the end of a batch.
        flat = images.flatten(1)
        # A GPU's kernel converts dtypes as it reads and writes; on a CPU that would take an extra pass.
        values = torch.sub(flat, self._mean) if self.device.type == "cuda" else flat.float().sub_(self._mean)
        out = values if self.dtype == torch.float32 else torch.empty_like(values, dtype=self.dtype)
        values = torch.mul(values, self._factor, out=out)
        if not self.channels_last:
            return values.view(-1, self.channels, self.height, self.width)
        return values.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def _erase_mask(self, box: Tensor) -> Tensor:
        """uint8 [n, H, W * C]: 255 inside the rectangle."""
        top, bottom, left, right = (edge.unsqueeze(1) for edge in box.unbind(1))
        rows = (self._rows >= top) & (self._rows < bottom)
        columns = (self._columns >= left) & (self._columns < right)
        return (rows.to(torch.uint8) * 255).unsqueeze(2) * columns.to(torch.uint8).unsqueeze(1)


def _draws(fields: Sequence[Tensor | None]) -> Draws:
    """The inverse of Draws.fields."""
    shift, flip, box, *further = fields
    return Draws(shift, flip, box, tuple(field for field in further if field is not None))


def _reflected(side: int, pad: int) -> Tensor:
    """Source positions of a side padded by reflection about its edge pixels: int64 [side + 2 pad]."""
    positions = torch.arange(-pad, side + pad).abs()
    return torch.where(positions >= side, 2 * (side - 1) - positions, positions).clamp_(0)
