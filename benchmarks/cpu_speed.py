"""What the memory layout, the allocator and the waiting of threads make of training on a CPU.

    python -m benchmarks.cpu_speed [--models speedrun,small] [--rounds 5] [--beside 0] [--out NAME]

One process trains on random images with the same loop of torch in all cases: forward, loss, backward, SGD. The naive
one has torch's defaults: contiguous tensors, glibc's malloc as it is, a thread for each core. Then, one after
the other: channels_last; the malloc variables that the launcher sets (docs/environment.md); both; and both with a short
spin of OpenMP's threads (GOMP_SPINCOUNT). The clock runs over the steps behind a warm-up. --beside N keeps N other
processes busy meanwhile; without it, rounds that other processes disturbed are left out. Each round starts each case
once, in a random order; the naive one twice, which shows the noise. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.turns import Turns, take_turns

LIMIT_S = 300
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
    command = [sys.executable, "-m", "benchmarks.cpu_speed", "--one", model, layout]
    ours = ("MALLOC_", "GOMP_", "OMP_", "KMP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    with _busy(beside):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
    return float(done.stdout)


def measure(model: str, rounds: int, beside: int = 0) -> Turns:
    """Images per second by case, beside so many busy processes."""
    cases: dict[str, Callable[[], float]] = {
        NAIVE: lambda: _rate(model, "contiguous_format", {}, beside),
        AGAIN: lambda: _rate(model, "contiguous_format", {}, beside),
        LAYOUT: lambda: _rate(model, "channels_last", {}, beside),
        HEAP: lambda: _rate(model, "contiguous_format", MALLOC, beside),
        BOTH: lambda: _rate(model, "channels_last", MALLOC, beside),
        SHORT: lambda: _rate(model, "channels_last", MALLOC | SPIN, beside),
    }
    return take_turns(cases, rounds, unit=f"images/s, {model}")


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


def summary(model: str, turns: Turns) -> dict[str, object]:
    """The ratios to the naive loop."""
    if not turns.enough:
        return turns.account()
    names = list(turns.rounds[0])
    rows = [[model, case, f"{turns.values(case):,.0f}", f"{turns.ratio(case, NAIVE):.2f}"] for case in names]
    ratios = {case: turns.ratio(case, NAIVE).rounded(3) for case in names}
    spin = turns.ratio(SHORT, BOTH).rounded(3)
    return {**turns.account(), "over_naive": ratios, "short_spin_over_the_usual": spin, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="speedrun,small", metavar="LIST", help="default: speedrun,small")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="undisturbed rounds (default 5)")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="other busy processes (default 0)")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "LAYOUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(train(*arguments.one))
        return 0
    machine = describe_machine()
    found = {
        model: summary(model, measure(model, arguments.rounds, arguments.beside))
        for model in arguments.models.split(",")
    }
    rows = [row for one in found.values() for row in one.pop("rows", [])]  # type: ignore[attr-defined]
    result: dict[str, object] = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.cpu_speed --models {arguments.models} --rounds {arguments.rounds}"
        + (f" --beside {arguments.beside}" if arguments.beside else ""),
        "machine": machine,
        "models": found,
    }
    if rows:
        columns = ["network", "loop", "images/s, median (quartiles)", "over the naive loop"]
        result["table"] = {"columns": columns, "rows": rows}
    else:
        result["not_measured"] = "; ".join(f"{model}: {one['not_measured']}" for model, one in found.items())
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
