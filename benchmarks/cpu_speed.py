"""Training on a CPU by memory layout, allocator and spinning threads, compared with a naive loop.

One process trains on random images with the same loop of torch in all cases: forward, loss, backward, SGD. The naive
one has torch's defaults: contiguous tensors, glibc's malloc as it is, a thread for each core. The others add
channels_last; the malloc variables that the launcher sets (docs/environment.md); both; and both with a short spin of
OpenMP's threads (GOMP_SPINCOUNT). The clock runs over the steps after a warm-up. Each round starts each case once, in a
random order; the naive one twice, which shows the noise.

Images per second of the same training loop with each setting. With `benchmarks.cpu_speed --beside 1` another process
keeps a core busy meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.harness import Arguments, Figures, measurement, number, rounds, text
from benchmarks.programs import MALLOC, SPIN, start_worker
from benchmarks.turns import take_turns

BATCH, WARM_UP, STEPS = 256, 2, 6
NAIVE, BOTH, SHORT = "naive loop", "channels_last, malloc", "channels_last, malloc, short spin"
CASES: dict[str, tuple[str, dict[str, str]]] = {
    NAIVE: ("contiguous_format", {}),
    "naive loop again": ("contiguous_format", {}),
    "channels_last": ("channels_last", {}),
    "malloc": ("contiguous_format", MALLOC),
    BOTH: ("channels_last", MALLOC),
    SHORT: ("channels_last", MALLOC | SPIN),
}
"""Case -> memory format and environment variables."""


def train(name: str, layout: str) -> float:
    """Images per second of training in this process. layout: the name of one of torch's memory formats."""
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
    """Images per second of a new process, while `beside` others keep a core busy each."""
    ours = ("MALLOC_", "GOMP_", "OMP_", "KMP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
    try:
        return float(start_worker("cpu_speed", {"name": model, "layout": layout}, [sys.executable], env)())
    finally:
        for process in busy:
            process.kill()
            process.wait()


@measurement(
    text("--models", "speedrun,small", "networks, named as by --model of the trainer"),
    rounds(5),
    number("--beside", 0, "other busy processes", least=0),
    worker=train,
)
def main(arguments: Arguments) -> Figures:
    """Every network with every setting, in turns."""
    from ddp_train.models import create_model

    names = arguments.models.split(",")
    for name in names:
        create_model(name, num_classes=10)  # a wrong name ends here, not in a worker
    found, rows = {}, []
    for name in names:
        cases: dict[str, Callable[[], float]] = {
            case: partial(_rate, name, *settings, arguments.beside) for case, settings in CASES.items()
        }
        turns = take_turns(cases, arguments.rounds, unit=f"images/s, {name}")
        found[name] = turns.account()
        if turns.enough:
            found[name]["over_naive"] = {case: turns.ratio(case, NAIVE).rounded(3) for case in turns.cases}
            found[name]["short_spin_over_the_usual"] = turns.ratio(SHORT, BOTH).rounded(3)
            rows += [[name, *row] for row in turns.rows(NAIVE, ",.0f", turns.ratio, ".2f")]
    if not rows:
        reasons = "; ".join(f"{name}: {one['not_measured']}" for name, one in found.items())
        return {"models": found, "not_measured": reasons}
    columns = ["network", "loop", "images/s, median (quartiles)", "over the naive loop"]
    return {"models": found, "table": {"columns": columns, "rows": rows}}
