"""What every measurement shares: its options, the machine it ran on, the table, the JSON, and turns with a checkout.

A measurement declares its options and a function from the parsed options to figures. `Measurement` is its `main`: it
parses, describes the machine, measures, prints the JSON to stdout and the table to stderr, and keeps the JSON as
benchmarks/results/NAME.json with `--out NAME`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.machine import RESULTS, describe_machine
from benchmarks.programs import TASK
from ddp_core.errors import UserError

Figures = dict[str, Any]
BUSY = 0.5
"""Load of one minute, as a share of the CPUs, from which on the machine is reported as busy."""


class Option:
    """An option of a measurement, as argparse's `add_argument` takes it."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


def rounds(count: int) -> Option:
    """How many undisturbed rounds are wanted."""
    return Option("--rounds", type=int, default=count, metavar="N", help=f"undisturbed rounds [{count}]")


def ranks(count: int = 2) -> Option:
    """How many processes are started."""
    return Option("--ranks", type=int, default=count, metavar="N", help=f"processes per start [{count}]")


def models(default: str, known: Sequence[str]) -> Option:
    """A list of networks."""
    return Option("--models", default=default, metavar="LIST", help=f"of {', '.join(known)} [{default}]")


DEVICE = Option("--device", choices=["cpu", "cuda"], default="cpu")
DATA_DIR = Option("--data-dir", metavar="DIR", help="CIFAR-10 (default: synthetic images of the same shape)")
OUT = Option("--out", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
AGAINST = (
    Option("--against", metavar="FOLDER", type=Path, help="measure in turns here and in this other checkout"),
    Option("--turns", type=int, default=3, metavar="N", help="turns of --against [3]"),
)


@dataclass(frozen=True)
class Measurement:
    """One measurement, callable as `main(argv)`.

    description: the module's docstring. measure: what makes the figures; those with the keys `command` and `machine`
    replace the harness's own. worker: the function that this program runs where `programs.Worker` started it.
    failed: whether the exit status is 1.
    """

    name: str
    description: str | None
    measure: Callable[[argparse.Namespace], Figures]
    options: tuple[Option, ...] = ()
    worker: Callable[..., object] | None = None
    failed: Callable[[Figures], bool] = lambda figures: "not_measured" in figures

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Measure, print and keep the result; the exit status."""
        if self.worker is not None and (task := os.environ.pop(TASK, None)):
            return _work(self.worker, json.loads(task))
        arguments = self._parser().parse_args(argv)
        try:
            if getattr(arguments, "against", None) is not None:
                from benchmarks.against import compare

                return compare(self.name, self.words(arguments), arguments.against, arguments.turns)
            machine = describe_machine()
            _note_load(machine)
            figures = self.measure(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        command = " ".join(["python -m", f"benchmarks.{self.name}", *self.words(arguments, shown=True)])
        publish({"schema": "ddp-benchmark/1", "command": command, "machine": machine, **figures}, arguments.out)
        return int(self.failed(figures))

    def _parser(self) -> argparse.ArgumentParser:
        description = (self.description or "").splitlines()[0]
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=description)
        own_out = any("out" in name for option in self.options for name in option.names)
        for option in (*self.options, *(() if own_out else (OUT,))):
            parser.add_argument(*option.names, **option.settings)
        return parser

    def words(self, arguments: argparse.Namespace, *, shown: bool = False) -> list[str]:
        """The options that repeat this measurement. shown: as they are published, without the data's real folder."""
        words: list[str] = []
        for option in self.options:
            name = option.names[0]
            value = getattr(arguments, name.strip("-").replace("-", "_"))
            if name in ("--out", "--against", "--turns") or not name.startswith("-") or not (value or value == []):
                continue
            if name == "--data-dir" and shown:
                value = "DIR"
            words.append(name)
            words += [] if value is True else [str(one) for one in (value if isinstance(value, list) else [value])]
        return words


def _work(worker: Callable[..., object], task: dict[str, Any]) -> int:
    answer = Path(task.pop("answer"))
    found = worker(**task)
    if os.environ.get("RANK", "0") == "0":
        answer.write_text(json.dumps(found))
    if distributed := sys.modules.get("torch.distributed"):
        from ddp_train.distributed import process_group

        if distributed.is_initialized():
            process_group.leave(0)
    return 0


def _note_load(machine: Mapping[str, Any]) -> None:
    if machine["load_average"] > BUSY * machine["usable_cpus"]:
        print(
            f"note: the machine is busy (load {machine['load_average']} on {machine['usable_cpus']} CPUs): "
            "rounds that other processes disturb do not count",
            file=sys.stderr,
        )


def publish(result: Mapping[str, Any], name: str | None) -> None:
    """Print a result as JSON and its table, and keep it as benchmarks/results/NAME.json where it has a name."""
    text = json.dumps(result, indent=2)
    if name:
        (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text, flush=True)
    if reason := result.get("not_measured"):
        print(f"not measured: {reason}", file=sys.stderr)
    elif (table := tables.table_of(result)) is not None:
        print(tables.text(table), file=sys.stderr)
