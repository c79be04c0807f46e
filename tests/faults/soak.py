"""A long run that is killed again and again: `python -m tests.faults.soak --minutes 30`.

Every minute (`--every SECONDS`) one of the ranks, the launcher, or everything is killed, as a seed chooses; the run
goes on with --resume auto. At the end: each epoch's record counts each sample exactly once, no epoch is missing or
doubled, and memory and open files of rank 0 have not grown over the time between two kills. Exit status 0: all is so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.runs import Runs
from tests.launcher.conftest import Launcher

SAMPLES = 1600
# At so small a rate the accuracy stays far from 1, so that it tells how many samples it was counted over.
OPTIONS = f"--epochs 1000000 --synthetic-samples {SAMPLES} --ema 0.9 --save-every 2s --lr 1e-7 --resume auto"


def main() -> int:
    """Run, kill, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, contextlib.ExitStack() as behind:
        runs = Runs(Launcher(Path(folder)))
        behind.callback(_end_all, runs)
        end, kills = time.monotonic() + 60 * options.minutes, 0
        growth: list[str] = []
        process = _start(runs)
        while time.monotonic() < end:
            _until_it_trains(runs)
            first = _usage_after(runs, options.every / 2)
            last = _usage_after(runs, options.every / 2)
            growth += _grown(first, last)
            what = draw.choice(["rank", "launcher", "all"])
            _kill(runs, process, what, draw)
            kills += 1
            print(f"kill {kills} ({what}): {_epochs(runs)} epochs, rank 0 before it: {last}", flush=True)
            if what != "rank":
                process.wait(30)
                runs.until_gone()
                process = _start(runs)
        _until_it_trains(runs)
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        runs.until_gone()
        faults = [*growth, *_faults(runs)] + ([] if status == 143 else [f"status {status} behind SIGTERM"])
        print(f"{kills} kills, {_epochs(runs)} epochs; " + ("; ".join(faults) or "all is as it should be"))
        return 1 if faults else 0


def _start(runs: Runs) -> subprocess.Popen[str]:
    return runs.start("run", OPTIONS, launch="--max-restarts 1000")


def _end_all(runs: Runs) -> None:
    """Nothing outlives the soak, also where it is broken off."""
    for pid in runs.launcher.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _until_it_trains(runs: Runs) -> None:
    """Until two more epochs are finished: what a start takes is behind it."""
    wanted, deadline = _epochs(runs) + 2, time.monotonic() + 120
    while _epochs(runs) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError("the run makes no progress")
        time.sleep(0.2)


def _rank(runs: Runs, rank: int) -> int | None:
    """The process of a rank."""
    for pid in runs.launcher.alive():
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"RANK={rank}".encode() in words and b"ddp_train/main.py" in command and b"leash" not in command:
            return pid
    return None


def _usage_after(runs: Runs, seconds: float) -> tuple[int, int, int] | None:
    """Process, resident MiB and open files of rank 0."""
    time.sleep(seconds)
    pid = _rank(runs, 0)
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
        return pid or 0, resident, len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (counts, and needs no paths)
    except (OSError, StopIteration):
        return None


def _grown(first: tuple[int, int, int] | None, last: tuple[int, int, int] | None) -> list[str]:
    if first is None or last is None or first[0] != last[0]:
        return []
    faults = []
    if last[1] > first[1] * 1.1 + 20:
        faults.append(f"memory of rank 0 grew from {first[1]} to {last[1]} MiB")
    if last[2] > first[2] + 5:
        faults.append(f"open files of rank 0 grew from {first[2]} to {last[2]}")
    return faults


def _kill(runs: Runs, process: subprocess.Popen[str], what: str, draw: random.Random) -> None:
    if what == "rank":
        victims = [pid for pid in [_rank(runs, draw.randrange(2))] if pid is not None]
    elif what == "launcher":
        victims = [process.pid]
    else:
        victims = [process.pid, *runs.launcher.alive()]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _history(runs: Runs) -> list[dict[str, float]]:
    file = runs.folder / "run" / "training_history.json"
    found: list[dict[str, float]] = json.loads(file.read_text())["epochs"] if file.exists() else []
    return found


def _epochs(runs: Runs) -> int:
    return len(_history(runs))


def _faults(runs: Runs) -> list[str]:
    """Every epoch once, and in each every sample once: the accuracy is a whole number of samples."""
    epochs = _history(runs)
    faults = (
        [] if [e["epoch"] for e in epochs] == list(range(1, len(epochs) + 1)) else ["epochs are missing or doubled"]
    )
    for epoch in epochs:
        correct = epoch["train_accuracy"] * SAMPLES
        if abs(correct - round(correct)) > 1e-6 or not 0 <= correct <= SAMPLES:
            faults.append(f"epoch {epoch['epoch']}: {correct} correct answers of {SAMPLES} samples")
    return faults


if __name__ == "__main__":
    sys.exit(main())
