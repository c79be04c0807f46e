"""What a checkpoint costs the training: the copy in host memory, and what its writing takes of the machine meanwhile.

    python -m benchmarks.checkpoint_cost [--rounds 9] [--model resnet18] [--steps 12] [--batch-size 64] [--out NAME]

A stretch of training steps with and without a checkpoint at its start, which is flushed to the disk at its end: the
difference holds the cost of copying, hashing, writing and flushing. The checkpoint is whole, with the best model. The
cost is set against the default --save-every, and against an epoch of CIFAR-10's 50,000 images at the measured speed,
since each epoch ends with a checkpoint too. A third case shows the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Figures, Measurement, Option, rounds
from benchmarks.turns import Turns, take_turns
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.config.validation import read_interval
from ddp_train.distributed.process_group import Ranks, choose_device
from ddp_train.engine.trainer import Trainer

WITHOUT, AGAIN, WITH, COPY = "without", "without again", "with a checkpoint", "the call alone"
CIFAR10_TRAIN = 50_000
COLUMNS = ["a checkpoint costs", "of an epoch of 50,000 images", "its call takes"]


def measure(trainer: Trainer, count: int) -> Turns:
    """Seconds of a stretch of steps, by case; of `COPY`, those for which the training thread waits."""
    epochs = itertools.count()

    def stretch(*, saved: bool) -> float:
        started = time.perf_counter()
        if saved:
            _save(trainer)
        _train(trainer, next(epochs))
        if saved:
            _finish(trainer)
        return time.perf_counter() - started

    def call() -> float:
        started = time.perf_counter()
        _save(trainer)
        taken = time.perf_counter() - started
        _finish(trainer)
        return taken

    cases: dict[str, Callable[[], float]] = {
        WITHOUT: lambda: stretch(saved=False),
        AGAIN: lambda: stretch(saved=False),
        WITH: lambda: stretch(saved=True),
        COPY: call,
    }
    return take_turns(cases, count, unit="s")


def _save(trainer: Trainer) -> None:
    assert trainer.components.saver is not None
    trainer.components.saver.save(trainer.progress, trainer.components.evaluated)


def _finish(trainer: Trainer) -> None:
    assert trainer.components.saver is not None
    trainer.components.saver.finish()


def _train(trainer: Trainer, epoch: int) -> None:
    saver = trainer.components.saver
    assert saver is not None
    saver.begin()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.train_epoch(epoch)
    trainer.progress.end_epoch()
    if trainer.components.device.type == "cuda":
        torch.cuda.synchronize(trainer.components.device)


def measure_cost(arguments: argparse.Namespace) -> Figures:
    """Figures of one network in a run folder of its own."""
    images = arguments.steps * arguments.batch_size
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".checkpoint-cost-") as folder:
        words = (
            f"--dataset synthetic --synthetic-samples {images} --batch-size {arguments.batch_size} --optimizer sgd "
            f"--model {arguments.model} --epochs 100000 --out-dir {folder} --no-tensorboard"
        )
        run = build(parse(words.split()), Ranks(), choose_device("auto", Ranks()))
        turns = measure(run.trainer, arguments.rounds)
        files = {path.name: path.stat().st_size for path in sorted(Path(folder).glob("*.pt*"))}
    return {"model": arguments.model, "bytes": files, **_result(turns, images, str(run.config.run.save_every))}


def _result(turns: Turns, images: int, save_every: str) -> Figures:
    found = turns.account()
    if not turns.enough:
        return found
    cost, noise = turns.difference(WITH, WITHOUT), turns.difference(AGAIN, WITHOUT)
    interval = read_interval(save_every, "--save-every").seconds
    epoch = turns.values(WITHOUT).median * CIFAR10_TRAIN / images
    row = [
        f"{cost:.3f} s",
        "no time is set" if interval is None else f"{cost.median / interval:.3%}",
        f"{cost.median / epoch:.2%}",
        f"{1000 * turns.values(COPY).median:.1f} ms",
    ]
    return found | {
        "seconds_of_a_stretch": turns.values(WITHOUT).rounded(3),
        "seconds_a_checkpoint_costs": cost.rounded(3),
        "seconds_of_noise": noise.rounded(3),
        "seconds_the_training_thread_stands_still": turns.values(COPY).rounded(4),
        "share_at_the_default_interval": None if interval is None else round(cost.median / interval, 5),
        "default_interval": save_every,
        "share_of_an_epoch_of_50000_images": round(cost.median / epoch, 5),
        "seconds_of_that_epoch": round(epoch, 1),
        "table": {"columns": [*COLUMNS[:1], f"of --save-every {save_every}", *COLUMNS[1:]], "rows": [row]},
    }


OPTIONS = (
    rounds(9),
    Option("--model", default="resnet18"),
    Option("--steps", type=int, default=12, metavar="N", help="optimizer steps of a stretch [12]"),
    Option("--batch-size", type=int, default=64, metavar="N", help="global batch [64]"),
)
main = Measurement("checkpoint_cost", __doc__, measure_cost, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
