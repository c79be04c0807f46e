"""Each augmentation on whole batches, beside torchvision's transforms.

Both turn the same decoded images of CIFAR-10's shape in memory into normalised float images, on one thread, as a rank
on the CPU does. torchvision takes each image as a uint8 tensor through the same transforms (v2, composed as its
documentation does) and stacks them. Rounds measure both in turns; the median counts. Time is the CPU time of the
thread, which other processes disturb little.

Augmented images per second of CPU time on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Figures, Measurement, Option, number
from ddp_train.config.options import AugmentOptions
from ddp_train.data.pipeline.build import create_augmentation
from ddp_train.data.sources.builtin import load_synthetic
from ddp_train.data.sources.samples import Dataset

BATCH = 512
OURS_BATCHES, THEIRS_IMAGES = 10, 512
"""Work of one measurement: about as long for both."""
CASES: dict[str, AugmentOptions] = {
    **{f"--augment {level}": AugmentOptions(augment=level) for level in ("none", "minimal", "balanced", "heavy")},
    "--random-resized-crop 0.25": AugmentOptions(augment="minimal", random_resized_crop=0.25),
    "--rotation 15": AugmentOptions(augment="balanced", rotation=15),
    "--color-jitter 0.4": AugmentOptions(augment="balanced", color_jitter=0.4),
    "--grayscale 0.2": AugmentOptions(augment="balanced", grayscale=0.2),
    **{
        f"--augment-policy {policy}": AugmentOptions(augment="balanced", augment_policy=policy)
        for policy in ("autoaugment", "randaugment", "trivialaugment")
    },
}


def measure(arguments: argparse.Namespace) -> Figures:
    """Images per second by case: the medians of both, and how many times as many ours are."""
    torch.set_num_threads(1)
    dataset = load_synthetic(4096)
    images = torch.from_numpy(dataset.train.images)
    found = {}
    for name, options in CASES.items():
        ours, theirs = _ours(images, options), _theirs(images, options, dataset)
        ours(), theirs()
        pairs = [(_rate(ours), _rate(theirs)) for _ in range(arguments.rounds)]
        rates = [statistics.median(rate) for rate in zip(*pairs, strict=True)]
        found[name] = {"ours": round(rates[0]), "torchvision": round(rates[1]), "ratio": round(rates[0] / rates[1], 1)}
        print(f"{name:34} {rates[0]:10,.0f} {rates[1]:8,.0f}  x{rates[0] / rates[1]:.1f}", file=sys.stderr)
    unit = "images of 3 x 32 x 32 per second of CPU time"
    return {"threads": 1, "global_batch": BATCH, "unit": unit, "cases": found}


def _rate(work: Callable[[], int]) -> float:
    """Images per second of CPU time."""
    started = time.thread_time()
    count = work()
    return count / (time.thread_time() - started)


def _ours(images: Tensor, options: AugmentOptions) -> Callable[[], int]:
    """Draws and batches, as the resident pipeline makes them."""
    augmentation = create_augmentation(load_synthetic(16), options, 0, "cpu")
    padded = augmentation.pad(images)
    rows = torch.randperm(OURS_BATCHES * BATCH, generator=torch.Generator().manual_seed(0)) % len(images)

    def work() -> int:
        draws = augmentation.draw(rows, 0)
        for first in range(0, len(rows), BATCH):
            part = slice(first, first + BATCH)
            augmentation.apply(padded, rows[part], draws[part])
        return len(rows)

    return work


def _theirs(images: Tensor, options: AugmentOptions, dataset: Dataset) -> Callable[[], int]:
    """The same through torchvision's transforms."""
    from torchvision.transforms import v2

    policies: dict[str, Callable[[], torch.nn.Module]] = {
        "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
    }
    steps: list[torch.nn.Module] = []
    if options.random_resized_crop:
        steps.append(v2.RandomResizedCrop(32, (options.random_resized_crop, 1.0)))
    elif options.augment in ("balanced", "heavy"):
        steps.append(v2.RandomCrop(32, padding=4, padding_mode="reflect"))
    if options.augment != "none":
        steps.append(v2.RandomHorizontalFlip())
    if options.rotation:
        steps.append(v2.RandomRotation(options.rotation, interpolation=v2.InterpolationMode.BILINEAR))
    if (strength := options.color_jitter) is not None:
        steps.append(v2.ColorJitter(strength, strength, strength, strength / 4))
    if options.grayscale:
        steps.append(v2.RandomGrayscale(options.grayscale))
    if options.augment_policy is not None:
        steps.append(policies[options.augment_policy]())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std)]
    if options.augment == "heavy":
        steps.append(v2.RandomErasing(0.5))
    transform = v2.Compose(steps)
    samples = images[:THEIRS_IMAGES].permute(0, 3, 1, 2).contiguous().unbind(0)

    def work() -> int:
        torch.stack([transform(sample) for sample in samples])
        return len(samples)

    return work


OPTIONS = (
    number("--rounds", 7, "measurements of each"),
    Option("--out", default="augmentation-1-core", metavar="NAME", help="the result is benchmarks/results/NAME.json"),
)
main = Measurement("augmentation", measure, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
