"""What it costs a rank that the launcher can ask where it is (`--stall-report`).

Medians of the CPU time of 100 answers of one rank with gloo whose flight recorder is full (2,000 collectives). An
answer holds Python's lock. The launcher asks for the brief one twice a second, for the one with all
collectives every 15 seconds.

Milliseconds an answer, and the share of a rank's time that all of them take together.
"""

from __future__ import annotations

import os
import statistics
import time

from benchmarks.harness import Arguments, Figures, measurement, rounds
from benchmarks.programs import start_worker, torchrun
from benchmarks.turns import take_figures
from ddp_launch.stall.watch import POLL_S, SAMPLE_S

ANSWERS, RECORDED = 100, 2000


def work() -> dict[str, float]:
    """What the rank measures: milliseconds of a brief and a full answer, and both as a percentage of its time."""
    import torch
    import torch.distributed as dist

    from ddp_launch.stall.in_rank.torch_internals import Answers

    dist.init_process_group("gloo")
    for _ in range(RECORDED):
        dist.all_reduce(torch.ones(8))
    answers = Answers(dist.distributed_c10d, os.memfd_create("answers"), *os.pipe())
    times = {}
    for case, full in (("brief", False), ("full", True)):
        taken = []
        for _ in range(ANSWERS):
            started = time.thread_time()
            answers.answer(full)
            taken.append(1e3 * (time.thread_time() - started))
        times[case] = statistics.median(taken)
    dist.destroy_process_group()
    return {**times, "share": 0.1 * (times["brief"] / POLL_S + times["full"] / SAMPLE_S)}


@measurement(rounds(5), worker=work)
def main(arguments: Arguments) -> Figures:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    turns = take_figures(lambda: start_worker("stall_cost", {}, torchrun(1), env)(), arguments.rounds, unit="ms")
    names = {"brief": "brief answer, ms", "full": "answer with 2,000 collectives, ms", "share": "of a rank's time, %"}
    rows = [[names[case], f"{turns.values(case):.3f}"] for case in names if turns.enough]
    table = {"columns": ["cost", "median (quartiles)"], "rows": rows}
    return {**turns.account(), "rounds": turns.rounded(3), "table": table}
