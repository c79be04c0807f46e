"""Shared by all measurements: options, description of the machine, table, JSON, and turns with another checkout.

A measurement is a function from its options to figures. `Measurement` is its `main`: it parses, describes the machine,
measures, prints the JSON to stdout and the table to stderr, and keeps the JSON as benchmarks/results/NAME.json with
`--out NAME`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalogue import find
from benchmarks.machine import RESULTS, describe_machine
from benchmarks.programs import TASK
from benchmarks.report import plain_text, table_of
from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError

Arguments = argparse.Namespace
Figures = dict[str, Any]
BUSY = 0.5
"""The machine is reported as busy from this load on: the load of one minute, as a share of the CPUs."""


class Option:
    """An option of a measurement, as argparse's `add_argument` takes it."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


def number(name: str, default: float | None, about: str, metavar: str = "N", least: int = 1) -> Option:
    """An option with a number, which is a whole one unless its default is a float."""
    kind, words = (float, "number") if isinstance(default, float) else (int, "whole number")

    def read(word: str) -> float:
        """Parse the number. Errors: argparse.ArgumentTypeError."""
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{word!r} is not a {words} of at least {least}")
        return value

    shown = about if default is None else f"{about} [{default:g}]"
    return Option(name, type=read, default=default, metavar=metavar, help=shown)


def text(name: str, default: str, about: str, metavar: str = "NAME") -> Option:
    """An option with a text."""
    return Option(name, default=default, metavar=metavar, help=f"{about} [{default}]")


def rounds(count: int) -> Option:
    """How many undisturbed rounds are wanted."""
    return number("--rounds", count, "undisturbed rounds")


RANKS = number("--ranks", 2, "processes per start")
DEVICE = Option("--device", choices=["cpu", "cuda"], default="cpu")
DATA_DIR = Option("--data-dir", metavar="DIR", help="CIFAR-10 (default: synthetic images of the same shape)")
OUT = Option("--out", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
AGAINST = (
    Option("--against", metavar="FOLDER", type=Path, help="measure in turns here and in this other checkout"),
    number("--turns", 3, "turns of --against"),
)


@dataclass(frozen=True)
class Measurement:
    """One measurement, callable as `main(argv)`."""

    name: str
    measure: Callable[[Arguments], Figures]
    options: tuple[Option, ...]
    worker: Callable[..., object] | None
    failed: Callable[[Figures], bool]

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Measure, print and keep the result; the exit status."""
        if self.worker is not None and (task := os.environ.pop(TASK, None)):
            return _work(self.worker, json.loads(task))
        return exit_status(lambda: self._run(argv))

    def _run(self, argv: Sequence[str] | None) -> int:
        """Parse the options, measure, print the result and keep it with --out."""
        entry = find(self.name)
        parser = CommandLine(prog=f"python -m benchmarks.{self.name}", description=entry.question if entry else None)
        own_out = any("out" in name for option in self.options for name in option.names)
        for option in (*self.options, *(() if own_out else (OUT,))):
            parser.add_argument(*option.names, **option.settings)
        arguments = parser.parse_args(argv)
        if getattr(arguments, "against", None) is not None:
            from benchmarks.against import compare

            return compare(self.name, self._words(arguments), arguments.against, arguments.turns)
        if arguments.out and Path(arguments.out).name != arguments.out:
            raise UserError(f"--out {arguments.out}: a name without a folder is accepted")
        machine = describe_machine()
        figures = self.measure(arguments)
        if (load := machine["load_average"]) > BUSY * machine["usable_cpus"]:
            state = f"the machine is busy (load {load} on {machine['usable_cpus']} CPUs)"
            print(f"note: {state}: rounds that other processes disturb did not count", file=sys.stderr)
        if getattr(arguments, "data_dir", None):
            arguments.data_dir = "DIR"  # the folder's name is private
        command = " ".join([f"python -m benchmarks.{self.name}", *self._words(arguments)])
        result = {"schema": "ddp-benchmark/1", "command": command, "machine": machine, **figures}
        written = json.dumps(result, indent=2)
        if arguments.out:
            (RESULTS / f"{arguments.out}.json").write_text(written + "\n")
        print(written, flush=True)
        if reason := result.get("not_measured"):
            print(f"not measured: {reason}", file=sys.stderr)
        elif (table := table_of(result)) is not None:
            print(plain_text(table), file=sys.stderr)
        return int(self.failed(figures))

    def _words(self, arguments: Arguments) -> list[str]:
        """The options that repeat this measurement."""
        words: list[str] = []
        for option in self.options:
            name = option.names[0]
            value = getattr(arguments, name.strip("-").replace("-", "_"))
            # An empty list counts as given where it is not the default, as in `--targets`.
            given = value or (value == [] and option.settings.get("default") != [])
            if name in ("--out", "--against", "--turns") or not name.startswith("-") or not given:
                continue
            words.append(name)
            words += [] if value is True else [str(one) for one in (value if isinstance(value, list) else [value])]
        return words


def measurement(
    *options: Option,
    worker: Callable[..., object] | None = None,
    failed: Callable[[Figures], bool] = lambda figures: "not_measured" in figures,
) -> Callable[[Callable[[Arguments], Figures]], Measurement]:
    """Turns a module's last function, which returns the figures, into its `main`; runs it if the module is the program.

    Figures with the key `command` replace the harness's own. worker: the function that the module runs in the processes
    of `programs.start_worker`. failed: whether the exit status is 1.
    """

    def declare(measure: Callable[[Arguments], Figures]) -> Measurement:
        """Make `main`, and run it if the module is the program."""
        name = measure.__globals__["__spec__"].name.rpartition(".")[2]
        main = Measurement(name, measure, options, worker, failed)
        if measure.__module__ == "__main__":
            sys.exit(main())
        return main

    return declare


def _work(worker: Callable[..., object], task: dict[str, Any]) -> int:
    """Run the task of a worker process, and write the answer of rank 0 for the measurement."""
    answer = Path(task.pop("answer"))
    found = worker(**task)
    if os.environ.get("RANK", "0") == "0":
        answer.write_text(json.dumps(found))
    if distributed := sys.modules.get("torch.distributed"):
        from ddp_train.distributed import process_group

        if distributed.is_initialized():
            process_group.leave(0)
    return 0
