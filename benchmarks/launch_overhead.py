"""From the command to a worker's first line, compared with torchrun, accelerate and fabric.

Every round starts each launcher once on the same program, in a new random order; bare torchrun twice. What counts is
the difference within a round. `accelerate launch` and `fabric run` take part where they are installed.

Seconds from the command to the first line of rank 0's program. `torchrun again` shows the noise.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness import AGAINST, RANKS, Arguments, Figures, measurement, rounds
from benchmarks.programs import LAUNCH, seconds_to_mark, torchrun
from benchmarks.turns import take_turns

BASE, AGAIN, OURS = "torchrun", "torchrun again", "launch.py"

# The clock is the system's own: the same in every process. Rank 0 is the worker whose first line a user waits for.
WORKER = """
import os, sys, time
if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
    with open(sys.argv[1], "a") as file:
        print(time.monotonic(), file=file)
"""
ACCELERATE = "launch --cpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
FABRIC = "run --accelerator cpu --strategy ddp --main-port 0"


def commands(count: int, program: list[str]) -> dict[str, list[str]]:
    """The installed launchers, each with its command for `count` processes on the CPU."""
    here = Path(sys.executable).parent
    bare = [*torchrun(count), *program]
    found = {OURS: [*LAUNCH, "--cpu", "--nproc", str(count), *program], BASE: bare, AGAIN: bare}
    if accelerate := shutil.which("accelerate", path=here):
        options = [*ACCELERATE.split(), "--num_processes", str(count)]
        found["accelerate launch"] = [sys.executable, accelerate, *options, *program]
    if fabric := shutil.which("fabric", path=here):
        found["fabric run"] = [sys.executable, fabric, *FABRIC.split(), "--devices", str(count), *program]
    return found


@measurement(rounds(12), RANKS, *AGAINST)
def main(arguments: Arguments) -> Figures:
    """Start the program under each launcher, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        program, mark = Path(folder) / "worker.py", Path(folder) / "first-line"
        program.write_text(WORKER)
        launchers = commands(arguments.ranks, [str(program), str(mark)])
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM_", "OMPI_"))}
        cases = {name: partial(seconds_to_mark, command, mark, env) for name, command in launchers.items()}
        turns = take_turns(cases, arguments.rounds, unit="s")
    found = {}
    for name in turns.cases if turns.enough else ():
        over, median = turns.difference(name, BASE).rounded(3), round(turns.values(name).median, 3)
        quartiles = [over["low"], over["high"]]
        found[name] = {"median_s": median, "over_torchrun_s": over["median"], "over_torchrun_quartiles_s": quartiles}
    return {**turns.account(), "launchers": found, "rounds": turns.rounded(3)}
