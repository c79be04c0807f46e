"""CIFAR-10 as lossless WebP mosaics in two parts, for a machine without a network: 90 MB instead of 140.

    python scripts/gpu_session/mosaics.py pack IMAGES TARGET     # TARGET/cifar10-0 and cifar10-1
    python scripts/gpu_session/mosaics.py unpack TARGET DATA     # DATA/train/CLASS/*.png and DATA/test/CLASS/*.png

IMAGES: an image folder, train/CLASS/* and test/CLASS/*, all images of one size. A mosaic holds up to 1,000 images of
one class, in the order of their names. Their pixels come back bit for bit: each mosaic's SHA-256 is in the part's
index, and is checked when it is unpacked. The names do not: images are numbered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

PARTS, IN_A_MOSAIC, COLUMNS = 2, 1000, 40
INDEX = "index.json"
Entry = dict[str, str | int]


def to_mosaic(images: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] -> [rows * H, COLUMNS * W, 3], row by row; what is left of the last row is black."""
    count, height, width, channels = images.shape
    rows = -(-count // COLUMNS)
    padded = np.zeros((rows * COLUMNS, height, width, channels), np.uint8)
    padded[:count] = images
    return padded.reshape(rows, COLUMNS, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def from_mosaic(mosaic: np.ndarray, count: int, height: int) -> np.ndarray:
    """The inverse of `to_mosaic`."""
    rows, width, channels = mosaic.shape[0] // height, mosaic.shape[1] // COLUMNS, mosaic.shape[2]
    tiles = mosaic.reshape(rows, height, COLUMNS, width, channels).swapaxes(1, 2)
    return tiles.reshape(rows * COLUMNS, height, width, channels)[:count]


def read(files: list[Path]) -> np.ndarray:
    """Decoded images: uint8 [n, H, W, 3]."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def groups(images: Path) -> Iterator[tuple[str, str, list[Path]]]:
    """Split, class and files of each mosaic."""
    for split in ("train", "test"):
        for folder in sorted(path for path in (images / split).iterdir() if path.is_dir()):
            files = sorted(folder.iterdir())
            for first in range(0, len(files), IN_A_MOSAIC):
                yield split, folder.name, files[first : first + IN_A_MOSAIC]


def pack(images: Path, target: Path) -> None:
    """Write the parts; the mosaics go to each part in turn."""
    entries: list[list[Entry]] = [[] for _ in range(PARTS)]
    for number, (split, name, files) in enumerate(groups(images)):
        part = number % PARTS
        folder = target / f"cifar10-{part}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels, file = read(files), f"{number:04d}.webp"
        # exact: keep the colors of transparent pixels too; there are none, but this leaves nothing to the encoder
        Image.fromarray(to_mosaic(pixels)).save(folder / file, lossless=True, quality=75, method=4, exact=True)
        entries[part].append(
            {
                "file": file,
                "split": split,
                "class": name,
                "count": len(files),
                "height": pixels.shape[1],
                "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            }
        )
    for part, held in enumerate(entries):
        folder = target / f"cifar10-{part}"
        (folder / INDEX).write_text(json.dumps({"part": part, "parts": PARTS, "mosaics": held}, indent=1) + "\n")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {len(held)} mosaics, {size / 1e6:.1f} MB")


def images_of(folder: Path, entry: Entry) -> np.ndarray:
    """The images of a mosaic, uint8 [n, H, W, 3]. Errors: SystemExit where the pixels are not the packed ones."""
    with Image.open(folder / str(entry["file"])) as mosaic:
        pixels = from_mosaic(np.asarray(mosaic.convert("RGB")), int(entry["count"]), int(entry["height"]))
    if hashlib.sha256(pixels.tobytes()).hexdigest() != entry["sha256"]:
        raise SystemExit(f"error: {folder / str(entry['file'])}: not the pixels that were packed")
    return pixels


def _unpack_mosaic(data: Path, where: tuple[Path, Entry]) -> int:
    """Write the images of one mosaic; returns their number."""
    folder, entry = where
    target = data / str(entry["split"]) / str(entry["class"])
    target.mkdir(parents=True, exist_ok=True)
    number = str(entry["file"]).removesuffix(".webp")
    for at, image in enumerate(images_of(folder, entry)):
        Image.fromarray(image).save(target / f"{number}-{at:03d}.png", compress_level=1)
    return int(entry["count"])


def unpack(source: Path, data: Path) -> None:
    """Write the images as PNG files. Errors: SystemExit with one line where a part is missing or damaged."""
    held: list[tuple[Path, Entry]] = []
    for part in range(PARTS):
        folder = source / f"cifar10-{part}"
        try:
            held += [(folder, entry) for entry in json.loads((folder / INDEX).read_text())["mosaics"]]
        except OSError as error:
            raise SystemExit(f"error: {folder / INDEX}: {error.strerror}; both parts are needed") from None
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        written = sum(pool.map(partial(_unpack_mosaic, data), held))
    print(f"{data}: {written} images")


def main() -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(description="CIFAR-10 as lossless mosaics.")
    parser.add_argument("command", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        parser.error(f"{arguments.source}: no such folder")
    {"pack": pack, "unpack": unpack}[arguments.command](arguments.source, arguments.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
