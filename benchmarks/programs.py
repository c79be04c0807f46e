"""Starts the programs that are measured: a command, a measurement's own workers, and Python with its import times."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

LIMIT_S = 900
TASK = "DDP_BENCHMARK_TASK"
"""Where a worker finds what to do: JSON with the keyword arguments of its function, and `answer`, a file to write."""
LAUNCH = [sys.executable, str(ROOT / "launch.py")]


def torchrun(ranks: int) -> list[str]:
    """The start of a command that has torchrun start `ranks` processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [*command, f"--nproc-per-node={ranks}"]


def run(
    command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT, limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output. Errors: SystemExit where it fails."""
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=limit_s)
    _check(command, done.returncode, done.stderr)
    return done


def seconds_to_mark(command: Sequence[str], mark: Path, env: Mapping[str, str] | None = None) -> float:
    """Seconds from the start of a command until one of its processes wrote the monotonic clock to `mark`."""
    mark.unlink(missing_ok=True)
    started = time.monotonic()
    done = run(command, env)
    if not mark.exists():
        raise SystemExit(f"error: {shlex.join(command)} did not write its mark: {done.stderr[-500:]}")
    return float(mark.read_text().split()[0]) - started


def _check(command: Sequence[str], status: int, errors: str) -> None:
    if status != 0:
        raise SystemExit(f"error: {shlex.join(command)} ended with status {status}: {errors[-800:]}")


class Worker:
    """Runs the worker function of a measurement in new processes. Rank 0's result is the answer.

    launcher: the command that starts `-m MODULE`: Python itself, launch.py or torchrun with their options.
    """

    def __init__(
        self, measurement: str, task: Mapping[str, Any], launcher: Sequence[str], env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._answer = Path(self._folder.name, "answer.json")
        self._command = [*launcher, "-m", f"benchmarks.{measurement}"]
        env = {**(os.environ if env is None else env), TASK: json.dumps({"answer": str(self._answer), **task})}
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def answer(self) -> Any:
        """Wait for the end of the processes and return the answer. Errors: SystemExit where they fail."""
        with self._folder:
            _, errors = self._process.communicate(timeout=LIMIT_S)
            _check(self._command, self._process.returncode, errors)
            return json.loads(self._answer.read_text())


def import_times(command: Sequence[str], env: Mapping[str, str] | None = None) -> dict[str, float]:
    """Module -> milliseconds that its import takes without the modules that it imports (`python -X importtime`)."""
    done = run([sys.executable, "-X", "importtime", *command], env)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    return {row[2].strip(): int(row[0]) / 1000 for row in rows if row[0].strip().isdigit()}
