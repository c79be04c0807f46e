"""The time of a training step with each optimizer and each technique that works on the weights.

    python -m benchmarks.optimizers [--device cuda] [--model small] [--batch-size 128] [--rounds 5] [--out NAME]

All are built first and then take a step in turns, so that a disturbance meets all of them alike; a round is the median
of six steps of each. Rounds that other processes disturbed are left out.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from benchmarks.harness import DEVICE, Figures, Measurement, Option, rounds
from benchmarks.turns import Turns, take_figures
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Window
from ddp_train.distributed.process_group import Ranks, choose_device
from ddp_train.engine.trainer import Trainer

VARIANTS = {
    "sgd": "",
    "adam": "--optimizer adam",
    "adamw": "--optimizer adamw",
    "adamw, amsgrad": "--optimizer adamw --amsgrad",
    "muon, adamw": "--optimizer muon",
    "muon, sgd": "--optimizer muon --muon-rest sgd",
    "sgd, sam": "--sam 0.05",
    "sgd, lookahead": "--lookahead 5",
    "sgd, ema": "--ema 0.999",
}
WARM_UP, STEPS = 2, 6


def measure(common: list[str], device: torch.device, count: int) -> Turns:
    """Milliseconds of a step on this device, by variant."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for number, (name, words) in enumerate(VARIANTS.items()):
            options = [*common, *words.split(), "--no-tensorboard", "--out-dir", f"{folder}/{number}"]
            trainer = build(parse(options), Ranks(), device).trainer
            trainer.components.model.train()
            runs[name] = (trainer, _windows(trainer))

        def steps(number: int) -> dict[str, float]:
            taken: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(number):
                for name, (trainer, windows) in runs.items():
                    taken[name].append(_milliseconds(trainer, next(windows), device))
            return {name: statistics.median(found) for name, found in taken.items()}

        steps(WARM_UP)
        return take_figures(lambda: steps(STEPS), count, unit="ms")


def _milliseconds(trainer: Trainer, window: Window, device: torch.device) -> float:
    started = time.perf_counter()
    trainer.train_step(window)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started)


def _windows(trainer: Trainer) -> Iterator[Window]:
    return itertools.chain.from_iterable(trainer.components.pipeline.train(epoch) for epoch in itertools.count())


def compare(arguments: argparse.Namespace) -> Figures:
    """All variants on one network."""
    work = f"--dataset synthetic --model {arguments.model} --batch-size {arguments.batch_size}"
    turns = measure(work.split(), choose_device(arguments.device, Ranks()), arguments.rounds)
    rows = turns.rows("sgd", ".1f", turns.ratio, ".2f") if turns.enough else []
    columns = ["optimizer", "ms of a step, median (quartiles)", "times sgd"]
    return {**turns.account(), "rounds": turns.rounded(2), "table": {"columns": columns, "rows": rows}}


OPTIONS = (
    DEVICE,
    Option("--model", default="small"),
    Option("--batch-size", type=int, default=128, metavar="N", help="global batch [128]"),
    rounds(5),
)
main = Measurement("optimizers", __doc__, compare, OPTIONS)

if __name__ == "__main__":
    sys.exit(main())
