"""The crop of a batch of CIFAR-10's shape, in the three ways of ddp_train/data/augment/crop.py.

Each gathers 32x32 windows out of padded images, one way after the other in turns; the median of the rounds counts. On a
GPU the time is that between two events around the calls.

Microseconds for a batch of 512 images; on the CPU on one thread, in time of that thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import DEVICE, OUT, Arguments, Figures, measurement, number
from ddp_train.data.augment.crop import CROPS

SIDE, PAD, BATCH, CALLS = 32, 4, 512, 20


def _microseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Microseconds of one call."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / CALLS * 1e3
    began = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - began) / CALLS * 1e6


@measurement(number("--rounds", 15, "measurements of each"), number("--images", 50_000, "in memory"), DEVICE, OUT)
def main(arguments: Arguments) -> Figures:
    """The time of each way; refuses ways with different results."""
    torch.set_num_threads(1)
    device, around = torch.device(arguments.device), SIDE + 2 * PAD
    padded = torch.randint(256, (arguments.images, around, around, 3), dtype=torch.uint8, device=device)
    rows = torch.randint(arguments.images, (BATCH,), device=device)
    down, right = torch.randint(2 * PAD + 1, (2, BATCH), device=device)
    calls = {
        name: (lambda crop=crop: crop(padded, rows, down * around + right, SIDE, SIDE)) for name, crop in CROPS.items()
    }
    first, *others = (call() for call in calls.values())
    assert all(torch.equal(first, other) for other in others), "the ways are one"
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            found[name].append(_microseconds(call, device))
    medians = {name: round(statistics.median(times), 1) for name, times in found.items()}
    for name, microseconds in medians.items():
        print(f"{name:10} {microseconds:9.1f} us", file=sys.stderr)
    rows_of_table = [[name, f"{microseconds:.0f}"] for name, microseconds in medians.items()]
    table = {"columns": ["way", f"µs for {BATCH} images, median"], "rows": rows_of_table}
    return {"device": arguments.device, "images": arguments.images, "unit": "us", "cases": medians, "table": table}
