"""Which images each rank was given in which step, as a technique: `--technique tests.faults.seen:record`."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from pathlib import Path

from torch import Tensor

from ddp_train.technique import Context, Moment, Technique


def record(context: Context) -> Technique:
    """Writes a line a micro-batch: step, rank, and the sum of each image's squares to six digits, which tells it."""
    folder = Path(str(context.config.run.out_dir))
    file = folder / f"seen-{context.ranks.world_size}-{context.ranks.rank}.jsonl"

    def batch(images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        names = [f"{value:.6g}" for value in images.double().square().flatten(1).sum(1).tolist()]
        with file.open("a") as stream:
            print(json.dumps({"step": moment.step, "rank": context.ranks.rank, "images": names}), file=stream)
        return images, targets

    return Technique(name="seen", batch=batch)


def checksums(context: Context) -> Technique:
    """Writes a line a micro-batch: epoch, step, and a checksum of each image, which is another for each."""
    file = Path(str(context.config.run.out_dir)) / f"checksums-{context.ranks.rank}.jsonl"

    def batch(images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        sums = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in images]
        with file.open("a") as stream:
            print(json.dumps({"epoch": moment.epoch, "step": moment.step, "images": sums}), file=stream)
        return images, targets

    return Technique(name="checksums", batch=batch)


def samples_of_epochs(folder: Path) -> tuple[dict[int, Counter[int]], list[str]]:
    """Epoch (from 1) -> how often each image was trained on in it, as what was trained last stands for a step that
    was taken again; and what is wrong where such a step was given other images than before."""
    given: dict[tuple[int, int, int], list[int]] = {}
    faults = []
    for rank, file in enumerate(sorted(folder.glob("checksums-*.jsonl"))):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            place = (entry["epoch"] + 1, entry["step"], rank)
            if given.setdefault(place, entry["images"]) != entry["images"]:
                faults.append(f"rank {rank} took step {entry['step']} again with other images")
    epochs: dict[int, Counter[int]] = {}
    for (epoch, _, _), images in given.items():
        epochs.setdefault(epoch, Counter()).update(images)
    return epochs, faults
