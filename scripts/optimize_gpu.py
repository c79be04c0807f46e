#!/usr/bin/env python3
"""Writes a configuration for this machine, and shows how busy its GPUs are.

    python scripts/optimize_gpu.py --config run.yaml              writes run_optimized.yaml, says what changed and why
    python scripts/optimize_gpu.py --config run.yaml --benchmark  with a measured search for the per-rank batch
    python scripts/optimize_gpu.py --monitor 60                   utilisation and memory, mean and peak, a verdict

The same as functions: `auto_optimize_config(in_path, out_path)` and
`BatchSizeOptimizer(model).find_optimal_batch_size(sample, target_gpu_util=85.0)`.
Exit status: 0; 2 for a mistake, in one line.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file: the packages stand beside this folder, whatever the working directory.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError
from ddp_train.config.options import Config
from ddp_train.config.parse import parse, with_values
from ddp_train.tune.optimize import Measured, auto_optimize_config, place, read_machine, table


def __getattr__(name: str) -> object:
    """BatchSizeOptimizer needs torch, which takes seconds to import: both are imported on first use."""
    if name == "BatchSizeOptimizer":
        from ddp_train.tune.batch_size_optimizer import BatchSizeOptimizer

        return BatchSizeOptimizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = CommandLine(prog="scripts/optimize_gpu.py", description="A configuration made to fit this machine.")
    add = parser.add_argument
    add("--config", metavar="IN.yaml", type=Path, help="options of the trainer; IN_optimized.yaml is written beside it")
    add("--output", metavar="FILE", type=Path, help="write there instead")
    add("--benchmark", action="store_true", help="measure which per-rank batch fits and is fast (half a minute)")
    add("--monitor", metavar="S", type=_seconds, help="watch the GPUs for so many seconds; 0: until Ctrl-C")
    return exit_status(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    """Run what the options ask for; the exit status. Errors: UserError."""
    if arguments.config is None and arguments.monitor is None:
        raise UserError("give --config IN.yaml, or --monitor SECONDS (see --help)")
    for option in ("output", "benchmark"):
        if arguments.config is None and getattr(arguments, option):
            raise UserError(f"--{option} is for --config IN.yaml")
    if arguments.config is not None:
        _optimize(arguments)
    return 0 if arguments.monitor is None else _monitor(arguments.monitor)


def _optimize(arguments: argparse.Namespace) -> None:
    """Write the configuration with measured or recommended options."""
    source: Path = arguments.config
    wanted = parse(["--config", str(source)])  # mistakes are reported before anything is measured
    target = place(source, arguments.output)
    machine = read_machine()
    if machine.note is not None:
        print(f"note: {machine.note}", file=sys.stderr)
    measured = _measure(wanted) if arguments.benchmark else None
    changes = auto_optimize_config(source, target, machine=machine, measured=measured)
    print(table(changes))
    print(target)
    print(f"to train with it: python launch.py --auto --config {shlex.quote(str(target))}", file=sys.stderr)


def _measure(wanted: Config) -> Measured | None:
    """Run the batch finder on this configuration, on one rank. Its run folder is deleted."""
    from ddp_train.assemble.build import build
    from ddp_train.assemble.resolve_options import set_threads
    from ddp_train.distributed import process_group
    from ddp_train.tune import batch_report

    ranks = process_group.Ranks()
    device = process_group.choose_device(wanted.run.device, ranks)
    set_threads(ranks, device)
    with tempfile.TemporaryDirectory() as folder:
        alone = {"out_dir": str(Path(folder) / "run"), "tune": "batch", "resume": None, "tensorboard": False}
        run = build(with_values(wanted, alone), ranks, device)
        found = batch_report.find_for(run.trainer, len(run.dataset.train.labels), wanted.run.target_utilization)
    print(batch_report.table(found), file=sys.stderr)
    measured = Measured.of(found.recommended, found.largest, found.ended)
    if measured is None:
        print(f"note: the time was up at {found.largest} per rank: sizes by the hardware alone", file=sys.stderr)
    return measured


def _monitor(seconds: float) -> int:
    """Run `python -m gpu_topology monitor`: mean and peak at the end, and a verdict. Prints why if there is no GPU."""
    from gpu_topology import cli
    from gpu_topology.driver.read import read_or_explain

    topology = read_or_explain()
    if not topology.gpus:
        why = topology.warnings[0] if topology.warnings else "this machine has no NVIDIA GPU"
        print(f"nothing to watch: {why}")
        return 0
    return cli.main(["monitor", "--seconds", f"{seconds:g}"])


def _seconds(text: str) -> float:
    """Parse a number of seconds. Errors: argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of at least 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
