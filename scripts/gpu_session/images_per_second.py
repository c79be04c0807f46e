"""Training images per second of a network by number format: python images_per_second.py MODEL [--device cuda|cpu]

The trainer's own steps on synthetic images of CIFAR-10's shape that are in the device's memory, augmentation included,
after steps of every shape. The clock stops when the device has finished. Prints one JSON document; a format that fails
has its error there, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import traceback
from typing import Any

import torch

from ddp_train.assemble.build import build
from ddp_train.assemble.resolve_options import set_arithmetic
from ddp_train.config.parse import parse
from ddp_train.distributed.process_group import Ranks, choose_device

CASES = {
    "bf16, compiled": "--amp bf16 --compile",  # first: later it could not be compiled
    "bf16": "--amp bf16",
    "fp16": "--amp fp16",
    "off": "--amp off",
}


def measure(model: str, words: str, batch: int, warm_up: int, steps: int, device: torch.device) -> dict[str, float]:
    """Images per second, and how long the first steps took."""
    with tempfile.TemporaryDirectory() as folder:
        images = batch * (steps + warm_up)
        common = f"--dataset synthetic --synthetic-samples {images} --batch-size {batch} --epochs 1 --no-tensorboard"
        config = parse([*f"--model {model} {common} --out-dir {folder} {words}".split()])
        set_arithmetic(config, Ranks(), device)
        trainer = build(config, Ranks(), device).trainer
        trainer.components.model.train()
        windows = trainer.components.pipeline.train(0)
        wait = torch.get_device_module(device).synchronize
        began = time.perf_counter()
        for window in itertools.islice(windows, warm_up):
            trainer.train_step(window)
        wait()
        warm = time.perf_counter()
        for window in windows:
            trainer.train_step(window)
        wait()
        seconds = time.perf_counter() - warm
    return {"images_per_second": round(batch * steps / seconds), "first_steps_s": round(warm - began, 2)}


def main() -> int:
    """Every format; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    device = choose_device(arguments.device, Ranks())
    found: dict[str, Any] = {}
    for name, words in CASES.items():
        if name == "fp16" and device.type == "cpu":
            continue
        try:
            found[name] = measure(
                arguments.model, words, arguments.batch_size, arguments.warm_up, arguments.steps, device
            )
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": repr(error)}
    print(json.dumps({"model": arguments.model, "batch_size": arguments.batch_size, "formats": found}, indent=1))
    return int(any("error" in one for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
