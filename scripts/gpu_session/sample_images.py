"""Writes a folder of random images in the shape of CIFAR-10, for a rehearsal: python sample_images.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, COUNTS = 10, {"train": 41, "test": 4}


def main(folder: Path) -> None:
    """Write train/CLASS/*.png and test/CLASS/*.png, each class with its own brightness."""
    chance = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for label in range(CLASSES):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = chance.integers(20 * label, 20 * label + 60, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{number:03d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
