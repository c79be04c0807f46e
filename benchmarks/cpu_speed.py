"""What the memory layout, the allocator and the waiting of threads make of training on a CPU.

    python -m benchmarks.cpu_speed [--models speedrun,small] [--rounds 5] [--beside 0] [--out NAME]

One process trains on random images with the same loop of torch in all cases: forward, loss, backward, SGD. The naive
one has torch's defaults: contiguous tensors, glibc's malloc as it is, a thread for each core. Then, one after
the other: channels_last; the malloc variables that the launcher sets (docs/environment.md); both; and both with a short
spin of OpenMP's threads (GOMP_SPINCOUNT). The clock runs over the steps after a warm-up. --beside N keeps N other
processes busy meanwhile; without it, rounds that other processes disturbed are left out. Each round starts each case
once, in a random order; the naive one twice, which shows the noise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.harness import Figures, Measurement, Option, rounds
from benchmarks.programs import Worker
from benchmarks.turns import Turns, take_turns

BATCH, WARM_UP, STEPS = 256, 2, 6
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
SPIN = {"GOMP_SPINCOUNT": "1000"}
NAIVE, AGAIN, LAYOUT, HEAP, BOTH, SHORT = (
    "naive loop",
    "naive loop again",
    "channels_last",
    "malloc",
    "channels_last, malloc",
    "channels_last, malloc, short spin",
)
SPIN_LOOP = "while True: pass"


def train(name: str, layout: str) -> float:
    """Images per second of training in this process. layout: of torch's memory formats."""
    import torch

    from ddp_train import models

    torch.manual_seed(0)
    network = models.create_model(name, num_classes=10).to(memory_format=getattr(torch, layout))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=getattr(torch, layout))
    labels = torch.randint(10, (BATCH,))
    started = 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return STEPS * BATCH / (time.perf_counter() - started)


def _rate(model: str, layout: str, variables: dict[str, str], beside: int) -> float:
    ours = ("MALLOC_", "GOMP_", "OMP_", "KMP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    with _busy(beside):
        return float(Worker("cpu_speed", {"name": model, "layout": layout}, [sys.executable], env).answer())


def measure(model: str, count: int, beside: int = 0) -> Turns:
    """Images per second by case, beside so many busy processes."""
    cases: dict[str, Callable[[], float]] = {
        NAIVE: lambda: _rate(model, "contiguous_format", {}, beside),
        AGAIN: lambda: _rate(model, "contiguous_format", {}, beside),
        LAYOUT: lambda: _rate(model, "channels_last", {}, beside),
        HEAP: lambda: _rate(model, "contiguous_format", MALLOC, beside),
        BOTH: lambda: _rate(model, "channels_last", MALLOC, beside),
        SHORT: lambda: _rate(model, "channels_last", MALLOC | SPIN, beside),
    }
    return take_turns(cases, count, unit=f"images/s, {model}")


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN_LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def summary(model: str, turns: Turns) -> Figures:
    """The ratios to the naive loop."""
    if not turns.enough:
        return turns.account()
    rows = [[model, *row] for row in turns.rows(NAIVE, ",.0f", turns.ratio, ".2f")]
    ratios = {case: turns.ratio(case, NAIVE).rounded(3) for case in turns.cases}
    spin = turns.ratio(SHORT, BOTH).rounded(3)
    return {**turns.account(), "over_naive": ratios, "short_spin_over_the_usual": spin, "rows": rows}


def compare(arguments: argparse.Namespace) -> Figures:
    """All networks."""
    names = arguments.models.split(",")
    found = {name: summary(name, measure(name, arguments.rounds, arguments.beside)) for name in names}
    rows = [row for one in found.values() for row in one.pop("rows", [])]
    if not rows:
        reasons = "; ".join(f"{model}: {one['not_measured']}" for model, one in found.items())
        return {"models": found, "not_measured": reasons}
    columns = ["network", "loop", "images/s, median (quartiles)", "over the naive loop"]
    return {"models": found, "table": {"columns": columns, "rows": rows}}


OPTIONS = (
    Option("--models", default="speedrun,small", metavar="LIST", help="networks [speedrun,small]"),
    rounds(5),
    Option("--beside", type=int, default=0, metavar="N", help="other busy processes [0]"),
)
main = Measurement("cpu_speed", __doc__, compare, OPTIONS, worker=train)

if __name__ == "__main__":
    sys.exit(main())
