"""What a step pays for the ranks' agreement and for the watch over loss and gradients, in microseconds.

    python -m benchmarks.control_cost [--ranks 2] [--rounds 5] [--out NAME]

The exchange: one call of flag_exchange.py by itself, from start to end, over gloo ranks on this machine; where
gradients are summed in shared memory it takes the place of the wait for them. The watch: nan_guard.py's look at the
gradients of a network with 100 parameters of 4,096 numbers, on the CPU. Medians of 2,000 calls, of rank 0, in ranks
that are started anew for each round; rounds that other processes disturbed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import describe_machine, publish
from benchmarks.turns import take_figures

CALLS = 2000
PARAMETERS = 100
WORKER = "DDP_CONTROL_COST"
EXCHANGE, WATCH = "exchange", "watch"


def main(argv: list[str] | None = None) -> int:
    """Start the ranks, or be one of them; the exit status."""
    if place := os.environ.get(WORKER):
        _measure(Path(place))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="undisturbed rounds [5]")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    turns = take_figures(lambda: _round(arguments.ranks), arguments.rounds, unit="us")
    words = {EXCHANGE: f"exchange over {arguments.ranks} gloo ranks", WATCH: f"watch over {PARAMETERS} gradients"}
    rows = [[words[name], f"{turns.values(name):.0f}"] for name in words if turns.enough]
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.control_cost --ranks {arguments.ranks} --rounds {arguments.rounds}",
        "machine": describe_machine(),
        **turns.account(),
        "rounds": [{name: round(taken, 1) for name, taken in found.items()} for found in turns.rounds],
        "table": {"columns": ["of each step", "us, median (quartiles)"], "rows": rows},
    }
    publish(result, arguments.out)
    return 0 if turns.enough else 1


def _round(ranks: int) -> dict[str, float]:
    """Case -> microseconds, by ranks of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}"]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "figures.json")
        env = os.environ | {WORKER: str(result), "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "-m", "benchmarks.control_cost"], env=env, check=True)
        found: dict[str, float] = json.loads(result.read_text())
    return found


def _measure(result: Path) -> None:
    import torch
    from torch import nn

    from ddp_train.distributed import process_group
    from ddp_train.distributed.flag_exchange import FlagExchange
    from ddp_train.torch_internals import any_not_finite

    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, torch.device("cpu"), timeout_s=60)
    flag_exchange = FlagExchange(ranks)
    exchange = _median(lambda: flag_exchange.exchange({"stop": 0}))
    parameters = [nn.Parameter(torch.zeros(64, 64)) for _ in range(PARAMETERS)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    bad, one = torch.zeros(()), torch.ones(())
    watch = _median(lambda: any_not_finite(gradients, bad, one))
    if ranks.is_first:
        result.write_text(json.dumps({EXCHANGE: exchange, WATCH: watch}))
    process_group.leave(0)


def _median(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
