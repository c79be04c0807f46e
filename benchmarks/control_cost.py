"""What a step pays for the ranks' agreement and for the watch over loss and gradients, in microseconds.

    python -m benchmarks.control_cost                # two gloo ranks on this machine
    python -m benchmarks.control_cost --ranks 4

The exchange: one call of control.py by itself, from start to end. The watch: guard.py's look at the gradients of a
network with 100 parameters, on the CPU. Medians of 2,000 calls, of rank 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

CALLS = 2000
WORKER = "DDP_CONTROL_COST"


def main(argv: list[str] | None = None) -> int:
    """Start the ranks, or be one of them; the exit status."""
    if os.environ.get(WORKER):
        _measure()
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_cost", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    ranks = parser.parse_args(argv).ranks
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}"]
    env = os.environ | {WORKER: "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, "-m", "benchmarks.control_cost"], env=env, check=False).returncode


def _measure() -> None:
    import torch
    from torch import nn

    from ddp_train import distributed
    from ddp_train.control import Control
    from ddp_train.guard import any_not_finite

    ranks = distributed.Ranks.from_environment()
    distributed.start(ranks, torch.device("cpu"), timeout_s=60)
    control = Control(ranks)
    exchange = _median(lambda: control.exchange({"stop": 0}))
    parameters = [nn.Parameter(torch.zeros(64, 64)) for _ in range(100)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    bad, one = torch.zeros(()), torch.ones(())
    watch = _median(lambda: any_not_finite(gradients, bad, one))
    if ranks.is_first:
        print(f"exchange over {ranks.world_size} ranks: {exchange:.0f} us; watch over 100 gradients: {watch:.0f} us")
    distributed.leave(0)


def _median(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
