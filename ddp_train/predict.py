"""`python -m ddp_train.predict FILE IMAGE...`: classify images with a saved model. Exit status: 0; 2 for a mistake."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError, printable

BATCH = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Print the likeliest classes of each image; returns the exit status."""
    return exit_status(lambda: _show(_parse(argv)))


def _show(arguments: argparse.Namespace) -> None:
    """Predict, and print as JSON or text."""
    found = _predict(arguments.file, arguments.images, arguments.top, arguments.device)
    if arguments.json:
        rows = [
            {"image": image, "predictions": [{"class": name, "probability": value} for name, value in guesses]}
            for image, guesses in found
        ]
        print(json.dumps({"schema": "ddp-train-prediction/1", "images": rows}))
        return
    width = max(len(printable(name)) for _, guesses in found for name, _ in guesses)
    for image, guesses in found:
        print(printable(image))
        for name, value in guesses:
            print(f"  {printable(name):<{width}}  {value:>8.2%}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line. Errors: UserError."""
    parser = CommandLine(prog="python -m ddp_train.predict", description="What a saved model takes images for.")
    parser.add_argument("file", metavar="FILE", help="best_model.pth, checkpoint-latest.pt, or a run folder")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files of any size, or folders of them")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name [5]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute [auto]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"--top takes a whole number from 1 on, not {arguments.top}")
    return arguments


def _predict(file: str, images: Sequence[str], top: int, wanted: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """(image, its likeliest classes with their probabilities) for every image. Each image is scaled until it covers the
    model's input size, and its center is cut out."""
    import numpy as np
    import torch
    from PIL import Image

    from ddp_train.data.sources.decode import read_image
    from ddp_train.data.sources.listing import files_below
    from ddp_train.data.sources.pixels import Reading
    from ddp_train.distributed.process_group import Ranks, choose_device
    from ddp_train.evaluation.saved_model import open_saved_model

    saved = open_saved_model(file, choose_device(wanted, Ranks()))
    channels, height, width = saved.facts.image_shape
    normaliser, classes = saved.normaliser(), saved.facts.classes
    options = saved.config.data
    reading = Reading(options.background, options.max_pixels, saved.facts.levels, saved.facts.resize)
    # os.path.isdir does not raise for a name that is too long
    named = [files_below(path) if os.path.isdir(path) else [path] for path in images]  # noqa: PTH112
    images = [file for files in named for file in files]
    found = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        arrays = [read_image(image, (height, width), reading) for image in part]
        if channels == 1:
            arrays = [np.asarray(Image.fromarray(array).convert("L"))[..., None] for array in arrays]
        batch = torch.from_numpy(np.stack(arrays)).to(saved.device)
        with torch.no_grad():
            probabilities = saved.network(normaliser.normalise(batch)).float().softmax(1)
        likeliest = probabilities.topk(min(top, len(classes)), dim=1)
        for image, values, indices in zip(part, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
            found.append((image, [(classes[index], value) for value, index in zip(values, indices, strict=True)]))
    return found


if __name__ == "__main__":
    sys.exit(main())
