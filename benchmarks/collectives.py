"""All-reduce, all-gather and broadcast over sizes: algorithm and bus bandwidth, as nccl-tests defines them.

    python -m benchmarks.collectives [--ranks 2] [--backend gloo] [--rounds 9] [--out NAME]

The size S of a collective is that of its largest buffer: what each rank ends with. algbw = S / time; busbw = algbw
times 2 (n - 1) / n for all-reduce, (n - 1) / n for all-gather, 1 for broadcast, so that the figure compares with the
speed of the links whatever the number of ranks. launch.py starts the ranks, so gloo runs on loopback or on the
interface that the plan chose, and NCCL in the environment of the plan (--backend nccl, one rank per GPU). A time is the
median over the rounds of the slowest rank's mean.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figures, Measurement, Option, rounds
from benchmarks.programs import LAUNCH, Worker
from benchmarks.turns import FEWEST, LIMIT, machine_seconds

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

Accounts = tuple[float, float, float]


def bus_bandwidth(kind: str, size: int, seconds: float, ranks: int) -> tuple[float, float]:
    """(algbw, busbw) in GB/s, where G is 10^9, of a collective of `size` bytes that took `seconds`."""
    algorithm = size / seconds / 1e9
    return algorithm, algorithm * BUS_FACTORS[kind](ranks)


def summary(times: dict[str, dict[int, list[float]]], ranks: int) -> list[dict[str, object]]:
    """A row for each collective and size; `times` are seconds by round."""
    rows: list[dict[str, object]] = []
    for kind, sizes in times.items():
        for size, found in sizes.items():
            low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
            algorithm, bus = bus_bandwidth(kind, int(size), middle, ranks)
            rows.append(
                {
                    "collective": kind,
                    "bytes": int(size),
                    "microseconds": round(1e6 * middle, 1),
                    "quartiles_microseconds": [round(1e6 * low, 1), round(1e6 * high, 1)],
                    "algbw_gb_s": round(algorithm, 4),
                    "busbw_gb_s": round(bus, 4),
                }
            )
    return rows


def work(backend: str, rounds: int) -> dict[str, Any]:
    """What every rank does. Returns {kind: {size: [seconds]}} with the numbers of ranks and rounds."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    options = {"device_id": device} if backend == "nccl" else {}
    dist.init_process_group(backend, timeout=timedelta(seconds=120), **options)  # type: ignore[arg-type]
    ranks = dist.get_world_size()
    times: dict[str, dict[int, list[float]]] = {kind: {size: [] for size in SIZES} for kind in BUS_FACTORS}
    tried = clean = 0
    while clean < rounds and tried < 3 * rounds:
        before = _cpu_accounts()
        found = {kind: {size: _time(kind, size, ranks, device) for size in SIZES} for kind in BUS_FACTORS}
        tried += 1
        if _is_clean(before, _cpu_accounts(), device):
            clean += 1
            for kind, sizes in found.items():
                for size, seconds in sizes.items():
                    times[kind][size].append(seconds)
    dist.barrier()
    dist.destroy_process_group()
    return {"ranks": ranks, "clean": clean, "disturbed": tried - clean, "times": times}


def _time(kind: str, size: int, ranks: int, device: torch.device) -> float:
    """Seconds of one collective of `size` bytes: the slowest rank's mean."""
    import torch
    import torch.distributed as dist

    whole = torch.zeros(size // 4, device=device)
    part = torch.zeros(size // 4 // ranks, device=device)
    whole = whole[: len(part) * ranks]
    call = {
        "all-reduce": lambda: dist.all_reduce(whole),
        "all-gather": lambda: dist.all_gather_into_tensor(whole, part),
        "broadcast": lambda: dist.broadcast(whole, src=0),
    }[kind]

    def seconds(repeats: int) -> float:
        dist.barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        if whole.device.type == "cuda":
            torch.cuda.synchronize(whole.device)
        slowest = torch.tensor([(time.perf_counter() - started) / repeats], device=device, dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    return seconds(max(2, min(200, int(AT_ONCE_S / max(seconds(2), 1e-6)))))


def _cpu_accounts() -> Accounts:
    """Busy and total CPU seconds of the machine, and this process's own."""
    return (*machine_seconds(), time.process_time())


def _is_clean(before: Accounts, after: Accounts, device: torch.device) -> bool:
    """Whether others than the ranks took little of the CPUs; all ranks come to the same answer."""
    import torch
    import torch.distributed as dist

    own = torch.tensor([after[2] - before[2]], dtype=torch.float64, device=device)
    dist.all_reduce(own)
    others = (after[0] - before[0] - float(own)) / max(after[1] - before[1], 1e-9)
    dirty = torch.tensor([float(others > LIMIT)], device=device)
    dist.all_reduce(dirty)
    return float(dirty) == 0


def measure(arguments: argparse.Namespace) -> Figures:
    """Start the ranks and summarise what they measured."""
    where = ["--auto"] if arguments.backend == "nccl" else ["--cpu"]
    if count := arguments.ranks or (2 if arguments.backend == "gloo" else None):
        where += ["--nproc", str(count)]
    task = {"backend": arguments.backend, "rounds": arguments.rounds}
    found = Worker("collectives", task, [*LAUNCH, *where]).answer()
    figures = {"ranks": found["ranks"], "clean_rounds": found["clean"], "disturbed_rounds": found["disturbed"]}
    if found["clean"] < FEWEST:
        return {**figures, "not_measured": f"{found['clean']} undisturbed rounds, {FEWEST} are needed"}
    return {**figures, "results": summary(found["times"], found["ranks"])}


OPTIONS = (
    Option("--backend", choices=["gloo", "nccl"], default="gloo"),
    Option("--ranks", type=int, metavar="N", help="processes on the CPU [2]; NCCL: one per GPU"),
    rounds(9),
)
main = Measurement("collectives", __doc__, measure, OPTIONS, worker=work)

if __name__ == "__main__":
    sys.exit(main())
