"""How many kills of a rank a run recovers from, and how soon.

Every run sums over its ranks in gloo collectives for some seconds and loses one rank at a random moment between the
start of its Python and its end. It has recovered when it ends with status 0 and the right sum within the limit.
`--torchrun` does the same with `torchrun --standalone`, for comparison.

Each run loses one rank to SIGKILL at a random moment and may restart once. Times run from the start to the end of a
run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import RANKS, Arguments, Figures, Option, measurement, number
from benchmarks.programs import LAUNCH

LIMIT_S = 120
STEPS = 100
WORKER = """
import os, pathlib, sys, time
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
pid = pathlib.Path(f"pid-{attempt}-{rank}")
pid.with_suffix(".new").write_text(str(os.getpid()))
pid.with_suffix(".new").rename(pid)
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.zeros(1)
for _ in range(int(sys.argv[1])):
    one = torch.ones(1)
    dist.all_reduce(one)
    total += one
    time.sleep(0.01)
pathlib.Path(f"total-{rank}").write_text(str(int(total)))
dist.destroy_process_group()
"""


def run(launcher: list[str], count: int, moment_s: float | None, rank: int) -> tuple[bool, bool, float]:
    """One run: (whether the rank was still there to be killed, whether the run succeeded, seconds since its start)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "worker.py").write_text(WORKER)
        command = [*launcher, "--max-restarts=1", "worker.py", str(STEPS)]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return _watch(process, folder, count, moment_s, rank)
        finally:
            if process.poll() is None:
                process.kill()
                for pid in folder.glob("pid-?-?"):  # torchrun's workers outlive it
                    _kill(pid)
            process.wait()


def _watch(
    process: subprocess.Popen[bytes], folder: Path, count: int, moment_s: float | None, rank: int
) -> tuple[bool, bool, float]:
    """Kill the rank at its moment, if any, and wait for the end of the run; as `run` returns it."""
    pid = folder / f"pid-0-{rank}"
    while not pid.exists():
        if process.poll() is not None:
            raise SystemExit(f"error: the run ended with status {process.returncode} before rank {rank} started")
        time.sleep(0.005)
    begin, met = time.monotonic(), True
    if moment_s is not None:
        time.sleep(moment_s)
        met = not (folder / f"total-{rank}").exists() and _kill(pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LIMIT_S)
    totals = [folder / f"total-{rank}" for rank in range(count)]
    right = all(total.exists() and total.read_text() == str(count * STEPS) for total in totals)
    return met, process.returncode == 0 and right, time.monotonic() - begin


def _kill(pid: Path) -> bool:
    """Kill the process of a file; whether it was still there."""
    try:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@measurement(
    number("--runs", 20, "runs that lose a rank"),
    RANKS,
    number("--seed", 0, "of the moments and ranks", least=0),
    Option("--torchrun", action="store_true", help="torchrun --standalone instead of launch.py"),
    failed=lambda found: not all(run["recovered"] for run in found["runs"]),
)
def main(arguments: Arguments) -> Figures:
    """Kill a random rank of each run at a random moment."""
    draw, count = random.Random(arguments.seed), arguments.ranks
    name, launcher = "launch.py", [*LAUNCH, "--cpu", "--nproc", str(count)]
    if arguments.torchrun:
        name = "torchrun --standalone"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    _, _, length_s = run(launcher, count, None, 0)
    found: list[Figures] = []
    while len(found) < arguments.runs:
        moment_s, rank = draw.uniform(0, length_s), draw.randrange(count)
        met, well, seconds = run(launcher, count, moment_s, rank)
        if met:
            one = {"rank": rank, "killed_after_s": round(moment_s, 2), "recovered": well, "seconds": round(seconds, 1)}
            found.append(one)
            print(f"run {len(found)} of {arguments.runs}: {one}", file=sys.stderr, flush=True)
    taken = [one["seconds"] for one in found if one["recovered"]]
    times = f"{statistics.median(taken):.1f} ({max(taken):.1f})" if taken else ""
    columns = ["launcher", "ranks killed", "runs that recovered", "s with the kill, median (longest)", "s without"]
    table = {"columns": columns, "rows": [[name, len(found), len(taken), times, f"{length_s:.1f}"]]}
    return {"undisturbed_s": round(length_s, 1), "runs": found, "table": table}
