"""How often a run recovers from SIGKILL of one of its ranks at a random moment.

    python -m benchmarks.restart_recovery [--runs 20] [--ranks 2] [--seed 0] [--torchrun] [--out NAME]

Every run sums over its ranks in gloo collectives for some seconds, loses one rank at a random moment between the start
of its Python and its end, and may restart once. It has recovered when it ends with status 0 and the right sum within
the limit. `--torchrun` does the same with `torchrun --standalone`, for comparison.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Figures, Measurement, Option, ranks
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


def measure(arguments: argparse.Namespace) -> Figures:
    """Run, kill, count."""
    chance = random.Random(arguments.seed)
    _, _, length_s = run(arguments.ranks, arguments.torchrun, None, 0)
    found: list[dict[str, float | int | bool]] = []
    while len(found) < arguments.runs:
        moment_s, rank = chance.uniform(0, length_s), chance.randrange(arguments.ranks)
        met, well, seconds = run(arguments.ranks, arguments.torchrun, moment_s, rank)
        if not met:
            continue
        one = {"rank": rank, "killed_after_s": round(moment_s, 2), "recovered": well, "seconds": round(seconds, 1)}
        found.append(one)
        print(f"run {len(found)} of {arguments.runs}: {one}", file=sys.stderr, flush=True)
    table = _table("torchrun --standalone" if arguments.torchrun else "launch.py", length_s, found)
    return {"undisturbed_s": round(length_s, 1), "runs": found, "table": table}


def _table(launcher: str, length_s: float, found: list[dict[str, float | int | bool]]) -> dict[str, object]:
    columns = ["launcher", "ranks killed", "runs that recovered", "s with the kill, median (longest)", "s without"]
    taken = [one["seconds"] for one in found if one["recovered"]]
    times = f"{statistics.median(taken):.1f} ({max(taken):.1f})" if taken else ""
    return {"columns": columns, "rows": [[launcher, len(found), len(taken), times, f"{length_s:.1f}"]]}


def run(count: int, torchrun: bool, moment_s: float | None, rank: int) -> tuple[bool, bool, float]:
    """One run; (whether the rank was still there to be killed, whether all came out right, seconds since its start)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "worker.py").write_text(WORKER)
        if torchrun:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        else:
            command = [*LAUNCH, "--cpu", "--nproc", str(count)]
        command += ["--max-restarts=1", "worker.py", str(STEPS)]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return _watch(process, folder, count, moment_s, rank)
        finally:
            if process.poll() is None:
                process.kill()
                # torchrun's workers outlive it.
                for pid in folder.glob("pid-?-?"):
                    _kill(int(pid.read_text()))
            process.wait()


def _watch(
    process: subprocess.Popen[bytes], folder: Path, count: int, moment_s: float | None, rank: int
) -> tuple[bool, bool, float]:
    pid = folder / f"pid-0-{rank}"
    while not pid.exists():
        time.sleep(0.005)
    begin, met = time.monotonic(), True
    if moment_s is not None:
        time.sleep(moment_s)
        met = not (folder / f"total-{rank}").exists() and _kill(int(pid.read_text()))
    try:
        status = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        status = None
    totals = [folder / f"total-{rank}" for rank in range(count)]
    right = all(total.exists() and total.read_text() == str(count * STEPS) for total in totals)
    return met, status == 0 and right, time.monotonic() - begin


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


OPTIONS = (
    Option("--runs", type=int, default=20, metavar="N", help="runs that lose a rank [20]"),
    ranks(),
    Option("--seed", type=int, default=0, metavar="N", help="of the moments and ranks [0]"),
    Option("--torchrun", action="store_true", help="torchrun --standalone instead of launch.py"),
)
main = Measurement(
    "restart_recovery",
    __doc__,
    measure,
    OPTIONS,
    failed=lambda found: not all(run["recovered"] for run in found["runs"]),
)

if __name__ == "__main__":
    sys.exit(main())
