"""From the command to the first training step on decoded data, beside bare torchrun with torch and a process group.

    python -m benchmarks.start_up [--data-dir DIR] [--ranks 2] [--rounds 7] [--out NAME]

The clock starts before the command and stops when rank 0 has its first batch; for torchrun when rank 0 has left a
first barrier of its process group. Each round starts each of them once, in a random order; bare torchrun twice, which
shows the noise. Rounds that other processes disturbed are left out. Beside it stands what a rank imports up to its
first step (`python -X importtime`): the sum, the modules of 20 ms or more, and which of the slow packages are among
them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import AGAINST, DATA_DIR, Figures, Measurement, ranks, rounds
from benchmarks.machine import ROOT
from benchmarks.programs import LAUNCH, import_times, seconds_to_mark, torchrun
from benchmarks.turns import take_turns

if TYPE_CHECKING:
    from ddp_train.technique import Context, Technique

TRAINER = str(ROOT / "ddp_train" / "main.py")
MARK = "BENCHMARK_FIRST_STEP"
BARE, AGAIN, OURS, TORCHRUN = "torchrun, torch, process group", "the same again", "launch.py", "torchrun, our trainer"
LEAVE_S = 0.2
SHORT = ["--epochs", "1", "--batch-size", "1024", "--no-tensorboard", "--no-examine"]
SLOW = [
    "torchvision",
    "matplotlib",
    "tensorboard",
    "scipy",
    "sklearn",
    "sympy",
    "PIL",
    "pandas",
    "wandb",
    "torch._dynamo",
]
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


def first_batch(context: Context) -> Technique:
    """Notes the time of the first batch of rank 0, for the parent of the run, which ends there on all ranks."""
    import torch.distributed as dist

    from ddp_train.technique import Technique

    def note(*_: object) -> tuple[object, object]:
        if context.ranks.is_first:
            Path(os.environ[MARK]).write_text(str(time.monotonic()))
        if context.ranks.world_size > 1:
            dist.barrier()
        time.sleep(LEAVE_S)  # what the others still read of this rank
        os._exit(0)

    return Technique(name="first_batch", batch=note)  # type: ignore[arg-type]


def _cases(count: int, data: list[str], folder: Path) -> dict[str, Callable[[], float]]:
    program, mark = folder / "bare.py", folder / "first-step"
    program.write_text(PROGRAM)
    training = [*SHORT, *data, "--technique", "benchmarks.start_up:first_batch"]
    launch = [*LAUNCH, "--cpu", "--nproc", str(count)]
    env = os.environ | {MARK: str(mark)}

    def start(*command: str) -> float:
        trains = [*training, "--out-dir", tempfile.mkdtemp(dir=folder)] if str(program) not in command else []
        return seconds_to_mark([*command, *trains], mark, env)

    return {
        BARE: partial(start, *torchrun(count), str(program)),
        AGAIN: partial(start, *torchrun(count), str(program)),
        OURS: partial(start, *launch),
        TORCHRUN: partial(start, *torchrun(count), TRAINER),
    }


def imports(data: list[str], folder: Path) -> Figures:
    """What one rank imports up to its first batch, in ms: the modules that take long by themselves."""
    command = [TRAINER, *SHORT, *data, "--device", "cpu", "--out-dir", str(folder / "run")]
    own = import_times([*command, "--technique", "benchmarks.start_up:leave_at_first_batch"])
    longest = sorted(((name, took) for name, took in own.items() if took >= LONG_MS), key=lambda item: -item[1])
    return {
        "modules": len(own),
        "total_ms": round(sum(own.values()), 1),
        "torch_ms": round(sum(took for name, took in own.items() if name.split(".")[0] == "torch"), 1),
        "long_ms": dict(longest),
        "slow_packages_among_them": [name for name in SLOW if name in own],
    }


def leave_at_first_batch(context: Context) -> Technique:
    """Ends the process with its first batch: what is imported afterwards is not part of the start."""
    from ddp_train.technique import Technique

    def leave(*_: object) -> tuple[object, object]:
        sys.stderr.flush()
        os._exit(0)

    return Technique(name="leave", batch=leave)  # type: ignore[arg-type]


def measure(arguments: argparse.Namespace) -> Figures:
    """Seconds to the first step, by way of starting, and what a rank imports."""
    data = ["--data-dir", arguments.data_dir] if arguments.data_dir else ["--dataset", "synthetic"]
    with tempfile.TemporaryDirectory() as name:
        turns = take_turns(_cases(arguments.ranks, data, Path(name)), arguments.rounds, unit="s")
        imported = imports(data, Path(name))
    found: Figures = {}
    if turns.enough:
        found["over_torchrun_s"] = {case: turns.difference(case, BARE).rounded(3) for case in turns.cases}
        columns = ["start", "s to the first step, median (quartiles)", "over bare torchrun"]
        found["table"] = {"columns": columns, "rows": turns.rows(BARE, ".2f", turns.difference, "+.2f")}
    return {**turns.account(), **found, "imports": imported, "rounds": turns.rounded(3)}


main = Measurement("start_up", __doc__, measure, (ranks(), rounds(7), DATA_DIR, *AGAINST))

if __name__ == "__main__":
    sys.exit(main())
