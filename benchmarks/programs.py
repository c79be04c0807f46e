"""Starts the programs that are measured: a command, a measurement's own workers, and Python with its import times."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from ddp_core.errors import UserError

LIMIT_S = 900
TASK = "DDP_BENCHMARK_TASK"
"""The variable with a worker's task: JSON with the keyword arguments of its function, and `answer`, a file to write."""
LAUNCH = [sys.executable, str(ROOT / "launch.py")]
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
SPIN = {"GOMP_SPINCOUNT": "1000"}
"""What the launcher sets for the bundled trainer on a CPU, and for no other program."""
Environment = Mapping[str, str] | None


def torchrun(ranks: int) -> list[str]:
    """The start of a command that has torchrun start `ranks` processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [*command, f"--nproc-per-node={ranks}"]


def run(command: Sequence[str], env: Environment = None, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output. Errors: UserError after status 2, SystemExit after another."""
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    if done.returncode == 2:
        raise UserError(done.stderr.rpartition("error: ")[2].strip() or shlex.join(command))
    if done.returncode != 0:
        raise SystemExit(f"error: {shlex.join(command)} ended with status {done.returncode}: {done.stderr[-800:]}")
    return done


def train(options: Sequence[str], env: Environment = None) -> tuple[dict[str, Any], float]:
    """The history of a run of launch.py, and its seconds from the command to its end. Errors: SystemExit."""
    command = [*LAUNCH, *options]
    print(shlex.join(command), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        status = subprocess.run([*command, "--out-dir", folder], env=env, stdout=sys.stderr).returncode
        wall = time.monotonic() - started
        if status != 0:
            print("nothing was written", file=sys.stderr)
            sys.exit(status)
        return json.loads(Path(folder, "training_history.json").read_text()), wall


def seconds_to_mark(command: Sequence[str], mark: Path, env: Environment = None) -> float:
    """Seconds from the start of a command until one of its processes wrote the monotonic clock to `mark`."""
    mark.unlink(missing_ok=True)
    started = time.monotonic()
    done = run(command, env)
    if not mark.exists():
        raise SystemExit(f"error: {shlex.join(command)} did not write its mark: {done.stderr[-500:]}")
    return float(mark.read_text().split()[0]) - started


def trainer_environment(device: str, threads: int | None = None) -> dict[str, str]:
    """The environment of a worker that takes the trainer's steps. threads: of each process [the launcher's choice]."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return env | (MALLOC | SPIN if device == "cpu" else {})


def start_worker(
    measurement: str, task: Mapping[str, Any], launcher: Sequence[str], env: Environment = None
) -> Callable[[], Any]:
    """Start the worker function of a measurement in new processes. Returns a function that waits for rank 0's answer.

    launcher: the command that starts `-m MODULE`: Python itself, launch.py or torchrun with their options.
    Errors: SystemExit where the processes fail.
    """
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name, "answer.json")
    command, env = command_of(measurement, {"answer": str(file), **task}, launcher, env)
    ended = ThreadPoolExecutor(1).submit(run, command, env)

    def answer() -> Any:
        """Wait for the processes; returns rank 0's answer."""
        with folder:
            ended.result()
            return json.loads(file.read_text())

    return answer


def command_of(
    measurement: str, task: Mapping[str, Any], launcher: Sequence[str], env: Environment = None
) -> tuple[list[str], dict[str, str]]:
    """The command that runs the worker function of a measurement, and its environment. `task` has the file `answer`."""
    command = [*launcher, "-m", f"benchmarks.{measurement}"]
    return command, {**(os.environ if env is None else env), TASK: json.dumps(dict(task))}


def import_times(command: Sequence[str], env: Environment = None) -> dict[str, float]:
    """Module -> milliseconds that its import takes without the modules that it imports (`python -X importtime`)."""
    done = run([sys.executable, "-X", "importtime", *command], env)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    return {row[2].strip(): int(row[0]) / 1000 for row in rows if row[0].strip().isdigit()}
