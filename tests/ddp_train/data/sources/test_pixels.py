"""Files of every stored form, made by Pillow or byte by byte, against RGB values that are worked out here."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from ddp_core.errors import UserError
from ddp_train.data.pipeline.loader import ImageReader
from ddp_train.data.sources import image_folder
from ddp_train.data.sources.decode import decode_files, probe_size, read_image
from ddp_train.data.sources.pixels import Extent, Reading, levels_of

Save = Callable[..., None]
SIDE = 8
RED, GREEN = (255, 0, 0), (0, 128, 0)


def one_colour(path: Path, reading: Reading = Reading()) -> tuple[int, ...]:  # noqa: B008 (frozen)
    """The colour of a file that has one."""
    pixels = read_image(path, (4, 4), reading)
    assert pixels.dtype == np.uint8 and pixels.shape == (4, 4, 3)
    assert (pixels == pixels[0, 0]).all()
    return tuple(int(value) for value in pixels[0, 0])


def deep(path: Path, value: float, dtype: str, **more: object) -> None:
    """A grey image of one value, with a white corner that is outside of the middle quarter."""
    Image.fromarray(np.full((SIDE, SIDE), value, dtype)).save(path, **more)


def tiff_of_integers(path: Path, value: int, *, photometric: int = 1, bits: int = 16, order: str = "<") -> None:
    """Written byte by byte: one strip of unsigned integers."""
    if bits in (16, 32):
        strip = struct.pack(f"{order}{'H' if bits == 16 else 'I'}", value) * SIDE * SIDE
    else:  # 12 bits, two values in three bytes
        strip = bytes((value >> 4, (value & 15) << 4 | value >> 8, value & 255)) * (SIDE * SIDE // 2)
    tags = ((256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, SIDE))
    entries = [(tag, 3, 1, number) for tag, number in tags] + [(279, 4, 1, len(strip))]
    fields = [
        struct.pack(f"{order}HHI", *e[:3]) + struct.pack(f"{order}H2x" if e[1] == 3 else f"{order}I", e[3])
        for e in entries
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(strip))
    path.write_bytes(head + strip + struct.pack(f"{order}H", len(fields)) + b"".join(fields) + bytes(4))


# Grey images of more than 8 bits: the level of a dataset


@pytest.mark.parametrize(
    ("suffix", "dtype", "values", "expected"),
    [
        ("png", "uint16", (0, 20000, 60000), (0, 78, 233)),
        ("png", "uint16", (0, 1000, 4000), (0, 62, 249)),  # 12 bits in 16
        ("png", "uint16", (0, 300, 1023), (0, 75, 255)),  # 10 bits
        ("tif", "uint16", (0, 20000, 60000), (0, 78, 233)),
        ("tif", ">u2", (0, 20000, 60000), (0, 78, 233)),
        ("tif", "int32", (0, 1000, 4000), (0, 62, 249)),
        ("tif", "int32", (-32768, 0, 32767), (0, 128, 255)),
        ("tif", "int32", (0, 30000, 100000), (0, 58, 195)),  # 17 bits
        ("tif", "float32", (0.0, 0.25, 1.0), (0, 64, 255)),
        ("tif", "float32", (0.0, 100.0, 250.0), (0, 100, 250)),
        ("tif", "float32", (-1.0, 0.0, 1.0), (0, 128, 255)),
        ("tif", "float32", (0.0, 0.02, 0.03), (0, 163, 245)),  # 1/32 is white
        ("tif", "float32", (0.0, 0.5, 1.05), (0, 64, 134)),  # 2 is white
        ("pfm", "float32", (0.0, 0.25, 1.0), (0, 64, 255)),
    ],
)
def test_deep_grey_images_of_a_folder_share_their_levels(
    tmp_path: Path, suffix: str, dtype: str, values: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    for part in ("train", "test"):
        for number, value in enumerate(values):
            (tmp_path / part / f"{number}").mkdir(parents=True)
            deep(tmp_path / part / f"{number}" / f"a.{suffix}", value, dtype)
    for limit in (None, 0):  # decoded once, and from files
        dataset = image_folder.load_image_folder("folder", tmp_path, limit=limit)
        (levels,) = dataset.levels.values()
        assert dataset.test is not None
        images, _, bad = ImageReader(dataset.test, (SIDE, SIDE), "test")[list(range(len(values)))]
        found = images[:, 0, 0, 0].tolist()
        assert not bad
        assert found == pytest.approx(list(expected), abs=1)
        assert (
            levels
            == levels_of([Extent("floats" if dtype == "float32" else "integers", min(values), max(values))]).popitem()[
                1
            ]
        )


def test_several_processes_find_the_same_levels(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.png") for number in range(300)]
    for number, file in enumerate(files):
        deep(Path(file), 10 * number, "uint16")
    out = np.memmap(tmp_path / "out", np.uint8, "w+", shape=(300, 2, 2, 3))
    extents: dict[int, Extent] = {}
    decode_files(files, out, extents=extents, processes=2)
    assert levels_of(extents.values()) == {"integers": (0, 4095)} and len(extents) == 300
    rows = [7, 250]
    decode_files(files, out, reading=Reading(levels={"integers": (0, 4095)}), rows=rows, processes=2)
    assert out[rows, 0, 0, 0].tolist() == [4, 156] and out[6, 0, 0, 0] == 60  # by its own level, of 8 bits


def test_deep_files_of_other_programs(tmp_path: Path) -> None:
    path, reading = tmp_path / "a.tif", Reading(levels={"integers": (0, 65535)})
    for order in ("<", ">"):
        tiff_of_integers(path, 0x4020, order=order)
        assert one_colour(path, reading) == (64, 64, 64)
    tiff_of_integers(path, 0x4040, photometric=0)
    assert one_colour(path, reading) == (191, 191, 191)  # white is 0
    tiff_of_integers(path, 1000, bits=12)
    assert one_colour(path, Reading(levels={"integers": (0, 4095)})) == (62, 62, 62)
    tiff_of_integers(path, 3_000_000_000, bits=32)  # more than a signed number holds
    assert one_colour(path, Reading(levels={"integers": (0, 2**32 - 1)})) == (178, 178, 178)
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 4 4 65535\n" + struct.pack(">H", 0x8080) * 16)
    assert one_colour(pgm, reading) == (128, 128, 128)
    pgm.write_bytes(b"P5 4 4 4095\n" + struct.pack(">H", 1000) * 16)  # Pillow scales by the file's own maximum
    assert one_colour(pgm, reading) == (62, 62, 62)


def test_values_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "nan.tif"
    for value in (np.nan, np.inf):
        deep(path, value, "float32")
        with pytest.raises(UserError, match=r"nan\.tif: has pixels that are infinite or not a number"):
            read_image(path, (4, 4))


@given(
    kind=st.sampled_from(["integers", "floats"]),
    values=st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=4),
)
def test_levels_hold_every_value_and_lose_at_most_half_of_the_range(kind: str, values: list[float]) -> None:
    extents = [Extent(kind, value, value) for value in values]  # type: ignore[arg-type]
    black, white = levels_of(extents)[kind]
    assert black <= min(0, *values) and white >= max(values) and black < white
    largest = max(map(abs, values))
    if largest >= 128 or (kind == "floats" and largest > 1):
        assert max(white, -black) <= 4 * largest


# Transparency


def laid_on(colour: tuple[int, int, int], alpha: int, ground: tuple[int, int, int]) -> list[float]:
    return [c * alpha / 255 + g * (1 - alpha / 255) for c, g in zip(colour, ground, strict=True)]


def rgba(path: Path, alpha: int) -> None:
    Image.new("RGBA", (SIDE, SIDE), (*RED, alpha)).save(path, lossless=True)


def grey_alpha(path: Path, alpha: int) -> None:
    Image.new("LA", (SIDE, SIDE), (0, alpha)).save(path)


def palette_alpha(path: Path, alpha: int) -> None:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(path, transparency=bytes((255, alpha)))


def palette_key(path: Path, alpha: int) -> None:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(path, **({} if alpha else {"transparency": 1}))


def colour_key(path: Path, alpha: int) -> None:
    Image.new("RGB", (SIDE, SIDE), RED).save(path, transparency=GREEN if alpha else RED)


def deep_key(path: Path, alpha: int) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(path, transparency=1 if alpha else 0)


@pytest.mark.parametrize(
    ("save", "name", "colour", "alphas"),
    [
        (rgba, "a.png", RED, (0, 100, 255)),
        (rgba, "a.webp", RED, (0, 100, 255)),
        (rgba, "a.tif", RED, (0, 100, 255)),
        (grey_alpha, "a.png", (0, 0, 0), (0, 100, 255)),
        (grey_alpha, "a.tif", (0, 0, 0), (0, 100, 255)),
        (palette_alpha, "a.png", RED, (0, 100, 255)),
        (palette_key, "a.gif", RED, (0, 255)),
        (colour_key, "a.png", RED, (0, 255)),
        (deep_key, "a.png", (0, 0, 0), (0, 255)),
    ],
)
def test_transparent_pixels_show_the_background(
    tmp_path: Path, save: Save, name: str, colour: tuple[int, int, int], alphas: tuple[int, ...]
) -> None:
    for alpha in alphas:
        save(tmp_path / name, alpha)
        assert one_colour(tmp_path / name) == pytest.approx(laid_on(colour, alpha, (255, 255, 255)), abs=1)
        green = Reading(background="#008000")
        assert one_colour(tmp_path / name, green) == pytest.approx(laid_on(colour, alpha, GREEN), abs=1)


def test_a_background_that_is_no_colour_is_refused() -> None:
    with pytest.raises(UserError, match="--background takes a colour such as white or #ffffff, not whitish"):
        Reading(background="whitish")


# Colour spaces


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_and_lab_and_ycbcr(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(path)
    assert one_colour(path) == pytest.approx(RED, abs=3)
    Image.new("RGB", (SIDE, SIDE), RED).convert("YCbCr").save(path)
    assert one_colour(path) == pytest.approx(RED, abs=3)
    if suffix == "tif":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(Image.new("RGB", (SIDE, SIDE), GREEN), srgb, lab, outputMode="LAB")
        assert image is not None
        image.save(path)
        assert one_colour(path) == pytest.approx(GREEN, abs=8)


def test_one_bit_and_palette_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for mode in ("1", "L", "P"):
        for value in (0, 255):
            Image.new("RGB", (SIDE, SIDE), (value,) * 3).convert(mode).save(path)
            assert one_colour(path) == (value,) * 3


# Colour of 16 bits


def png_of_16_bits(samples: np.ndarray) -> bytes:
    """Written byte by byte: grey and alpha, RGB or RGBA by the number of samples, uint16 [H, W, 2 to 4]."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff_of_16_bits(
    samples: np.ndarray, *, order: str = "<", planes: bool = False, extra: int | None = None, deflate: bool = False
) -> bytes:
    """Written byte by byte, in one strip, or in one for each plane. samples: uint16 [H, W, C]; extra: kind of alpha."""
    height, width, channels = samples.shape
    parts = [samples[..., at] for at in range(channels)] if planes else [samples]
    strips = [np.ascontiguousarray(part).astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    body = b"".join(strips)
    starts = [8 + sum(map(len, strips[:at])) for at in range(len(strips))]
    tags = [(256, [width]), (257, [height]), (258, [16] * channels), (259, [8 if deflate else 1]), (262, [2])]
    tags += [(273, starts), (277, [channels]), (278, [height]), (279, [*map(len, strips)]), (284, [1 + planes])]
    tags += [(338, [extra])] if extra is not None else []
    fields = b""
    for tag, values in tags:
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            packed, body = struct.pack(f"{order}I", 8 + len(body)), body + packed
        fields += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + fields + bytes(4)


FORMS_OF_16_BITS: dict[str, Callable[[np.ndarray], bytes]] = {
    "png": png_of_16_bits,
    "little.tif": tiff_of_16_bits,
    "big.tif": lambda samples: tiff_of_16_bits(samples, order=">"),
    "deflated.tif": lambda samples: tiff_of_16_bits(samples, order=">", deflate=True),
}


@pytest.mark.parametrize("form", FORMS_OF_16_BITS)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_colour_of_16_bits_is_by_the_levels_of_the_dataset(tmp_path: Path, form: str, bits: int) -> None:
    """12 bits in 16 are as bright as 16; the upper bytes alone would be nearly black."""
    white = 2**bits - 1
    samples = np.random.default_rng(bits).integers(0, white + 1, (SIDE, SIDE, 3)).astype(np.uint16)
    for part in ("train", "test"):
        for name, image in (("bright", samples), ("dark", samples // 4)):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / f"a.{form}").write_bytes(FORMS_OF_16_BITS[form](image))
    for limit in (None, 0):
        dataset = image_folder.load_image_folder("folder", tmp_path, limit=limit)
        assert dataset.levels == {"integers": (0, white)} and dataset.test is not None
        images, _, bad = ImageReader(dataset.test, (SIDE, SIDE), "test")[[0, 1]]
        assert not bad
        for image, stored in zip(images.numpy(), (samples, samples // 4), strict=True):
            np.testing.assert_array_equal(image, np.rint(stored * (255 / white)).astype(np.uint8))


def test_colour_of_16_bits_with_transparency(tmp_path: Path) -> None:
    colour, alpha, path = np.array([0x0400, 0x0800, 0x0C00]), 0x8000, tmp_path / "a.png"
    seen = pytest.approx([c * 255 / 4095 / 2 + 255 / 2 for c in colour], abs=1.5)
    grey = pytest.approx([0x0800 * 255 / 4095 / 2 + 255 / 2] * 3, abs=1.5)
    reading = Reading(levels={"integers": (0, 4095)})

    def of(*samples: int) -> np.ndarray:
        return np.full((SIDE, SIDE, len(samples)), samples, np.uint16)

    for content, expected in (
        (png_of_16_bits(of(*colour, alpha)), seen),
        (png_of_16_bits(of(0x0800, alpha)), grey),
        (tiff_of_16_bits(of(*colour, alpha), extra=2, deflate=True), seen),
        (tiff_of_16_bits(of(*colour // 2, alpha), extra=1), seen),  # multiplied by it
    ):
        path.write_bytes(content)
        assert one_colour(path, reading) == expected
    path.write_bytes(tiff_of_16_bits(of(*colour, alpha), extra=0))  # of no meaning
    assert one_colour(path, reading) == pytest.approx([c * 255 / 4095 for c in colour], abs=1)
    key = struct.pack(">3H", *colour)  # the colour that is transparent
    content = png_of_16_bits(of(*colour))
    chunk = b"tRNS" + key
    path.write_bytes(content[:33] + struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:])
    assert one_colour(path, Reading(background="#008000", levels=reading.levels)) == GREEN


@pytest.mark.parametrize(("bits", "row", "level"), [(1, b"\xff", 1), (2, b"\x55", 1), (4, b"\x55" * 2, 5)])
def test_the_transparent_grey_of_a_png_of_few_bits(tmp_path: Path, bits: int, row: bytes, level: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for key, seen in ((level, GREEN), (0, (level * 255 // (2**bits - 1),) * 3)):
        parts = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", key))
        parts += chunk(b"IDAT", zlib.compress((b"\0" + row) * 4)) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
        assert one_colour(tmp_path / "a.png", Reading(background="#008000")) == seen


@pytest.mark.parametrize("deflate", [False, True])
def test_planes_of_16_bits_are_refused_by_name(tmp_path: Path, deflate: bool) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_16_bits(np.zeros((4, 4, 3), np.uint16), planes=True, deflate=deflate))
    with pytest.raises(UserError, match=r"a\.tif: has its colours in separate planes of 16 bits"):
        read_image(path, (4, 4))


# Orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:12, :20], upright[:12, 20:], upright[12:, :20] = RED, GREEN, (0, 0, 255)  # the fourth is black
    stored = {  # by EXIF: where the first row and the first column of the stored image are in the upright one
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    assert probe_size([str(path)]) == (24, 40)
    found = read_image(path, (24, 40)).astype(int)
    assert np.abs(found - upright)[[3, 3, 20, 20], [3, 36, 3, 36]].max() < 60
    for x, y, colour in ((5, 5, RED), (34, 5, GREEN), (5, 18, (0, 0, 255)), (34, 18, (0, 0, 0))):
        assert found[y, x] == pytest.approx(colour, abs=40)


def test_damaged_exif_data_do_not_refuse_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"):
        Image.new("RGB", (SIDE, SIDE), RED).save(path, exif=exif)
        assert one_colour(path) == pytest.approx(RED, abs=3)


# Sizes


def test_a_narrow_image_is_cropped_before_it_is_scaled(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for width, height in ((1, 60000), (60000, 1), (3, 20000)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[height // 2 - 1 : height // 2 + 1, max(0, width // 2 - 1) : width // 2 + 1] = RED
        Image.fromarray(pixels).save(tmp_path / "a.png")
        found = read_image(tmp_path / "a.png", (224, 224))
        assert found.shape == (224, 224, 3) and found[112, 112] == pytest.approx(RED, abs=5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize(
    ("stored", "size"), [((1500, 2000), (60, 40)), ((600, 800), (300, 200)), ((500, 4000), (50, 200))]
)
def test_a_large_jpeg_is_as_if_it_were_decoded_in_full(
    tmp_path: Path, stored: tuple[int, int], size: tuple[int, int]
) -> None:
    path = tmp_path / "a.jpg"
    y, x = np.mgrid[: stored[0], : stored[1]]
    fine = (y // 5 + x // 5) % 2 * 200  # what a decoding at too coarse a scale would blur
    pixels = np.stack([x * 255 // stored[1], y * 255 // stored[0], fine], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # sideways
    Image.fromarray(pixels).save(path, quality=95, exif=exif, subsampling=0)
    found = read_image(path, size).astype(int)
    with Image.open(path) as image:
        whole = image.convert("RGB").transpose(Image.Transpose.ROTATE_270)
    scale = max(size[0] / whole.height, size[1] / whole.width)
    across, down = (whole.width - size[1] / scale) / 2, (whole.height - size[0] / scale) / 2
    box = (across, down, whole.width - across, whole.height - down)
    expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR, box=box)).astype(int)
    assert np.abs(found - expected).mean() < 2 and np.abs(found - expected).max() < 25


def test_the_limit_of_pixels_is_an_option_that_the_refusal_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (60, 60)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit is half of what it refuses
    assert read_image(path, (4, 4)).max() == 0
    with pytest.raises(UserError, match=r"large\.png: has 3,600 pixels, more than --max-pixels 3599"):
        read_image(path, (4, 4), Reading(max_pixels=3599))
    assert Image.MAX_IMAGE_PIXELS == 1000, "a user's own use of Pillow keeps its limit"


def test_a_png_with_a_long_text_is_read(tmp_path: Path) -> None:
    path, about = tmp_path / "edited.png", PngInfo()
    about.add_text("history", "x" * 3_000_000, zip=True)
    Image.new("RGB", (SIDE, SIDE), RED).save(path, pnginfo=about)
    assert one_colour(path) == RED


# Other files


def test_animations_show_their_first_image(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (SIDE, SIDE), RED), Image.new("RGB", (SIDE, SIDE), (0, 0, 255))
    for name in ("a.gif", "a.png", "a.webp", "a.tif", "a.avif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert one_colour(tmp_path / name) == pytest.approx(RED, abs=12), name
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert one_colour(tmp_path / "a.jpg") == pytest.approx(RED, abs=3)


def test_a_program_in_an_image_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (SIDE, SIDE)).save(path, format="EPS")
    with pytest.raises(UserError, match="not an image that Pillow knows"):
        read_image(path, (4, 4))


# What is kept of earlier readings


def test_a_decoded_copy_is_of_the_same_rules_or_is_not_used(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(train=2, test=1)
    Image.new("RGBA", (16, 16), (*RED, 0)).save(folder / "train" / "cat" / "0000.png")

    def first(**options: object) -> tuple[int, ...]:
        found = image_folder.load_image_folder("folder", folder, reading=Reading(**options))  # type: ignore[arg-type]
        assert found.train.images is not None
        return tuple(int(value) for value in found.train.images[0, 0, 0])

    assert first() == (255, 255, 255) and first(background="black") == (0, 0, 0) and first() == (255, 255, 255)
    monkeypatch.setattr("ddp_train.data.sources.decode.as_rgb", lambda image, reading: (image.convert("RGB"), None))
    assert first() == (255, 255, 255)  # as it was decoded
    monkeypatch.setattr(image_folder, "RULES", image_folder.RULES + 1)
    assert first() == RED


def test_what_was_unreadable_by_other_rules_is_read_again(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(train=1001, test=1, size=(2, 2))
    Image.new("RGB", (40, 40)).save(folder / "train" / "cat" / "0000.png")
    for limit, left_out in ((1000, 1), (1000, 1), (2000, 0)):
        found = image_folder.load_image_folder(
            "folder", folder, image_size=4, on_bad="skip", reading=Reading(max_pixels=limit)
        )
        assert len(found.left_out) == left_out and len(found.train) == 2002 - left_out


def test_forms_that_are_not_read_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff_of_integers(path, 7, photometric=9)
    with pytest.raises(UserError, match=r"a\.tif: .*a TIFF of a form that Pillow does not read"):
        read_image(path, (4, 4))
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(UserError, match=r"a\.tif: .*HEIC: convert it to JPEG"):
        read_image(path, (4, 4))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"a\.tif: .*a pointer of Git LFS, not the image: git lfs pull"):
        read_image(path, (4, 4))


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B", "PA", "RGBX")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "ICO", "PCX", "EPS")


@settings(max_examples=120, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mode=st.sampled_from(MODES),
    form=st.sampled_from(FORMATS),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    orientation=st.integers(0, 9),
    cut=st.none() | st.floats(0, 1),
)
def test_any_image_is_read_or_refused_by_name(
    tmp_path: Path,
    mode: str,
    form: str,
    size: tuple[int, int],
    wanted: tuple[int, int],
    orientation: int,
    cut: float | None,
) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    try:
        Image.new(mode, size).save(buffer, form, exif=exif)
    except (OSError, ValueError, KeyError):  # Pillow cannot write it
        return
    content = buffer.getvalue()
    path = tmp_path / "some image"
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    try:
        assert read_image(path, wanted).shape == (*wanted, 3)
        assert cut is not None or form not in ("EPS",)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        assert cut is not None or form in ("ICO", "PCX", "EPS")
