"""What a step pays for the ranks' agreement and for the watch over loss and gradients, in microseconds.

    python -m benchmarks.control_cost [--ranks 2] [--rounds 5] [--out NAME]

The exchange: one call of flag_exchange.py by itself, from start to end, over gloo ranks on this machine; where
gradients are summed in shared memory it replaces the wait for them. The watch: nan_guard.py's look at the gradients of
a network with 100 parameters of 4,096 numbers, on the CPU. Medians of 2,000 calls on rank 0; each round starts new
ranks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.harness import Figures, Measurement, ranks, rounds
from benchmarks.programs import Worker, torchrun
from benchmarks.turns import take_figures

CALLS = 2000
PARAMETERS = 100
EXCHANGE, WATCH = "exchange", "watch"


def measure(arguments: argparse.Namespace) -> Figures:
    """Medians over rounds, each with new ranks."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    start = partial(Worker, "control_cost", {}, torchrun(arguments.ranks), env)
    turns = take_figures(lambda: start().answer(), arguments.rounds, unit="us")
    names = {EXCHANGE: f"exchange over {arguments.ranks} gloo ranks", WATCH: f"watch over {PARAMETERS} gradients"}
    rows = [[names[name], f"{turns.values(name):.0f}"] for name in names if turns.enough]
    table = {"columns": ["in each step", "µs, median (quartiles)"], "rows": rows}
    return {**turns.account(), "rounds": turns.rounded(1), "table": table}


def work() -> dict[str, float]:
    """What each rank measures: case -> microseconds."""
    import torch
    from torch import nn

    from ddp_train.distributed import process_group
    from ddp_train.distributed.flag_exchange import FlagExchange
    from ddp_train.torch_internals import any_not_finite

    group = process_group.Ranks.from_environment()
    process_group.start(group, torch.device("cpu"), timeout_s=60)
    flag_exchange = FlagExchange(group)
    exchange = _median(lambda: flag_exchange.exchange({"stop": 0}))
    parameters = [nn.Parameter(torch.zeros(64, 64)) for _ in range(PARAMETERS)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    bad, one = torch.zeros(()), torch.ones(())
    watch = _median(lambda: any_not_finite(gradients, bad, one))
    return {EXCHANGE: exchange, WATCH: watch}


def _median(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - started))
    return statistics.median(taken)


main = Measurement("control_cost", __doc__, measure, (ranks(), rounds(5)), worker=work)

if __name__ == "__main__":
    sys.exit(main())
