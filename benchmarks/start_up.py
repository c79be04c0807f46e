"""From the command to the first training step, and what importing takes.

The clock starts before the command. Bare torchrun starts a program with torch and a process group, twice in each round,
which shows the noise. `imports` holds what a rank imports up to its first step (`python -X importtime`): the sum, the
modules of 20 ms or more, and which of the slow packages are among them.

Seconds from the command to the first batch of rank 0; for bare torchrun, to the first barrier.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import AGAINST, DATA_DIR, RANKS, Arguments, Figures, measurement, rounds
from benchmarks.machine import ROOT
from benchmarks.programs import LAUNCH, import_times, seconds_to_mark, torchrun
from benchmarks.turns import Turns, take_turns

if TYPE_CHECKING:
    from ddp_train.technique import Context, Technique

TRAINER = str(ROOT / "ddp_train" / "main.py")
MARK = "BENCHMARK_FIRST_STEP"
BARE, AGAIN, OURS, TORCHRUN = "torchrun, torch, process group", "the same again", "launch.py", "torchrun, our trainer"
LEAVE_S = 0.2
TRAINING = ["--epochs", "1", "--batch-size", "1024", "--no-tensorboard", "--no-examine"]
TRAINING += ["--technique", "benchmarks.start_up:leave_at_first_batch"]
SLOW = ("torchvision", "matplotlib", "tensorboard", "scipy", "sklearn", "sympy", "PIL", "pandas", "wandb")
LONG_MS = 20.0

PROGRAM = f"""
import os, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:
    with open(os.environ["{MARK}"], "w") as file:
        file.write(str(time.monotonic()))
dist.barrier()
os._exit(0)
"""


def leave_at_first_batch(context: Context) -> Technique:
    """Notes the time of the first batch of rank 0, where the parent asks for it, and ends the run there."""
    import torch.distributed as dist

    from ddp_train.technique import Technique

    def leave(*_: object) -> tuple[object, object]:
        """Write the time of rank 0's first batch, and end the process."""
        if MARK in os.environ and context.ranks.is_first:
            Path(os.environ[MARK]).write_text(str(time.monotonic()))
        sys.stderr.flush()  # the import times
        if context.ranks.world_size > 1:
            dist.barrier()
            time.sleep(LEAVE_S)  # so that the others can still read from this rank
        os._exit(0)

    return Technique(name="leave_at_first_batch", batch=leave)  # type: ignore[arg-type]


def _start(count: int, data: list[str], wanted: int, folder: Path) -> Turns:
    """Seconds to the first step, for each way of starting `count` ranks."""
    program, mark = folder / "bare.py", folder / "first-step"
    program.write_text(PROGRAM)
    env = os.environ | {MARK: str(mark)}

    def train(*command: str) -> float:
        """Seconds to the first step of a new training run started by this command."""
        out = tempfile.mkdtemp(dir=folder)
        return seconds_to_mark([*command, *TRAINING, *data, "--out-dir", out], mark, env)

    bare = partial(seconds_to_mark, [*torchrun(count), str(program)], mark, env)
    ours = partial(train, *LAUNCH, "--cpu", "--nproc", str(count))
    cases = {BARE: bare, AGAIN: bare, OURS: ours, TORCHRUN: partial(train, *torchrun(count), TRAINER)}
    return take_turns(cases, wanted, unit="s")


def imports(data: list[str], folder: Path) -> Figures:
    """What one rank imports up to its first batch, in ms: the modules that take long by themselves."""
    own = import_times([TRAINER, *TRAINING, *data, "--device", "cpu", "--out-dir", str(folder / "run")])
    longest = sorted(own.items(), key=lambda item: -item[1])
    return {
        "modules": len(own),
        "total_ms": round(sum(own.values()), 1),
        "torch_ms": round(sum(took for name, took in own.items() if name.split(".")[0] == "torch"), 1),
        "long_ms": {name: took for name, took in longest if took >= LONG_MS},
        "slow_packages_among_them": [name for name in (*SLOW, "torch._dynamo") if name in own],
    }


@measurement(RANKS, rounds(7), DATA_DIR, *AGAINST)
def main(arguments: Arguments) -> Figures:
    """Every way of starting, in turns, and what a rank imports."""
    data = ["--data-dir", arguments.data_dir] if arguments.data_dir else ["--dataset", "synthetic"]
    with tempfile.TemporaryDirectory() as name:
        turns = _start(arguments.ranks, data, arguments.rounds, Path(name))
        imported = imports(data, Path(name))
    found: Figures = {}
    if turns.enough:
        found["over_torchrun_s"] = {case: turns.difference(case, BARE).rounded(3) for case in turns.cases}
        columns = ["start", "s to the first step, median (quartiles)", "over bare torchrun"]
        found["table"] = {"columns": columns, "rows": turns.rows(BARE, ".2f", turns.difference, "+.2f")}
    return {**turns.account(), **found, "imports": imported, "rounds": turns.rounded(3)}
