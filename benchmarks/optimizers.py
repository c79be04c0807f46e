"""The time of a step with each optimizer and weight technique.

All are built first and then take a step in turns, so that a disturbance affects all of them; a round is the median of
six steps of each.

Time of a whole training step, and how many times that of SGD it is.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time

import torch

from benchmarks.harness import DEVICE, Arguments, Figures, measurement, number, rounds, text
from benchmarks.turns import take_figures
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks, choose_device

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


@measurement(
    DEVICE,
    text("--model", "small", "network"),
    number("--batch-size", 128, "global batch"),
    rounds(5),
)
def main(arguments: Arguments) -> Figures:
    """Steps of a network with each optimizer and weight technique, in turns."""
    device = choose_device(arguments.device, Ranks())
    common = f"--dataset synthetic --model {arguments.model} --batch-size {arguments.batch_size} --no-tensorboard"
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for number, (name, words) in enumerate(VARIANTS.items()):
            options = f"{common} {words} --out-dir {folder}/{number}"
            trainer = build(parse(options.split()), Ranks(), device).trainer
            trainer.components.model.train()
            pipeline = trainer.components.pipeline
            runs[name] = (trainer, itertools.chain.from_iterable(map(pipeline.train, itertools.count())))

        def steps(count: int) -> dict[str, float]:
            """Median milliseconds of `count` steps of each optimizer."""
            taken: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(count):
                for name, (trainer, windows) in runs.items():
                    window, started = next(windows), time.perf_counter()
                    trainer.train_step(window)
                    torch.get_device_module(device).synchronize(device)
                    taken[name].append(1000 * (time.perf_counter() - started))
            return {name: statistics.median(found) for name, found in taken.items()}

        steps(WARM_UP)
        turns = take_figures(lambda: steps(STEPS), arguments.rounds, unit="ms")
    rows = turns.rows("sgd", ".1f", turns.ratio, ".2f") if turns.enough else []
    columns = ["optimizer", "ms of a step, median (quartiles)", "times sgd"]
    return {**turns.account(), "rounds": turns.rounded(2), "table": {"columns": columns, "rows": rows}}
