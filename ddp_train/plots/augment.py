"""A contact sheet of augmentation: `python -m ddp_train.plots augment -o FILE.png [--data-dir DIR]`.

Each row is one option, each group of columns one image as it appears in several epochs. The pictures are made by the
augmentation code of training.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data.pipeline.build import create_augmentation
from ddp_train.data.sources.samples import Dataset, Split, dataset_in_memory
from ddp_train.plots.style import DPI, INK, SOFT, new_figure, save
from ddp_train.techniques import mixing
from ddp_train.techniques.progressive_resize import side_in_epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES, DRAWS = 2, 4  # an even number of images: mixup and CutMix take pairs
LEAST_PIXELS = 64
"""Least width of an image in the sheet; smaller images are enlarged by a whole factor."""
GAP = 1 / 16
"""White between pictures, as a share of their side."""

# Each row: its label, and the options that it shows.
SAMPLE_ROWS: tuple[tuple[str, AugmentOptions], ...] = (
    ("--augment minimal", AugmentOptions(augment="minimal")),
    ("--augment balanced", AugmentOptions(augment="balanced")),
    ("--augment heavy", AugmentOptions(augment="heavy")),
    ("--crop-padding 12 (balanced)", AugmentOptions(augment="balanced", crop_padding=12)),
    ("--flip alternating", AugmentOptions(augment="none", flip="alternating")),
    ("--random-resized-crop 0.25", AugmentOptions(augment="none", random_resized_crop=0.25)),
    ("--rotation 20", AugmentOptions(augment="none", rotation=20)),
    ("--erasing 0.5", AugmentOptions(augment="none", erasing=0.5)),
    ("--cutout 12", AugmentOptions(augment="none", cutout=12)),
    ("--color-jitter 0.4", AugmentOptions(augment="none", color_jitter=0.4)),
    ("--grayscale 0.5", AugmentOptions(augment="none", grayscale=0.5)),
    ("--augment-policy autoaugment", AugmentOptions(augment="none", augment_policy="autoaugment")),
    ("--augment-policy randaugment", AugmentOptions(augment="none", augment_policy="randaugment")),
    ("--augment-policy trivialaugment", AugmentOptions(augment="none", augment_policy="trivialaugment")),
)


def augment_figure(dataset: Dataset, seed: int) -> Figure:
    """The sheet for the first training images of the first classes."""
    if dataset.train.images is None:
        raise UserError(f"{dataset.name}: the decoded images do not fit into this machine")
    _, first = np.unique(dataset.train.labels, return_index=True)
    chosen = torch.from_numpy(np.ascontiguousarray(dataset.train.take(first[:IMAGES])))
    plain = create_augmentation(dataset, AugmentOptions(augment="none"), seed, "cpu")
    images = plain(chosen, torch.arange(len(chosen)), 0)
    rows: list[tuple[str, list[Tensor]]] = [("the images", [images] * DRAWS)]
    for label, options in SAMPLE_ROWS:
        with suppress(UserError):  # the images are smaller than what this row erases or adds
            augmentation = create_augmentation(dataset, options, seed, "cpu")
            rows.append((label, [augmentation(chosen, torch.arange(len(chosen)), epoch) for epoch in range(DRAWS)]))
    for label, change in BATCH_ROWS:
        batches = [change(images, draw, seed) for draw in range(DRAWS)]
        rows.append((label.format(half=min(dataset.image_shape[1:]) // 2), batches))
    sheet = _sheet([batches for _, batches in rows], dataset)
    figure, axes = _axes(sheet, images.shape[3], f"Augmentation  ·  {dataset.name}")
    height, width = sheet.shape[0] / len(rows), sheet.shape[1] / len(chosen)
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], [label for label, _ in rows])
    names = [f"image {i + 1} in {DRAWS} epochs" for i in range(len(chosen))]
    axes.set_xticks([width * (i + 0.5) for i in range(len(chosen))], names)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.tick_params(axis="x", labelcolor=SOFT)
    axes.spines[:].set_visible(False)
    return figure


def _axes(sheet: np.ndarray, side: int, title: str) -> tuple[Figure, Axes]:
    """A figure of the sheet, each image pixel a whole number of figure pixels, with room for labels and title."""
    scale = -(-LEAST_PIXELS // side)
    width, height = sheet.shape[1] * scale / DPI, sheet.shape[0] * scale / DPI
    beside, above, below = 2.3, 0.5, 0.4  # inches
    figure = new_figure(beside + width, above + height + below, title)
    figure.set_layout_engine("none")
    total = figure.get_size_inches()
    axes = figure.add_axes((beside / total[0], below / total[1], width / total[0], height / total[1]))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    return figure, axes


def photographs() -> Dataset:
    """A square of 64 x 64 pixels out of each of the two photographs that come with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    squares = [china[:420, 20:440], flower[20:420, 160:560]]
    images = np.stack([np.asarray(Image.fromarray(square).resize((64, 64))) for square in squares])
    split = Split(np.arange(len(images)), images)
    return dataset_in_memory("scikit-learn's photographs", ("temple", "flower"), split, split)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `augment`."""
    parser.add_argument("--data-dir", metavar="DIR", help="CIFAR-10 or a folder of images [two photographs]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws [0]")


def run(arguments: argparse.Namespace) -> None:
    """Draw into `arguments.output`. Errors: UserError."""
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed takes a whole number from 0 to {2**63 - 1}, not {arguments.seed}")
    save(augment_figure(_dataset(arguments.data_dir), arguments.seed), arguments.output)


def _dataset(data_dir: str | None) -> Dataset:
    """The data set to draw. Errors: UserError."""
    if data_dir is None:
        return photographs()
    options = DataOptions(data_dir=data_dir, val_split=0.1)  # so that training images alone are enough
    name = data.resolve(options)[0]
    if name == "digits":
        raise UserError(f"--data-dir {data_dir}: neither CIFAR-10 nor train/CLASS/* and test/CLASS/* images are there")
    data.prepare(name, options)
    return data.load(name, options)


def _mixup(images: Tensor, draw: int, seed: int) -> Tensor:
    """The images blended with their neighbours."""
    share = random.Random(seed * DRAWS + draw).betavariate(1, 1)
    return mixing.blend(images, torch.zeros(len(images), 1), share)[0]


def _cutmix(images: Tensor, draw: int, seed: int) -> Tensor:
    """The images with a rectangle of their neighbours."""
    generator = random.Random(seed * DRAWS + draw)
    box = mixing.rectangle(images.shape[2], images.shape[3], generator.betavariate(1, 1), generator)
    return mixing.paste(images, torch.zeros(len(images), 1), box)[0]


def _resized(images: Tensor, draw: int, seed: int, stages: int | None = None) -> Tensor:
    """The images at a side that grows from half to full over the draws, shown at full size."""
    own = min(images.shape[2:])
    side = side_in_epoch(draw, own // 2, own, DRAWS - 1 if stages is None else DRAWS // 2, stages)
    size = [round(edge * side / own) for edge in images.shape[2:]]
    small = torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(small, size=images.shape[2:], mode="nearest-exact")


BATCH_ROWS: tuple[tuple[str, Callable[[Tensor, int, int], Tensor]], ...] = (
    ("--mixup 1", _mixup),
    ("--cutmix 1", _cutmix),
    ("--progressive-resize {half}", _resized),
    ("--progressive-resize-stages 2", functools.partial(_resized, stages=2)),
)


def _sheet(rows: list[list[Tensor]], dataset: Dataset) -> np.ndarray:
    """Rows of DRAWS batches of normalised images as one picture, float [H, W, 3] in 0 to 1; white in between."""
    mean, std = (np.asarray(values)[:, None, None] for values in (dataset.mean, dataset.std))
    strips = []
    for batches in rows:
        groups = []
        for image in range(len(batches[0])):
            pictures = [(batch[image].numpy() * std + mean).clip(0, 1) for batch in batches]
            groups.append(np.concatenate([_bordered(picture, 1, 1) for picture in pictures], axis=2))
        strips.append(np.concatenate([_bordered(group, 0, 3) for group in groups], axis=2))
    sheet = np.concatenate(strips, axis=1).transpose(1, 2, 0)
    return sheet.repeat(3, axis=2) if sheet.shape[2] == 1 else sheet


def _bordered(picture: np.ndarray, vertical: int, horizontal: int) -> np.ndarray:
    """[C, H, W] with this many white gaps above and below, and to the left and right."""
    pixels = max(1, round(picture.shape[1] * GAP))
    border = ((0, 0), (vertical * pixels, vertical * pixels), (horizontal * pixels, horizontal * pixels))
    return np.pad(picture, border, constant_values=1.0)
