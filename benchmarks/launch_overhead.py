"""From the command to the first line of a worker: this launcher, bare torchrun and others, in turn on one program.

    python -m benchmarks.launch_overhead [--rounds 12] [--ranks 2] [--out NAME]

Every round starts each launcher once, in a new random order; bare torchrun twice, which shows the noise. Rounds in
which other processes took more than a tenth of the CPUs are left out. What counts is the difference within a round.
`accelerate launch` and `fabric run` take part where they are installed. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.quiet import watched

BASE, AGAIN, OURS = "torchrun", "torchrun again", "launch.py"
FEWEST = 5
"""Fewer clean rounds than this are no measurement."""
LIMIT_S = 120

# The clock is the system's own: the same in every process. Rank 0 is the worker whose first line a user waits for.
WORKER = """
import os, sys, time
if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
    with open(sys.argv[1], "a") as file:
        print(time.monotonic(), file=file)
"""


def commands(ranks: int, program: list[str]) -> dict[str, list[str]]:
    """The launchers that are here, each with its command for `ranks` processes on the CPU."""
    beside = Path(sys.executable).parent
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    torchrun += [f"--nproc-per-node={ranks}", *program]
    ours = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", str(ranks), *program]
    found = {OURS: ours, BASE: torchrun, AGAIN: torchrun}
    if accelerate := shutil.which("accelerate", path=str(beside)):
        options = ["--cpu", "--num_processes", str(ranks), "--num_machines", "1", "--mixed_precision", "no"]
        options += ["--dynamo_backend", "no", "--main_process_port", "0"]
        found["accelerate launch"] = [sys.executable, accelerate, "launch", *options, *program]
    if fabric := shutil.which("fabric", path=str(beside)):
        options = ["--accelerator", "cpu", "--strategy", "ddp", "--devices", str(ranks), "--main-port", "0"]
        found["fabric run"] = [sys.executable, fabric, "run", *options, *program]
    return found


def measure(ranks: int, rounds: int, seed: int = 0) -> tuple[list[dict[str, float]], int]:
    """Seconds to the worker's first line, by launcher, for each clean round; and how many rounds were disturbed."""
    draw = random.Random(seed)
    clean: list[dict[str, float]] = []
    disturbed = 0
    with tempfile.TemporaryDirectory() as folder:
        program, mark = Path(folder) / "worker.py", Path(folder) / "first-line"
        program.write_text(WORKER)
        launchers = commands(ranks, [str(program), str(mark)])
        for command in launchers.values():  # files into the page cache, byte code onto the disk
            _first_line(command, mark)
        for number in range(rounds):
            with watched() as window:
                order = draw.sample(sorted(launchers), len(launchers))
                times = {name: _first_line(launchers[name], mark) for name in order}
            disturbed += not window.clean
            if window.clean:
                clean.append(times)
            words = ", ".join(f"{name} {times[name]:.2f}" for name in launchers)
            print(f"round {number + 1}: {words}" + ("" if window.clean else " (disturbed)"), file=sys.stderr)
    return clean, disturbed


def _first_line(command: Sequence[str], mark: Path) -> float:
    mark.unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM_", "OMPI_"))}
    started = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0 or not mark.exists():
        raise SystemExit(f"error: {' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
    return float(mark.read_text().split()[0]) - started


def summary(rounds: list[dict[str, float]]) -> dict[str, object]:
    """For each launcher: the median, and the median and quartiles of its difference to torchrun within a round (s)."""
    if len(rounds) < FEWEST:
        return {"not_measured": f"{len(rounds)} clean rounds, {FEWEST} are needed"}
    found: dict[str, object] = {}
    for name in rounds[0]:
        differences = [times[name] - times[BASE] for times in rounds]
        low, middle, high = statistics.quantiles(differences, n=4)
        found[name] = {
            "median_s": round(statistics.median(times[name] for times in rounds), 3),
            "over_torchrun_s": round(middle, 3),
            "over_torchrun_quartiles_s": [round(low, 3), round(high, 3)],
        }
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="how often each launcher is started (default 12)")
    parser.add_argument("--ranks", type=int, default=2, help="processes per start (default 2)")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    clean, disturbed = measure(arguments.ranks, arguments.rounds)
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.launch_overhead --rounds {arguments.rounds} --ranks {arguments.ranks}",
        "machine": machine,
        "clean_rounds": len(clean),
        "disturbed_rounds": disturbed,
        "launchers": summary(clean),
        "rounds": [{name: round(seconds, 3) for name, seconds in times.items()} for times in clean],
    }
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
