"""From the command to the first training step on decoded data, beside bare torchrun with torch and a process group.

    python -m benchmarks.start_up [--data-dir DIR] [--ranks 2] [--rounds 7] [--out NAME]

The clock starts before the command and stops when rank 0 has its first batch; for torchrun when rank 0 has left a
first barrier of its process group. Each round starts each of them once, in a random order; bare torchrun twice, which
shows the noise. Rounds that other processes disturbed are left out. Beside it stands what a rank imports up to its
first step (`python -X importtime`): the sum, the modules of 20 ms or more, and which of the slow packages are among
them. The result is benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import ROOT, describe_machine, publish
from benchmarks.turns import take_turns

if TYPE_CHECKING:
    from ddp_train.technique import Context, Technique

LIMIT_S = 180
MARK = "BENCHMARK_FIRST_STEP"
BARE, AGAIN, OURS, TORCHRUN = "torchrun, torch, process group", "the same again", "launch.py", "torchrun, our trainer"
LEAVE_S = 0.2
SHORT = ["--epochs", "1", "--batch-size", "1024", "--no-tensorboard", "--no-examine"]
SLOW = (
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
)
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


def _seconds(command: list[str], mark: Path) -> float:
    mark.unlink(missing_ok=True)
    env = os.environ | {MARK: str(mark)}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode != 0 or not mark.exists():
        raise SystemExit(f"error: {' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
    return float(mark.read_text()) - started


def _cases(ranks: int, data: list[str], folder: Path) -> dict[str, Callable[[], float]]:
    program, mark = folder / "bare.py", folder / "first-step"
    program.write_text(PROGRAM)
    training = [*SHORT, *data, "--technique", "benchmarks.start_up:first_batch"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    torchrun += [f"--nproc-per-node={ranks}"]
    launch = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", str(ranks)]
    trainer = str(ROOT / "ddp_train" / "main.py")

    def fresh() -> list[str]:
        return ["--out-dir", tempfile.mkdtemp(dir=folder)]

    return {
        BARE: lambda: _seconds([*torchrun, str(program)], mark),
        AGAIN: lambda: _seconds([*torchrun, str(program)], mark),
        OURS: lambda: _seconds([*launch, *training, *fresh()], mark),
        TORCHRUN: lambda: _seconds([*torchrun, trainer, *training, *fresh()], mark),
    }


def imports(data: list[str], folder: Path) -> dict[str, object]:
    """What one rank imports up to its first batch, in ms: the modules that take long by themselves."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "ddp_train" / "main.py"), *SHORT, *data]
    command += ["--device", "cpu", "--out-dir", str(folder / "run")]
    command += ["--technique", "benchmarks.start_up:leave_at_first_batch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    own = {row[2].strip(): int(row[0]) / 1000 for row in rows if row[0].strip().isdigit()}
    longest = sorted(((name, took) for name, took in own.items() if took >= LONG_MS), key=lambda item: -item[1])
    there = [name for name in SLOW if name in own]
    return {
        "modules": len(own),
        "total_ms": round(sum(own.values()), 1),
        "torch_ms": round(sum(took for name, took in own.items() if name.split(".")[0] == "torch"), 1),
        "long_ms": dict(longest),
        "slow_packages_among_them": there,
    }


def leave_at_first_batch(context: Context) -> Technique:
    """Ends the process with its first batch: what is imported afterwards is not part of the start."""
    from ddp_train.technique import Technique

    def leave(*_: object) -> tuple[object, object]:
        sys.stderr.flush()
        os._exit(0)

    return Technique(name="leave", batch=leave)  # type: ignore[arg-type]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the result; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", metavar="DIR", help="CIFAR-10 (default: synthetic images of the same shape)")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes per start (default 2)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="undisturbed rounds (default 7)")
    parser.add_argument("--out", metavar="NAME", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args(argv)
    data = ["--data-dir", arguments.data_dir] if arguments.data_dir else ["--dataset", "synthetic"]
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns = take_turns(_cases(arguments.ranks, data, folder), arguments.rounds, unit="s")
        imported = imports(data, folder)
    found: dict[str, object] = {}
    if turns.enough:
        names = list(turns.rounds[0])
        found["over_torchrun_s"] = {case: turns.difference(case, BARE).rounded(3) for case in names}
        found["table"] = {
            "columns": ["start", "s to the first step, median (quartiles)", "over bare torchrun"],
            "rows": [[case, f"{turns.values(case):.2f}", f"{turns.difference(case, BARE):+.2f}"] for case in names],
        }
    result = {
        "schema": "ddp-benchmark/1",
        "command": f"python -m benchmarks.start_up --ranks {arguments.ranks} --rounds {arguments.rounds}"
        + (" --data-dir DIR" if arguments.data_dir else ""),
        "machine": machine,
        **turns.account(),
        **found,
        "imports": imported,
        "rounds": [{case: round(seconds, 3) for case, seconds in times.items()} for times in turns.rounds],
    }
    publish(result, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
