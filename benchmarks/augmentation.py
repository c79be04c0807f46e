"""Each augmentation on whole batches, compared with torchvision's transforms.

Both turn the same decoded images of CIFAR-10's shape in memory into normalised float images, on one thread, as a rank
on the CPU does. torchvision takes each image as a uint8 tensor through the same transforms (v2, composed as its
documentation does) and stacks them. Rounds measure both in turns; the median counts.

Augmented images per second of CPU time on one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Arguments, Figures, measurement, number, text
from ddp_train.config.options import AugmentOptions
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.build import create_augmentation
from ddp_train.data.sources.builtin import load_synthetic

BATCH = 512
OURS_BATCHES, THEIRS_IMAGES = 10, 512
"""Work of one measurement: about as long for both."""


def _transforms() -> dict[str, list[nn.Module]]:
    """Case, as options of the trainer -> torchvision's transforms before the normalisation."""
    from torchvision.transforms import v2

    flip, bilinear = v2.RandomHorizontalFlip(), v2.InterpolationMode.BILINEAR
    balanced = [v2.RandomCrop(32, padding=4, padding_mode="reflect"), flip]
    return {
        "--augment none": [],
        "--augment minimal": [flip],
        "--augment balanced": balanced,
        "--augment heavy": balanced,
        "--random-resized-crop 0.25": [v2.RandomResizedCrop(32, (0.25, 1.0)), flip],
        "--rotation 15": [*balanced, v2.RandomRotation(15, interpolation=bilinear)],
        "--color-jitter 0.4": [*balanced, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
        "--grayscale 0.2": [*balanced, v2.RandomGrayscale(0.2)],
        "--augment-policy autoaugment": [*balanced, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)],
        "--augment-policy randaugment": [*balanced, v2.RandAugment()],
        "--augment-policy trivialaugment": [*balanced, v2.TrivialAugmentWide()],
    }


def _rate(work: Callable[[], int]) -> float:
    """Images per second of CPU time, which other processes disturb little."""
    started = time.thread_time()
    count = work()
    return count / (time.thread_time() - started)


def _ours(images: Tensor, options: AugmentOptions) -> Callable[[], int]:
    """Draws and batches, as the resident pipeline makes them."""
    augmentation = create_augmentation(load_synthetic(16), options, 0, "cpu")
    padded = augmentation.pad(images)
    rows = torch.randperm(OURS_BATCHES * BATCH, generator=torch.Generator().manual_seed(0)) % len(images)

    def work() -> int:
        """Augment OURS_BATCHES batches; returns the number of images."""
        draws = augmentation.draw(rows, 0)
        for first in range(0, len(rows), BATCH):
            part = slice(first, first + BATCH)
            augmentation.apply(padded, rows[part], draws[part])
        return len(rows)

    return work


def _theirs(images: Tensor, transform: nn.Module) -> Callable[[], int]:
    """The same images one by one through torchvision's transforms, stacked to a batch."""
    samples = images[:THEIRS_IMAGES].permute(0, 3, 1, 2).contiguous().unbind(0)

    def work() -> int:
        """Augment the images of one measurement; returns their number."""
        torch.stack([transform(sample) for sample in samples])
        return len(samples)

    return work


@measurement(
    number("--rounds", 7, "measurements of each"),
    text("--out", "augmentation-1-core", "keep the result as benchmarks/results/NAME.json"),
)
def main(arguments: Arguments) -> Figures:
    """Images per second of each augmentation, here and in torchvision."""
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    dataset = load_synthetic(4096)
    images = torch.from_numpy(dataset.train.images)
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std)]
    found = {}
    for name, transforms in _transforms().items():
        base = "minimal" if "crop" in name else "balanced"
        options = parse(f"--augment {base} {name}".split()).augment
        erasing = [v2.RandomErasing(0.5)] if options.augment == "heavy" else []
        ours, theirs = _ours(images, options), _theirs(images, v2.Compose([*transforms, *normalise, *erasing]))
        ours(), theirs()
        pairs = [(_rate(ours), _rate(theirs)) for _ in range(arguments.rounds)]
        rates = [statistics.median(rate) for rate in zip(*pairs, strict=True)]
        found[name] = {"ours": round(rates[0]), "torchvision": round(rates[1]), "ratio": round(rates[0] / rates[1], 1)}
        print(f"{name:34} {rates[0]:10,.0f} {rates[1]:8,.0f}  x{rates[0] / rates[1]:.1f}", file=sys.stderr)
    unit = "images of 3 x 32 x 32 per second of CPU time"
    return {"threads": 1, "global_batch": BATCH, "unit": unit, "cases": found}
