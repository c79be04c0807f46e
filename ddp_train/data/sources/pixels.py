"""Converts any image file to RGB of 8 bits.

Images of more than 8 bits do not say which value is white: 12-bit data are usually stored in 16 bits, and floats may
end at 1 or anywhere. So a whole dataset has one pair of black and white, found from its least and greatest value (see
`levels_of`), and images keep their brightness relative to each other.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, ImageColor, ImageFile, PngImagePlugin

from ddp_core.errors import UserError

RULES = 5
"""Version of the decoder, part of the cache's keys: raise it when the same file gives other pixels."""
MAX_PIXELS = 200_000_000

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
# Numbers of EXIF and TIFF tags, and how to turn an image upright by the value of its orientation tag.
_ORIENTATION, _PHOTOMETRIC, _SAMPLE_FORMAT, _BITS, _PLANES = 274, 262, 339, 258, 284
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_LEVEL_OF_BITS = {"L;2": 85, "L;4": 17}
"""Form of grey -> its smallest step on a scale of 255."""
_DARKEST, _SMALL_FLOATS = 1 / 8, 128

Kind = Literal["integers", "floats"]
Levels = tuple[float, float]
"""The values that are black and white."""


@dataclass(frozen=True)
class Extent:
    """The least and the greatest value of an image of more than 8 bits."""

    kind: Kind
    least: float
    greatest: float


@dataclass(frozen=True)
class Reading:
    """How files are read, the same for all images of a dataset.

    resize: pixels to which the shorter side is scaled before the centre is cut out (None: as few as that needs).
    background: the colour behind transparent pixels. levels: by kind of image of more than 8 bits; for a kind that is
    missing, each file is scaled by its own levels.
    """

    background: str = "white"
    max_pixels: int = MAX_PIXELS
    levels: Mapping[str, Levels] = field(default_factory=dict)
    resize: int | None = None

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise UserError(f"--background takes a colour such as white or #ffffff, not {self.background}") from None


class Unreadable(Exception):
    """A file cannot be read as an image, or has changed. The message follows the file's name."""


def levels_of(extents: Iterable[Extent]) -> dict[str, Levels]:
    """Black and white by kind.

    Black is 0. White is the greatest number of 8, 10, 12, 14, 16 or more bits that is not below the greatest value. For
    floats up to 128 it is the next power of two, or 1 where the greatest is between 1/8 and 1. With negative values the
    two are those of a signed number, such as -32768 and 32767, and grey is 0.
    """
    by_kind: dict[Kind, tuple[float, float]] = {}
    for extent in extents:
        least, greatest = by_kind.get(extent.kind, (0.0, 0.0))
        by_kind[extent.kind] = min(least, extent.least), max(greatest, extent.greatest)
    return {kind: _levels(kind, *both) for kind, both in by_kind.items()}


def _levels(kind: Kind, least: float, greatest: float) -> Levels:
    """The values of black and white for images with this range."""
    size = max(-least, greatest)
    if kind == "floats" and size <= _SMALL_FLOATS:
        white = 1.0 if _DARKEST < size <= 1 or size == 0 else 2.0 ** math.ceil(math.log2(size))
        return (-white if least < 0 else 0.0), white
    if least < 0:
        bits = next(bits for bits in range(7, 1025) if -least <= 2.0**bits and greatest <= 2.0**bits - 1)
        return -(2.0**bits), 2.0**bits - 1
    return 0.0, next(2.0**bits - 1 for bits in (8, 10, 12, 14, *range(16, 1025)) if greatest <= 2.0**bits - 1)


@contextmanager
def opened(file: str | IO[bytes], reading: Reading) -> Iterator[Image.Image]:
    """The image in a file, not decoded yet; the first image of an animation.

    Errors: Unreadable for more than `max_pixels`, and what Pillow raises.
    """
    formats = _formats()
    # Pillow's own limit is a warning, or an error that cannot name our option.
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    # For one text or profile of a PNG it is 1 MiB, less than some editors write; all together may have 64 MiB.
    text, PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, thousands of times
            with Image.open(file, "r", formats) as image:
                if (count := image.width * image.height) > reading.max_pixels:
                    raise Unreadable(f"has {count:,} pixels, more than --max-pixels {reading.max_pixels}")
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before, text


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow reads, without EPS: Pillow passes EPS to Ghostscript, which runs programs in the
    file."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def is_sideways(image: Image.Image) -> bool:
    """Whether turning the image upright swaps width and height."""
    if image.format == "TIFF":  # Pillow has already turned it
        return False
    with suppress(Exception):  # damaged EXIF data
        return Image.Image.getexif(image).get(_ORIENTATION) in _SIDEWAYS
    return False


def as_rgb(image: Image.Image, reading: Reading) -> tuple[Image.Image, Extent | None]:
    """The image upright and in RGB, and its extent if it has more than 8 bits. Errors: as opened()."""
    form = _form(image)
    samples = _samples_of_16_bits(image, form)
    image.load()
    if form in _LEVEL_OF_BITS and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = key * _LEVEL_OF_BITS[form]  # Pillow compares it with the scaled levels
    orientation = None
    with suppress(Exception):  # damaged EXIF data
        orientation = image.getexif().get(_ORIENTATION)
    extent = None
    if samples is not None:
        rgb, extent = _from_deep_colour(samples, image, reading)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb, extent = _from_deep_grey(image, reading)
    elif image.mode == "LAB":
        rgb = _lab_to_rgb().apply(image)
    elif image.has_transparency_data:
        rgb = _laid_on(reading.background, image.convert("RGBA"))
    else:
        rgb = image.convert("RGB")
    return (rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb), extent


def _laid_on(background: str, image: Image.Image) -> Image.Image:
    """A transparent image on a background, as RGB."""
    ground = Image.new("RGBA", image.size, background)
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _from_deep_grey(image: Image.Image, reading: Reading) -> tuple[Image.Image, Extent]:
    """A grey image of more than 8 bits in RGB, and its extent. Errors: Unreadable for infinite values and NaN."""
    values: np.ndarray = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow's mode I is signed
    least, greatest = float(values.min()), float(values.max())
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise Unreadable("has pixels that are infinite or not a number")
    extent = Extent("floats" if image.mode == "F" else "integers", least, greatest)
    grey = _scaled(values, extent, reading)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0
        grey = 255 - grey
    rgb = Image.fromarray(grey).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb.paste(reading.background, mask=Image.fromarray(values == transparent))
    return rgb, extent


def _scaled(values: np.ndarray, extent: Extent, reading: Reading) -> np.ndarray:
    """Values as uint8, by the levels of the dataset or, where those are not known, of the file."""
    black, white = reading.levels.get(extent.kind) or levels_of([extent])[extent.kind]
    if values.dtype == np.uint16:  # images of this kind are the largest: a table is faster
        table = np.arange(2**16, dtype=np.float64)
        return np.clip(np.rint((table - black) * (255 / (white - black))), 0, 255).astype(np.uint8)[values]
    precision = np.float64 if values.itemsize > 2 else np.float32
    scaled = np.subtract(values, black, dtype=precision) * precision(255 / (white - black))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _from_deep_colour(samples: np.ndarray, image: Image.Image, reading: Reading) -> tuple[Image.Image, Extent]:
    """A colour image of 16 bits in RGB, and its extent. samples: see _samples_of_16_bits(); alpha uses all 16 bits."""
    colours = samples[..., :3]
    extent = Extent("integers", float(colours.min()), float(colours.max()))
    rgb = Image.fromarray(_scaled(colours, extent, reading))
    transparent = image.info.get("transparency")
    if samples.shape[2] == 4:
        alpha = samples[..., 3] >> 8
    elif isinstance(transparent, tuple):
        alpha = np.where((colours == transparent).all(axis=2), 0, 255)
    else:
        return rgb, extent
    rgb.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return _laid_on(reading.background, rgb), extent


def _form(image: Image.Image) -> str:
    """How the samples of an image that is not decoded yet are stored, in Pillow's words: "RGB;16B"."""
    arguments = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    return arguments if isinstance(arguments, str) else str((arguments or ("",))[0])


def _samples_of_16_bits(image: Image.Image, form: str) -> np.ndarray | None:
    """uint16 [H, W, 3], or 4 with transparency, of a colour image that is not decoded yet; None for one of 8 bits.

    Pillow keeps the upper byte of each sample, or the lower one if the file is read in the other byte order: so it is
    read in both. Grey with alpha is read as four samples of 8 bits. Errors: Unreadable for a form that Pillow misreads.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and len(bits := tags.get(_BITS, ())) > 1 and max(bits) > 8:
        raise Unreadable("has its colours in separate planes of 16 bits, which Pillow misreads: interleave them")
    name, found, order = form.partition(";16")
    if not found or name not in ("RGB", "RGBX", "RGBA", "RGBa", "LA") or image.mode not in ("RGB", "RGBA"):
        return None
    if name == "LA":
        parts = _read_as(image, "RGBA").astype(np.uint16)
        grey, alpha = parts[..., 0] << 8 | parts[..., 1], parts[..., 2] << 8 | parts[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=2)
    all_of_it = "RGBA" if name == "RGBa" else name
    own = ("L" if sys.byteorder == "little" else "B") if order == "N" else order
    upper, lower = (_read_as(image, f"{all_of_it};16{each}") for each in (own, "B" if own == "L" else "L"))
    samples: np.ndarray = upper.astype(np.uint16) << 8 | lower
    if name == "RGBa":  # premultiplied alpha
        alpha = samples[..., 3:].astype(np.float64)
        samples[..., :3] = np.minimum(np.rint(samples[..., :3] * (65535 / np.maximum(alpha, 1))), 65535)
    return samples


def _read_as(image: Image.Image, form: str) -> np.ndarray:
    """The samples of an image's file, read again as another form of the same length."""
    assert isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO)
    with Image.open(io.BytesIO(image.fp.getvalue()), "r", _formats()) as again:
        assert isinstance(again, ImageFile.ImageFile)
        tiles: list[Any] = []
        for tile in again.tile:
            arguments = form if isinstance(tile[3], str) else (form, *(tile[3] or ())[1:])
            tiles.append(getattr(type(tile), "_make", tuple)((*tile[:3], arguments)))
        again.tile = tiles
        return np.asarray(again)


@cache
def _lab_to_rgb() -> Any:
    """Pillow's transform from LAB to sRGB."""
    from PIL import ImageCms

    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
