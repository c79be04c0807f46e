"""What the ranks' agreement and the watch over loss and gradients cost a step.

Medians of 2,000 calls on rank 0; each round starts new ranks. The exchange is flag_exchange.py by itself, over gloo
ranks on this machine; where gradients are summed in shared memory it replaces the wait for them. The watch is that of
nan_guard.py over a network with 100 parameters of 4,096 numbers, on the CPU.

`exchange`: all ranks agree on whether to stop, save or continue. `watch`: one look for gradients that are not finite.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from benchmarks.harness import RANKS, Arguments, Figures, measurement, rounds
from benchmarks.programs import start_worker, torchrun
from benchmarks.turns import take_figures

CALLS = 2000
PARAMETERS = 100


def work() -> dict[str, float]:
    """What each rank measures: case -> microseconds."""
    import torch

    from ddp_train.distributed import process_group
    from ddp_train.distributed.flag_exchange import FlagExchange
    from ddp_train.torch_internals import any_not_finite

    group = process_group.Ranks.from_environment()
    process_group.start(group, torch.device("cpu"), timeout_s=60)
    flags = FlagExchange(group)
    gradients = [torch.ones(64, 64) for _ in range(PARAMETERS)]
    bad, one = torch.zeros(()), torch.ones(())
    return {
        "exchange": _median(lambda: flags.exchange({"stop": 0})),
        "watch": _median(lambda: any_not_finite(gradients, bad, one)),
    }


def _median(call: Callable[[], object]) -> float:
    """The median of many calls, in microseconds."""
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - started))
    return statistics.median(taken)


@measurement(RANKS, rounds(5), worker=work)
def main(arguments: Arguments) -> Figures:
    """Start the ranks and measure both."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = torchrun(arguments.ranks)
    turns = take_figures(lambda: start_worker("control_cost", {}, launcher, env)(), arguments.rounds, unit="us")
    names = {"exchange": f"exchange over {arguments.ranks} gloo ranks", "watch": f"watch over {PARAMETERS} gradients"}
    rows = [[names[case], f"{turns.values(case):.0f}"] for case in names if turns.enough]
    table = {"columns": ["in each step", "µs, median (quartiles)"], "rows": rows}
    return {**turns.account(), "rounds": turns.rounded(1), "table": table}
