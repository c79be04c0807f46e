"""The time of a training step with each optimizer and each technique that works on the weights.

    python -m benchmarks.optimizers NAME [--device cuda] [--model power] [--batch-size 128]

All are built first and then timed in turns, so that a disturbance meets all of them alike; the median counts. The
result is written to benchmarks/results/NAME.json with the command and the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from benchmarks.machine import ROOT, describe_machine
from benchmarks.quiet import watched
from ddp_train import config
from ddp_train.build import build
from ddp_train.data.pipeline import Window
from ddp_train.distributed import Ranks, choose_device
from ddp_train.trainer import Trainer

__all__ = ["main", "measure"]

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
WARM_UP = 2


def measure(common: list[str], device: torch.device, rounds: int) -> dict[str, float]:
    """Variant -> median milliseconds of a step on this device."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for number, (name, words) in enumerate(VARIANTS.items()):
            options = [*common, *words.split(), "--no-tensorboard", "--out-dir", f"{folder}/{number}"]
            trainer = build(config.parse(options), Ranks(), device).trainer
            trainer.parts.model.train()
            runs[name] = (trainer, _windows(trainer))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(WARM_UP + rounds):
            for name, (trainer, windows) in runs.items():
                window = next(windows)
                started = time.perf_counter()
                trainer.train_step(window)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn >= WARM_UP:
                    times[name].append(1000 * (time.perf_counter() - started))
    return {name: round(statistics.median(found), 2) for name, found in times.items()}


def _windows(trainer: Trainer) -> Iterator[Window]:
    return itertools.chain.from_iterable(trainer.parts.pipeline.train(epoch) for epoch in itertools.count())


def main(argv: list[str] | None = None) -> int:
    """Measure and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="the result is benchmarks/results/NAME.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch-size", default="128", metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="steps of each that are timed (default 15)")
    arguments = parser.parse_args(argv)
    common = f"--dataset synthetic --model {arguments.model} --batch-size {arguments.batch_size}".split()
    device = choose_device(arguments.device, Ranks())
    machine = describe_machine()
    with watched() as window:
        found = measure(common, device, arguments.rounds)
    result = {
        "schema": "ddp-benchmark/1",
        "command": " ".join(["python", "-m", "benchmarks.optimizers", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine,
        "torch": torch.__version__,
        "others_share_of_cpu": round(window.others, 3),
        "milliseconds_per_step": found,
    }
    path = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for name, took in found.items():
        print(f"{name:<16} {took:8.2f} ms")
    print(f"others took {window.others:.0%} of the CPU time: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
