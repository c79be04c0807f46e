"""All-reduce, all-gather and broadcast over sizes: algorithm and bus bandwidth.

launch.py starts the ranks, so gloo runs on loopback or on the interface that the plan chose, and NCCL in the
environment of the plan (--backend nccl, one rank per GPU). A time is the median over the rounds of the slowest rank's
mean. algbw = size / time; busbw = algbw times 2 (n - 1) / n for all-reduce, (n - 1) / n for all-gather, 1 for
broadcast, so that the figure compares with the speed of the links whatever the number of ranks.

Time of one call, and bandwidth as nccl-tests defines it. The size is that of the largest buffer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Arguments, Figures, Option, measurement, number, rounds
from benchmarks.programs import LAUNCH, start_worker
from benchmarks.turns import LIMIT, PATIENCE, Spread, Turns, machine_seconds

if TYPE_CHECKING:
    import torch

SIZES = tuple(4**power for power in range(5, 14))
"""Bytes: 1 KiB to 64 MiB."""
BUS_FACTORS: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all-gather": lambda ranks: (ranks - 1) / ranks,
    "broadcast": lambda ranks: 1.0,
}
AT_ONCE_S = 0.03
"""About how long the repetitions of one size take together in a round."""


def bus_bandwidth(kind: str, size: int, seconds: float, ranks: int) -> tuple[float, float]:
    """(algbw, busbw) in GB/s, where G is 10^9, of a collective of `size` bytes that took `seconds`."""
    algorithm = size / seconds / 1e9
    return algorithm, algorithm * BUS_FACTORS[kind](ranks)


def work(backend: str, rounds: int) -> dict[str, Any]:
    """The work of every rank. Returns {"KIND SIZE": seconds} for each clean round, with the number of ranks."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    options = {"device_id": device} if backend == "nccl" else {}
    dist.init_process_group(backend, timeout=timedelta(seconds=120), **options)  # type: ignore[arg-type]
    ranks = dist.get_world_size()
    clean: list[dict[str, float]] = []
    disturbed = 0
    while len(clean) < rounds and len(clean) + disturbed < PATIENCE * rounds:
        busy, total, own = *machine_seconds(), time.process_time()
        found = {f"{kind} {size}": _time(kind, size, ranks, device) for kind in BUS_FACTORS for size in SIZES}
        busy_after, total_after, own_after = *machine_seconds(), time.process_time()
        ours = torch.tensor([own_after - own], dtype=torch.float64, device=device)
        dist.all_reduce(ours)
        others = (busy_after - busy - float(ours)) / max(total_after - total, 1e-9)
        dirty = torch.tensor([float(others > LIMIT)], device=device)
        dist.all_reduce(dirty)  # all ranks must make the same decision
        if float(dirty):
            disturbed += 1
        else:
            clean.append(found)
    dist.barrier()
    dist.destroy_process_group()
    return {"ranks": ranks, "rounds": clean, "disturbed": disturbed}


def _time(kind: str, size: int, ranks: int, device: torch.device) -> float:
    """Seconds of one collective of `size` bytes: the slowest rank's mean."""
    import torch
    import torch.distributed as dist

    part = torch.zeros(size // 4 // ranks, device=device)
    whole = torch.zeros(len(part) * ranks, device=device)
    call = {
        "all-reduce": lambda: dist.all_reduce(whole),
        "all-gather": lambda: dist.all_gather_into_tensor(whole, part),
        "broadcast": lambda: dist.broadcast(whole, src=0),
    }[kind]

    def seconds(repeats: int) -> float:
        """The slowest rank's mean time of a call over some repetitions."""
        dist.barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.get_device_module(device).synchronize(device)
        slowest = torch.tensor([(time.perf_counter() - started) / repeats], device=device, dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    return seconds(max(2, min(200, int(AT_ONCE_S / max(seconds(2), 1e-6)))))


def _row(case: str, seconds: Spread, ranks: int) -> Figures:
    """The figures of one collective at one size; case: its name and its bytes."""
    kind, size = case.split()
    algorithm, bus = bus_bandwidth(kind, int(size), seconds.median, ranks)
    return {
        "collective": kind,
        "bytes": int(size),
        "microseconds": round(1e6 * seconds.median, 1),
        "quartiles_microseconds": [round(1e6 * seconds.low, 1), round(1e6 * seconds.high, 1)],
        "algbw_gb_s": round(algorithm, 4),
        "busbw_gb_s": round(bus, 4),
    }


@measurement(
    Option("--backend", choices=["gloo", "nccl"], default="gloo"),
    number("--ranks", None, "processes [2; with NCCL: one per GPU]"),
    rounds(9),
    worker=work,
)
def main(arguments: Arguments) -> Figures:
    """Start the ranks and measure every collective at every size."""
    where = ["--auto"] if arguments.backend == "nccl" else ["--cpu"]
    if count := arguments.ranks or (2 if arguments.backend == "gloo" else None):
        where += ["--nproc", str(count)]
    task = {"backend": arguments.backend, "rounds": arguments.rounds}
    found = start_worker("collectives", task, [*LAUNCH, *where])()
    turns, ranks = Turns(found["rounds"], found["disturbed"]), found["ranks"]
    figures: Figures = {"ranks": ranks, **turns.account()}
    if turns.enough:
        figures["results"] = [_row(case, turns.values(case), ranks) for case in turns.cases]
    return figures
