"""The preset speedrun with several seeds in one process, by the clock that its peers use.

python speedrun_seeds.py --data-dir DIR [--target T] [--seeds N] [--device cuda|cpu] [options of the trainer]

On the clock: the training steps, from the first one to the device's last. Before it: reading the data, and one step of
every shape with forward passes as in the examination, after which everything is what it was. After it: the
examination, with its own time. Prints one JSON document: each seed, mean and standard deviation, and `cold_wall_s`
from the start of the process to the end of the first seed's examination.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from ddp_train.assemble.build import Run, build
from ddp_train.assemble.resolve_options import set_arithmetic
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks, choose_device
from ddp_train.engine.evaluate import examine
from ddp_train.engine.trainer import Trainer
from ddp_train.evaluation.tta import views
from ddp_train.tune.warm_up import warm_up

STARTED = time.monotonic()


def make(words: list[str], device: torch.device) -> Run:
    """A run whose steps report nothing."""
    config = parse(words)
    set_arithmetic(config, Ranks(), device)
    run = build(config, Ranks(), device)
    return replace(run, trainer=Trainer(replace(run.trainer.components, observers=())))


def accuracies(run: Run) -> tuple[float, float | None]:
    """The accuracies on the test split: plain, and with the run's test-time augmentation."""
    parts, diagnostics = run.trainer.components, run.config.diagnostics
    classes, final = len(run.dataset.classes), run.dataset.final
    plain = examine(parts.evaluated, parts.pipeline.evaluate(final), parts.precision, classes).top1
    if diagnostics.tta == "none":
        return plain, None
    below = math.inf if diagnostics.tta_below is None else diagnostics.tta_below
    seen = views(diagnostics.tta)
    batches = parts.pipeline.evaluate(final)
    return plain, examine(parts.evaluated, batches, parts.precision, classes, views=seen, below=below).top1


def one(words: list[str], device: torch.device) -> dict[str, Any]:
    """Train with one seed; returns its figures."""
    wait = torch.get_device_module(device).synchronize
    began = time.perf_counter()
    run = make(words, device)
    built = time.perf_counter()
    trainer = run.trainer
    warm_up(trainer)
    accuracies(run)
    wait()
    warm = time.perf_counter()
    parts = trainer.components
    assert parts.saver is not None
    parts.saver.begin()
    for epoch in range(parts.epochs):
        trainer.train_epoch(epoch)
        trainer.progress.end_epoch()
    wait()
    ended = time.perf_counter()
    plain, augmented = accuracies(run)
    images = parts.pipeline.steps_per_epoch * parts.global_batch * parts.epochs
    found = {
        "train_s": ended - warm,
        "examination_s": time.perf_counter() - ended,
        "build_s": built - began,
        "warm_up_s": warm - built,
    }
    run.lock.release()
    return {
        **{name: round(value, 4) for name, value in found.items()},
        "steps": trainer.progress.step,
        "images_per_second": round(images / found["train_s"]),
        "test_accuracy": plain,
        "test_accuracy_tta": augmented,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean and standard deviation of the figures."""
    found = {}
    for name in ("train_s", "test_accuracy", "test_accuracy_tta"):
        values = [run[name] for run in runs if run[name] is not None]
        if values:
            found[name] = [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0]
    return found


def main() -> int:
    """Every seed; the exit status."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--target", default="0.94")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments, rest = parser.parse_known_args()
    device = choose_device(arguments.device, Ranks())
    runs, cold = [], 0.0
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            words = ["--preset", "speedrun", "--target", arguments.target, "--data-dir", arguments.data_dir]
            words += ["--dataset", "cifar10", "--device", arguments.device, "--seed", str(seed), "--no-tensorboard"]
            runs.append({"seed": seed, **one([*words, "--out-dir", f"{folder}/run", *rest], device)})
        cold = cold or time.monotonic() - STARTED
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    head = {"target": arguments.target, "options": rest, "torch": torch.__version__, "cold_wall_s": round(cold, 2)}
    print(json.dumps({**head, "mean_and_deviation": summary(runs), "runs": runs}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
