"""Which images each rank was given in which step, as a technique: `--technique tests.faults.seen:record`."""

from __future__ import annotations

import json
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
