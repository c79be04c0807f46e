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

from benchmarks.machine import describe_machine, publish
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


def measure(common: list[str], device: torch.device, rounds: int) -> Turns:
    """Milliseconds of a step on this device, by variant."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for number, (name, words) in enumerate(VARIANTS.items()):
            options = [*common, *words.split(), "--no-tensorboard", "--out-dir", f"{folder}/{number}"]
            trainer = build(parse(options), Ranks(), device).trainer
            trainer.components.model.train()
            runs[name] = (trainer, _windows(trainer))

        def steps(count: int) -> dict[str, float]:
            taken: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(count):
                for name, (trainer, windows) in runs.items():
                    taken[name].append(_milliseconds(trainer, next(windows), device))
            return {name: statistics.median(found) for name, found in taken.items()}

        steps(WARM_UP)
        return take_figures(lambda: steps(STEPS), rounds, unit="ms")


def _milliseconds(trainer: Trainer, window: Window, device: torch.device) -> float:
    started = time.perf_counter()
    trainer.train_step(window)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started)


def _windows(trainer: Trainer) -> Iterator[Window]:
    return itertools.chain.from_iterable(trainer.components.pipeline.train(epoch) for epoch in itertools.count())


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="undisturbed rounds [5]")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    work = f"--model {arguments.model} --batch-size {arguments.batch_size}"
    machine = describe_machine()
    device = choose_device(arguments.device, Ranks())
    turns = measure(f"--dataset synthetic {work}".split(), device, arguments.rounds)
    found = [(name, turns.values(name), turns.ratio(name, "sgd")) for name in VARIANTS if turns.enough]
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.optimizers --device {arguments.device} {work} --rounds {arguments.rounds}",
        "machine": machine,
        **turns.account(),
        "rounds": [{name: round(taken, 2) for name, taken in found.items()} for found in turns.rounds],
        "table": {
            "columns": ["optimizer", "ms of a step, median (quartiles)", "times sgd"],
            "rows": [[name, f"{taken:.1f}", f"{times:.2f}"] for name, taken, times in found],
        },
    }
    publish(result, arguments.out)
    return 0 if turns.enough else 1


if __name__ == "__main__":
    sys.exit(main())
