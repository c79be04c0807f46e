"""All-reduce, all-gather and broadcast over sizes: algorithm and bus bandwidth, as nccl-tests defines them.

    python -m benchmarks.collectives [--ranks 2] [--backend gloo] [--rounds 9] [--out NAME]

The size S of a collective is that of its largest buffer: what each rank ends with. algbw = S / time; busbw = algbw
times 2 (n - 1) / n for all-reduce, (n - 1) / n for all-gather, 1 for broadcast, so that the figure can be held against
the speed of the links whatever the number of ranks. The ranks are started by launch.py, so gloo runs on loopback or on
the interface that the plan chose, and NCCL in the environment of the plan (--backend nccl, one rank per GPU). A
time is the median over the rounds of the slowest rank's mean; rounds that other processes disturbed are left out. The
result is benchmarks/results/NAME.json.
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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.turns import FEWEST

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
LIMIT_S = 900

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


def work(backend: str, rounds: int, out: Path) -> None:
    """What every rank does; rank 0 writes {kind: {size: [seconds]}} with the number of disturbed rounds."""
    import torch
    import torch.distributed as dist

    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if backend == "nccl" else torch.device("cpu")
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
    if rank == 0:
        out.write_text(json.dumps({"ranks": ranks, "clean": clean, "disturbed": tried - clean, "times": times}))
    dist.barrier()
    dist.destroy_process_group()


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
    from benchmarks import quiet

    return (*quiet.machine_seconds(), time.process_time())


def _is_clean(before: Accounts, after: Accounts, device: torch.device) -> bool:
    """Whether others than the ranks took little of the CPUs; all ranks come to the same answer."""
    import torch
    import torch.distributed as dist

    from benchmarks.quiet import LIMIT

    own = torch.tensor([after[2] - before[2]], dtype=torch.float64, device=device)
    dist.all_reduce(own)
    others = (after[0] - before[0] - float(own)) / max(after[1] - before[1], 1e-9)
    dirty = torch.tensor([float(others > LIMIT)], device=device)
    dist.all_reduce(dirty)
    return float(dirty) == 0


def main(argv: list[str] | None = None) -> int:
    """Start the ranks, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collectives", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, metavar="N", help="processes on the CPU (default 2); NCCL: one per GPU")
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="undisturbed rounds (default 9)")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker is not None:
        work(arguments.backend, arguments.rounds, arguments.worker)
        return 0
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    machine = describe_machine()
    where = ["--auto"] if arguments.backend == "nccl" else ["--cpu", "--nproc", str(arguments.ranks or 2)]
    if arguments.backend == "nccl" and arguments.ranks:
        where += ["--nproc", str(arguments.ranks)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        program = ["--worker", str(out), "--backend", arguments.backend, "--rounds", str(arguments.rounds)]
        command = [sys.executable, str(ROOT / "launch.py"), *where, "-m", "benchmarks.collectives", *program]
        done = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, stdout=sys.stderr)
        if done.returncode != 0:
            print(f"error: the ranks ended with status {done.returncode}; nothing was written", file=sys.stderr)
            return 1
        found = json.loads(out.read_text())
    rows = summary(found["times"], found["ranks"]) if found["clean"] >= FEWEST else []
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.collectives --backend {arguments.backend} --ranks {found['ranks']} "
        f"--rounds {arguments.rounds}",
        "machine": machine,
        "ranks": found["ranks"],
        "clean_rounds": found["clean"],
        "disturbed_rounds": found["disturbed"],
        **({} if rows else {"not_measured": f"{found['clean']} undisturbed rounds, {FEWEST} are needed"}),
        "results": rows,
        "table": {
            "columns": ["collective", "size", "µs", "algbw GB/s", "busbw GB/s"],
            "rows": [
                [r["collective"], f"{r['bytes']:,} B", r["microseconds"], r["algbw_gb_s"], r["busbw_gb_s"]]
                for r in rows
            ],
        },
    }
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
