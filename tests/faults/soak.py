"""A long run that is killed again and again: `python -m tests.faults.soak --minutes 30`.

Every minute (`--every SECONDS`) one of the ranks, the launcher, or everything is killed, as a seed chooses; the run
goes on with --resume auto. At the end: no epoch is missing or doubled, each was trained on each sample exactly once,
counts as many as there are, and neither memory nor open files nor threads of the launcher and its ranks have grown,
within the time between two kills and from the first kill to the last; no temporary file is left. Exit status 0: all
is so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.ddp_launch.conftest import Launcher
from tests.faults.runs import Runs
from tests.faults.seen import samples_of_epochs

SAMPLES = 1600
# At so small a rate the accuracy stays far from 1, so that it tells how many samples it was counted over.
OPTIONS = (
    f"--epochs 1000000 --synthetic-samples {SAMPLES} --augment none --ema 0.9 --save-every 2s --lr 1e-7 "
    "--technique tests.faults.seen:checksums --resume auto"
)


class Usage(NamedTuple):
    """What a process holds; memory in MiB."""

    pid: int
    memory: float
    files: int
    threads: int


Usages = dict[str, Usage]
SLACK = {"memory": 20, "files": 3, "threads": 3}
"""What is no growth yet, from one kill to the next and from the first to the last."""
MEAN_SLACK = {"memory": 4.0, "files": 0.5, "threads": 0.5}
"""The same for the mean of all the times between two kills, which a small leak shows in."""


def main() -> int:
    """Run, kill, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, contextlib.ExitStack() as behind:
        runs = Runs(Launcher(Path(folder)))
        behind.callback(_end_all, runs)
        measured: list[list[Usages]] = []
        try:
            _run_and_kill(runs, 60 * options.minutes, options.every, random.Random(options.seed), measured)
            faults = []
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            faults = [str(error)]
            _end_all(runs)
        faults = [*_growth(measured), *_faults(runs), *_left(runs), *faults]
        print(f"{len(measured)} kills, {_epochs(runs)} epochs; " + ("; ".join(faults) or "all is as it should be"))
        return 1 if faults else 0


def _run_and_kill(
    runs: Runs, wanted_s: float, every_s: float, draw: random.Random, measured: list[list[Usages]]
) -> None:
    """Puts into `measured`, for each kill, what the processes held early and right before it.

    Errors: RuntimeError where the run does not go on, or does not end as it should.
    """
    process = _start(runs)
    end = next_kill = time.monotonic()
    end += wanted_s
    while (next_kill := next_kill + every_s) <= end:
        _until_it_trains(runs)
        early = _usages(runs, process)
        time.sleep(max(0.0, next_kill - time.monotonic()))
        measured.append([early, _usages(runs, process)])
        what = draw.choice(["rank", "launcher", "all"])
        _kill(runs, process, what, draw)
        held = ", ".join(f"{name} {tuple(usage)}" for name, usage in measured[-1][1].items())
        print(f"kill {len(measured)} ({what}): {_epochs(runs)} epochs; {held}", flush=True)
        if what != "rank":
            process.wait(30)
            runs.until_gone()
            process = _start(runs)
    _until_it_trains(runs)
    process.send_signal(signal.SIGTERM)
    if (status := process.wait(60)) != 143:
        raise RuntimeError(f"status {status} behind SIGTERM")
    runs.until_gone()


def _start(runs: Runs) -> subprocess.Popen[str]:
    process = runs.start("run", OPTIONS, launch="--max-restarts 1000")
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        # Its lines go into a file that is never full, as nobody reads the pipe.
        subprocess.Popen(["cat"], stdin=stream, stdout=(runs.folder / "said").open("a"))
        stream.close()
    return process


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
            said = "".join((runs.folder / "said").read_text().splitlines(keepends=True)[-20:])
            raise RuntimeError(f"the run makes no progress; what it said last:\n{said}")
        time.sleep(0.2)


def _rank(runs: Runs, rank: int) -> int | None:
    """The process of a rank."""
    for pid in runs.launcher.alive():
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if (
            f"RANK={rank}".encode() in words
            and b"ddp_train/main.py" in command
            and b"exec_with_pdeathsig" not in command
        ):
            return pid
    return None


def _usages(runs: Runs, process: subprocess.Popen[str]) -> Usages:
    """What the launcher and the ranks hold now."""
    pids = {"launcher": process.pid, "rank 0": _rank(runs, 0), "rank 1": _rank(runs, 1)}
    found = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError, KeyError):  # it has just ended
            lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            status = {key: value.split() for key, _, value in lines}
            memory = round(int(status["VmRSS"][0]) / 1024, 1)
            files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (counts, and needs no paths)
            found[name] = Usage(pid or 0, memory, files, int(status["Threads"][0]))
    return found


def _growth(measured: list[list[Usages]]) -> list[str]:
    """What grew: between two kills, in the mean of these, and from the first kill to the last."""
    faults = []
    for name in ("launcher", "rank 0", "rank 1"):
        pairs = [
            (early[name], late[name])
            for early, late in measured
            if name in early and name in late and early[name].pid == late[name].pid
        ]
        if not pairs:
            faults.append(f"{name} was never measured")
            continue
        for what, slack in SLACK.items():
            grown = [getattr(late, what) - getattr(early, what) for early, late in pairs]
            mean, first, last = statistics.mean(grown), getattr(pairs[0][1], what), getattr(pairs[-1][1], what)
            print(f"{name}, {what}: {mean:+.2f} in the mean, {max(grown):+g} at most; {first:g} first, {last:g} last")
            if max(grown) > slack or mean > MEAN_SLACK[what] or last > first + slack:
                faults.append(f"{what} of {name} grew: {grown} between kills; {first} first, {last} last")
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
    """Every epoch once, and in each every sample once: its images are all that there are, each once, and its
    accuracy is a whole number of samples."""
    epochs = _history(runs)
    numbers = [epoch["epoch"] for epoch in epochs]
    given, faults = samples_of_epochs(runs.folder / "run")
    faults += [] if numbers == list(range(1, len(epochs) + 1)) else ["epochs are missing or doubled"]
    images = set(given[1])
    faults += [] if len(images) == SAMPLES else [f"epoch 1 had {len(images)} images of {SAMPLES}"]
    for epoch in epochs:
        correct = epoch["train_accuracy"] * SAMPLES
        if abs(correct - round(correct)) > 1e-6 or not 0 <= correct <= SAMPLES:
            faults.append(f"epoch {epoch['epoch']}: {correct} correct answers of {SAMPLES} samples")
        found = given[int(epoch["epoch"])]
        if set(found) != images or set(found.values()) != {1}:
            faults.append(f"epoch {epoch['epoch']}: {found.total()} samples, {len(found)} different ones")
    return faults


def _left(runs: Runs) -> list[str]:
    """Temporary files; the claims of launchers stay, in a folder of the user's own."""
    left = [path.name for path in (runs.folder / "tmp").iterdir() if path.name != "ddp-launch"]
    left += [str(path.relative_to(runs.folder)) for path in (runs.folder / "run").rglob(".*")]
    return [f"left behind: {', '.join(left)}"] if left else []


if __name__ == "__main__":
    sys.exit(main())
