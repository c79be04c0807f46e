"""What a checkpoint takes of the training time at the default interval, and of an epoch.

Compares a stretch of training steps with and without a checkpoint at its start, flushed to the disk at its end: the
difference is the cost of copying, hashing, writing and flushing. The checkpoint is complete, with the best model. Its
cost is set against the default --save-every, and against an epoch of CIFAR-10's 50,000 images at the measured speed,
since each epoch ends with a checkpoint too. A third case shows the noise.

Seconds that training loses to one checkpoint, and their share of the time between two. The call is what the training
thread waits for; writing continues beside the training.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Arguments, Figures, measurement, number, rounds, text
from benchmarks.turns import Turns, take_turns
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.config.validation import read_interval
from ddp_train.distributed.process_group import Ranks, choose_device
from ddp_train.engine.trainer import Trainer

WITHOUT, AGAIN, WITH, COPY = "without", "without again", "with a checkpoint", "the call alone"
CIFAR10_TRAIN = 50_000


def take(trainer: Trainer, count: int) -> Turns:
    """Seconds of a stretch of steps, by case; for `COPY`, the seconds for which the training thread waits."""
    epochs, saver = itertools.count(), trainer.components.saver
    assert saver is not None

    def stretch(*, saved: bool) -> float:
        """Seconds of a stretch of steps, with a checkpoint at its start if `saved`."""
        started = time.perf_counter()
        if saved:
            saver.save(trainer.progress, trainer.components.evaluated)
        saver.begin()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_epoch(next(epochs))
        trainer.progress.end_epoch()
        torch.get_device_module(trainer.components.device).synchronize(trainer.components.device)
        if saved:
            saver.finish()
        return time.perf_counter() - started

    def call() -> float:
        """Seconds of the call that saves a checkpoint."""
        started = time.perf_counter()
        saver.save(trainer.progress, trainer.components.evaluated)
        taken = time.perf_counter() - started
        saver.finish()
        return taken

    without, saving = partial(stretch, saved=False), partial(stretch, saved=True)
    return take_turns({WITHOUT: without, AGAIN: without, WITH: saving, COPY: call}, count, unit="s")


def _costs(turns: Turns, images: int, save_every: str) -> Figures:
    """The figures of the turns, and their table. save_every: the default interval."""
    cost, stretch, copy = turns.difference(WITH, WITHOUT), turns.values(WITHOUT), turns.values(COPY)
    interval = read_interval(save_every, "--save-every").seconds
    epoch = stretch.median * CIFAR10_TRAIN / images
    cells = {
        "a checkpoint costs": f"{cost:.3f} s",
        f"of --save-every {save_every}": "no time is set" if interval is None else f"{cost.median / interval:.3%}",
        "of an epoch of 50,000 images": f"{cost.median / epoch:.2%}",
        "its call takes": f"{1000 * copy.median:.1f} ms",
    }
    return {
        "seconds_of_a_stretch": stretch.rounded(3),
        "seconds_a_checkpoint_costs": cost.rounded(3),
        "seconds_of_noise": turns.difference(AGAIN, WITHOUT).rounded(3),
        "seconds_the_training_thread_stands_still": copy.rounded(4),
        "share_at_the_default_interval": None if interval is None else round(cost.median / interval, 5),
        "default_interval": save_every,
        "share_of_an_epoch_of_50000_images": round(cost.median / epoch, 5),
        "seconds_of_that_epoch": round(epoch, 1),
        "table": {"columns": list(cells), "rows": [list(cells.values())]},
    }


@measurement(
    rounds(9),
    text("--model", "resnet18", "network"),
    number("--steps", 12, "optimizer steps of a stretch"),
    number("--batch-size", 64, "global batch"),
)
def main(arguments: Arguments) -> Figures:
    """Train stretches of a network on synthetic images with and without a checkpoint."""
    images = arguments.steps * arguments.batch_size
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".checkpoint-cost-") as folder:
        words = (
            f"--dataset synthetic --synthetic-samples {images} --batch-size {arguments.batch_size} --optimizer sgd "
            f"--model {arguments.model} --epochs 100000 --out-dir {folder} --no-tensorboard"
        )
        run = build(parse(words.split()), Ranks(), choose_device("auto", Ranks()))
        turns = take(run.trainer, arguments.rounds)
        files = {path.name: path.stat().st_size for path in sorted(Path(folder).glob("*.pt*"))}
    found: Figures = {"model": arguments.model, "bytes": files, **turns.account()}
    return found | (_costs(turns, images, str(run.config.run.save_every)) if turns.enough else {})
