"""What each launcher says of twelve programs that fail, and after how many seconds.

Every program runs on two ranks with gloo on the CPU, once under each launcher. `accelerate launch` and `deepspeed` take
part where they are installed.

A cell: the rank that the launcher itself names (in brackets: a wrong one), how many lines stand after the cause (+0: it
is the last line; "no cause": it is nowhere on the screen), whether it says what to do, the exit status, and the seconds
from the command to its end. The cause is what a person has to read to understand the failure; of a rank that left early
or sleeps, what it did. One run each: the seconds are a rough guide, and longer where the machine did other work (its
load is in the file).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.harness import Arguments, Figures, measurement, number
from benchmarks.programs import LAUNCH, torchrun

START = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
dist.init_process_group("gloo", timeout=timedelta(seconds=10))
rank = dist.get_rank()
dist.all_reduce(torch.ones(1))
"""
REST = "\ndist.all_reduce(torch.ones(1))\ndist.destroy_process_group()\n"


@dataclass(frozen=True)
class _Program:
    """A program that fails. `cause`: a pattern of the line that explains it; `rank`: the failing one, None for all."""

    about: str
    text: str
    cause: str
    rank: int | None = 1


PROGRAMS = (
    _Program(
        "an exception on one rank", START + "if rank: raise ValueError('bad batch')" + REST, "ValueError: bad batch"
    ),
    _Program(
        "status 3 and a line on standard error",
        START + "if rank: print('no such table', file=sys.stderr, flush=True); os._exit(3)" + REST,
        "no such table",
    ),
    _Program(
        "status 2 and a line on standard output",
        START + "if rank: print('the label file is empty', flush=True); os._exit(2)" + REST,
        "the label file is empty",
    ),
    _Program("SIGKILL", START + "if rank: os.kill(os.getpid(), 9)" + REST, r"SIGKILL|Signal 9|return code = -9"),
    _Program("SIGSEGV", START + "if rank: os.kill(os.getpid(), 11)" + REST, r"SIGSEGV|Signal 11|return code = -11"),
    _Program("a missing module", "import package_of_mine", "No module named 'package_of_mine'", None),
    _Program("a syntax error", "def train(:\n    pass", "SyntaxError", None),
    _Program("a rank that leaves early with status 0", START + "if rank: os._exit(0)" + REST, r"rank 1 left early"),
    _Program(
        "a rank that sleeps, and a time limit of 10 s",
        START + "def load_batch(): time.sleep(600)\nif rank: load_batch()" + REST,
        "load_batch",
    ),
    _Program(
        "a required --local_rank",
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--local_rank', required=True)\np.parse_args()",
        "required: --local_rank",
        None,
    ),
    _Program(
        "DDP with device_ids on the CPU",
        START + "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1), device_ids=[0])",
        "device_ids and output_device arguments",
        None,
    ),
    _Program("a missing file", START + "if rank: open('train.csv')" + REST, "No such file or directory: 'train.csv'"),
)
ACCELERATE = "launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
NAMED = {
    "launch.py": r"rank (\d+) (?:failed first|left early|hung|held the others up|lost its connection)",
    "torchrun": r"Root Cause[^$]*?rank +: (\d+)",
    "accelerate launch": r"Root Cause[^$]*?rank +: (\d+)",
}
"""How each launcher names the rank that failed. deepspeed names none: the command that it prints is that of the last
rank that it started, whichever failed."""


def launchers() -> dict[str, list[str]]:
    """The start of each launcher's command."""
    here = str(Path(sys.executable).parent)
    found = {"launch.py": [*LAUNCH, "--cpu", "--nproc", "2"], "torchrun": torchrun(2)}
    if accelerate := shutil.which("accelerate", path=here):
        found["accelerate launch"] = [sys.executable, accelerate, *ACCELERATE.split()]
    if deepspeed := shutil.which("deepspeed", path=here):
        found["deepspeed"] = [sys.executable, deepspeed, "--num_gpus", "2"]
    return found


def _fail(name: str, command: list[str], program: _Program, limit_s: float) -> Figures:
    """Run a program under a launcher to its end, or for `limit_s`; returns what the output says of the failure."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(program.text)
        env = os.environ | {"DS_ACCELERATOR": "cpu", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        begin = time.monotonic()
        with Path(folder, "screen").open("w+b") as screen:
            process = subprocess.Popen(
                [*command, "train.py"],
                cwd=folder,
                env=env,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = None
                os.killpg(process.pid, 9)
                process.wait()
            seconds = time.monotonic() - begin
            screen.seek(0)
            said = screen.read().decode(errors="replace")
    lines = said.rstrip().splitlines()
    after = next((at for at, line in enumerate(reversed(lines)) if re.search(program.cause, line)), None)
    found = re.search(NAMED[name], said) if name in NAMED else None
    return {
        "launcher": name,
        "program": program.about,
        "status": status,
        "seconds": round(seconds, 1),
        "rank": None if found is None else int(found[1]),
        "lines": len(lines),
        "lines_after_the_cause": after,
        "says_what_to_do": re.search(r"^to do ", said, re.MULTILINE) is not None,
    }


def _cell(one: Figures, expected: int | None) -> str:
    """What a launcher said, as a cell of the table. expected: the rank that failed."""
    rank = one["rank"]
    named = "no rank" if rank is None else f"rank {rank}" if expected in (None, rank) else f"(rank {rank})"
    after = one["lines_after_the_cause"]
    cause = "no cause" if after is None else f"cause +{after}"
    to_do = ["to do"] * one["says_what_to_do"]
    status = "no end" if one["status"] is None else f"status {one['status']}"
    return ", ".join([named, cause, *to_do, status, f"{one['seconds']:.1f} s"])


def _title(name: str) -> str:
    """A launcher with its version, where it is not torch's or ours."""
    package = name.partition(" ")[0]
    return f"{name} {metadata.version(package)}" if package in ("accelerate", "deepspeed") else name


@measurement(number("--limit", 90.0, "seconds after which a run is killed", "SECONDS"))
def main(arguments: Arguments) -> Figures:
    """Every program under every launcher that is installed."""
    found: list[Figures] = []
    rows = []
    commands = launchers()
    for program in PROGRAMS:
        row = [program.about]
        for name, command in commands.items():
            found.append(one := _fail(name, command, program, arguments.limit))
            row.append(_cell(one, program.rank))
            print(f"{program.about}: {name}: {row[-1]}", file=sys.stderr, flush=True)
        rows.append(row)
    return {"runs": found, "table": {"columns": ["program", *map(_title, commands)], "rows": rows}}
