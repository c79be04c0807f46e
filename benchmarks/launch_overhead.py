"""From the command to the first line of a worker: this launcher, bare torchrun and others, in turn on one program.

    python -m benchmarks.launch_overhead [--rounds 12] [--ranks 2] [--out NAME]

Every round starts each launcher once, in a new random order; bare torchrun twice, which shows the noise. What counts
is the difference within a round. `accelerate launch` and `fabric run` take part where they are installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness import AGAINST, Figures, Measurement, ranks, rounds
from benchmarks.programs import LAUNCH, seconds_to_mark, torchrun
from benchmarks.turns import Turns, take_turns

BASE, AGAIN, OURS = "torchrun", "torchrun again", "launch.py"

# The clock is the system's own: the same in every process. Rank 0 is the worker whose first line a user waits for.
WORKER = """
import os, sys, time
if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
    with open(sys.argv[1], "a") as file:
        print(time.monotonic(), file=file)
"""


def commands(count: int, program: list[str]) -> dict[str, list[str]]:
    """The launchers that are here, each with its command for `count` processes on the CPU."""
    beside = Path(sys.executable).parent
    bare = [*torchrun(count), *program]
    found = {OURS: [*LAUNCH, "--cpu", "--nproc", str(count), *program], BASE: bare, AGAIN: bare}
    if accelerate := shutil.which("accelerate", path=str(beside)):
        options = ["--cpu", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
        options += ["--dynamo_backend", "no", "--main_process_port", "0"]
        found["accelerate launch"] = [sys.executable, accelerate, "launch", *options, *program]
    if fabric := shutil.which("fabric", path=str(beside)):
        options = ["--accelerator", "cpu", "--strategy", "ddp", "--devices", str(count), "--main-port", "0"]
        found["fabric run"] = [sys.executable, fabric, "run", *options, *program]
    return found


def measure(arguments: argparse.Namespace) -> Figures:
    """Seconds to the worker's first line, by launcher."""
    with tempfile.TemporaryDirectory() as folder:
        program, mark = Path(folder) / "worker.py", Path(folder) / "first-line"
        program.write_text(WORKER)
        launchers = commands(arguments.ranks, [str(program), str(mark)])
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM_", "OMPI_"))}
        cases = {name: partial(seconds_to_mark, command, mark, env) for name, command in launchers.items()}
        turns = take_turns(cases, arguments.rounds, unit="s")
    return {**turns.account(), "launchers": _summary(turns), "rounds": turns.rounded(3)}


def _summary(turns: Turns) -> Figures:
    """For each launcher: the median, and the median and quartiles of its difference to torchrun within a round (s)."""
    found = {}
    for name in turns.cases if turns.enough else ():
        over = turns.difference(name, BASE)
        found[name] = {
            "median_s": round(turns.values(name).median, 3),
            "over_torchrun_s": round(over.median, 3),
            "over_torchrun_quartiles_s": [round(over.low, 3), round(over.high, 3)],
        }
    return found


main = Measurement("launch_overhead", __doc__, measure, (rounds(12), ranks(), *AGAINST))

if __name__ == "__main__":
    sys.exit(main())
