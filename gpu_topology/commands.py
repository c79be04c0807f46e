"""The commands of `python -m gpu_topology` with their options.

A command's own module is imported only when it is called: `select` and `env` stay fast enough for a shell prompt.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ddp_core import __version__
from ddp_core.cli import CommandLine
from gpu_topology.cli_options import (
    Answers,
    add_output,
    add_selection,
    add_source,
    answer,
    insist,
    positive,
    read_source,
)

PROGRAM = "python -m gpu_topology"


def parse(given: list[str]) -> argparse.Namespace:
    """The parsed options of the command `given[0]`; their `run(arguments)` runs the command. Errors: OptionError."""
    return _parser(given[0]).parse_args(given)


def _parser(called: str) -> CommandLine:
    """The parser. Where a known command is called, only its module is imported."""
    parser = CommandLine(
        prog=PROGRAM,
        description="What is in this machine, which GPUs belong together, and how to set CUDA and NCCL.",
    )
    parser.add_argument("--version", action="version", version=f"gpu-topology {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        if called in _COMMANDS and name != called:
            continue
        options = commands.add_parser(name, help=command.about, description=command.about)
        if name == called:
            command.prepare(options)
    return parser


@dataclass(frozen=True, slots=True)
class _Module:
    """A command that is a module of its own, with `add_arguments(parser)` and `run(arguments) -> int`."""

    name: str
    about: str

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command's module."""
        module = importlib.import_module(self.name)
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)


@dataclass(frozen=True, slots=True)
class _Function:
    """A command of a few lines, in this file."""

    run: Callable[[argparse.Namespace], None]
    about: str
    options: tuple[Callable[[argparse.ArgumentParser], None], ...]

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command."""
        add_source(parser)
        for add in self.options:
            add(parser)
        parser.set_defaults(run=self._run)

    def _run(self, arguments: argparse.Namespace) -> int:
        """Run the command; always status 0."""
        self.run(arguments)
        return 0


def _add_format(parser: argparse.ArgumentParser) -> None:
    """Add `--as`, the form in which the list of GPUs is printed."""
    parser.add_argument(
        "--as",
        dest="form",
        choices=("auto", "index", "uuid"),
        default="auto",
        help="auto: indices where CUDA counts as nvidia-smi does, UUIDs on a machine of different GPUs",
    )


def _add_shell(parser: argparse.ArgumentParser) -> None:
    """Add the options of `env`."""
    from gpu_topology.environment.shells import SHELLS

    parser.add_argument("--shell", choices=SHELLS, default="sh", help='sh: eval "$(... env)" (default)')
    parser.add_argument("--ranks", type=positive, metavar="N", help="processes on this machine (default: one per GPU)")


def _snapshot(arguments: argparse.Namespace) -> None:
    """`snapshot`: the topology as JSON, to a file or to stdout."""
    from gpu_topology import snapshot

    topology = read_source(arguments)
    if arguments.output is None:
        import json

        print(json.dumps(snapshot.to_dict(topology), indent=1))
    else:
        snapshot.save(topology, arguments.output)
        count = len(topology.gpus)
        print(f"wrote {arguments.output}: {count} GPU{'s' * (count != 1)}", file=sys.stderr)


def _select(arguments: argparse.Namespace) -> None:
    """`select`: the selection as a CUDA_VISIBLE_DEVICES value."""
    answers = answer(arguments)
    insist(answers.selection)
    print(_device_list(answers, arguments.form))


def _device_list(answers: Answers, form: str) -> str:
    """The selection as a list. "auto" gives indices only where CUDA surely counts GPUs as the driver does: they are
    identical or CUDA_DEVICE_ORDER=PCI_BUS_ID is set, and none has failed or is in MIG mode."""
    selection, gpus = answers.selection, answers.topology.gpus
    whole = not any(gpu.error is not None or gpu.mig_mode for gpu in gpus)
    safe = answers.topology.identical or answers.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    by_index = form == "index" or (form == "auto" and safe and whole)
    nameless = [uuid for uuid in selection.uuids if uuid.isdecimal()]
    if nameless and not by_index:  # CUDA accepts a list of indices or of UUIDs, not a mix
        by_index = True
        print(
            f"warning: GPU {', '.join(nameless)} has no UUID that could be read, so these are indices: set"
            " CUDA_DEVICE_ORDER=PCI_BUS_ID too, with which CUDA counts as nvidia-smi does",
            file=sys.stderr,
        )
    return ",".join(map(str, selection.indices) if by_index else selection.uuids)


def _env(arguments: argparse.Namespace) -> None:
    """`env`: the variables of the selection, for a shell, Docker or as JSON."""
    from gpu_topology.environment import settings as nccl
    from gpu_topology.environment import shells
    from gpu_topology.host.host import read_host

    answers = answer(arguments)
    selection = answers.selection
    if answers.topology.gpus:
        insist(selection)
    else:  # training on the CPU needs an environment too
        for warning in selection.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    ranks = arguments.ranks or len(selection.indices) or 1
    settings = nccl.environment(
        answers.topology,
        selection,
        read_host(),
        ranks=ranks,
        environ=answers.environ,
        verdict=answers.verdict,
        trainer=False,
    )
    print(shells.as_text(settings, arguments.shell))


_COMMANDS: dict[str, _Module | _Function] = {
    "report": _Module("gpu_topology.report.report", "devices, links, groups, selection and environment, with reasons"),
    "snapshot": _Function(_snapshot, "the topology as JSON, for --from of the other commands", (add_output,)),
    "select": _Function(_select, "the chosen GPUs as a CUDA_VISIBLE_DEVICES value", (add_selection, _add_format)),
    "env": _Function(_env, "the environment for the chosen GPUs", (add_selection, _add_shell)),
    "draw": _Module("gpu_topology.drawing.picture", "a picture of the machine as SVG"),
    "monitor": _Module("gpu_topology.monitor.command", "live use of the GPUs, JSON Lines out, a summary at the end"),
    "verify": _Module("gpu_topology.verify.check", "a real collective over the chosen GPUs, under a time limit"),
}
