"""`python -m gpu_topology report | snapshot | select | env`.

Data goes to stdout, talk to stderr. A user's mistake is one line beginning `error:` and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpu_topology import nccl, snapshot
from gpu_topology.host import Host, read_host
from gpu_topology.nccl import Setting
from gpu_topology.selection import POLICIES, Selection, SelectionError, SelectionRequest, eligible, groups, select
from gpu_topology.topology import Topology, TopologyError


class _Parser(argparse.ArgumentParser):
    """argparse with the project's error contract: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise TopologyError(message, f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for a user's mistake."""
    try:
        arguments = _parser().parse_args(_with_command(sys.argv[1:] if argv is None else list(argv)))
        arguments.run(arguments)
        sys.stdout.flush()
    except TopologyError as error:
        hint = f" (see {error.remedy})" if error.remedy and error.remedy.endswith("--help") else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `report | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _with_command(argv: list[str]) -> list[str]:
    """Without a command, `report`: what one expects after nvidia-smi."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        return ["report", *argv]
    return argv


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gpu_topology",
        description="What is in this machine, which GPUs belong together, and what CUDA and NCCL should be told.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, about, options in _COMMANDS:
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("--from", dest="source", metavar="FILE", help="a saved snapshot instead of this machine")
        for add in options:
            add(command)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="write here instead of stdout")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", "--nproc", type=int, metavar="N", help="how many GPUs (default: all of the group)")
    parser.add_argument("--policy", choices=POLICIES, default="largest", help="which group (default: largest)")
    parser.add_argument(
        "--gpus", "--devices", type=_names, default=(), metavar="LIST", help="exactly these: 0,2 or UUIDs"
    )
    parser.add_argument("--exclude", type=_names, default=(), metavar="LIST", help="never these: indices or UUIDs")
    parser.add_argument("--allow-busy", action="store_true", help="also GPUs that others use")
    parser.add_argument(
        "--min-memory", type=_memory, default=0, metavar="SIZE", help="each GPU has at least 24G, 800M ..."
    )


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--as",
        dest="form",
        choices=("auto", "index", "uuid"),
        default="auto",
        help="auto: indices where CUDA counts as nvidia-smi does, UUIDs on a machine of unlike GPUs",
    )


def _add_shell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shell", choices=tuple(_SHELLS), default="sh", help='sh: eval "$(... env)" (default)')
    parser.add_argument("--ranks", type=_positive, metavar="N", help="processes on this machine (default: one per GPU)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _memory(text: str) -> int:
    """Bytes from "24G", "800M", "24GiB"; a bare number is GiB, as GPU memory is spoken of."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(number[-1:])
    try:
        size = float(number if unit is None else number[:-1]) * (unit or 2**30)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 24G or 800M")
    return int(size)


@dataclass(frozen=True, slots=True)
class _Answers:
    """What every command works on."""

    topology: Topology
    request: SelectionRequest
    selection: Selection
    environ: Mapping[str, str]


def _read(arguments: argparse.Namespace) -> Topology:
    if arguments.source is not None:
        return snapshot.load(arguments.source)
    from gpu_topology.nvml import read_or_explain

    return read_or_explain()


def _answer(arguments: argparse.Namespace) -> _Answers:
    topology = _read(arguments)
    environ = os.environ
    request = SelectionRequest(
        count=arguments.count,
        policy=arguments.policy,
        gpus=arguments.gpus,
        exclude=arguments.exclude,
        allow_busy=arguments.allow_busy,
        min_memory=arguments.min_memory,
        visible=environ.get("CUDA_VISIBLE_DEVICES"),
        device_order=environ.get("CUDA_DEVICE_ORDER"),
    )
    return _Answers(topology, request, select(topology, request), environ)


def _settings(answers: _Answers, host: Host, ranks: int | None) -> tuple[Setting, ...]:
    selection = answers.selection
    ranks = ranks or len(selection.indices) or 1
    return nccl.environment(answers.topology, selection, host, ranks=ranks, environ=answers.environ)


def _report(arguments: argparse.Namespace) -> None:
    from gpu_topology import report

    answers, host = _answer(arguments), read_host()
    found = groups(answers.topology, eligible(answers.topology, answers.request), answers.request.policy)
    parts = (answers.topology, host, answers.selection, found, _settings(answers, host, None))
    if arguments.json:
        print(json.dumps(report.to_json(*parts), indent=1))
        return
    from rich.console import Console

    report.render(Console(highlight=False), *parts)


def _snapshot(arguments: argparse.Namespace) -> None:
    topology = _read(arguments)
    if arguments.output is None:
        print(json.dumps(snapshot.to_dict(topology), indent=1))
    else:
        snapshot.save(topology, arguments.output)
        print(f"wrote {arguments.output}: {len(topology.gpus)} GPUs", file=sys.stderr)


def _select(arguments: argparse.Namespace) -> None:
    answers = _answer(arguments)
    _talk(answers.selection)
    print(_device_list(answers, arguments.form))


def _device_list(answers: _Answers, form: str) -> str:
    """Indices only where CUDA is sure to count them as the driver does: like GPUs, or CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    selection = answers.selection
    like = len({gpu.name for gpu in answers.topology.gpus}) == 1
    safe = like or answers.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    mig = any(uuid.startswith("MIG-") for uuid in selection.uuids)
    by_index = form == "index" or (form == "auto" and safe and not mig)
    return ",".join(map(str, selection.indices) if by_index else selection.uuids)


def _env(arguments: argparse.Namespace) -> None:
    answers = _answer(arguments)
    for warning in answers.selection.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    settings = _settings(answers, read_host(), arguments.ranks)
    print(_SHELLS[arguments.shell](settings))


def _talk(selection: Selection) -> None:
    """An empty selection is an error where a value is asked for; warnings go to stderr."""
    if not selection.indices:
        raise SelectionError(selection.reason)
    for warning in selection.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _shell_lines(settings: Sequence[Setting], pattern: str) -> str:
    lines = []
    for setting in settings:
        line = pattern.format(name=setting.name, value=shlex.quote(setting.value))
        if setting.kept:
            lines.append(_comment(f"kept: {line}  # {setting.reason}"))
        else:
            lines.append(f"{line}  {_comment(setting.reason)}")
    return "\n".join(lines)


def _comment(text: str) -> str:
    """A shell comment. A value of the user's may hold a line break, and what follows must not be run."""
    return "# " + " ".join(text.splitlines())


def _docker(settings: Sequence[Setting]) -> str:
    """Arguments for `docker run`, on one line; a container inherits nothing, so the user's own values go along."""
    return " ".join(f"-e {shlex.quote(f'{setting.name}={setting.value}')}" for setting in settings)


_SHELLS = {
    "sh": lambda settings: _shell_lines(settings, "export {name}={value}"),
    "fish": lambda settings: _shell_lines(settings, "set -gx {name} {value}"),
    "json": lambda settings: json.dumps(
        [{"name": s.name, "value": s.value, "reason": s.reason, "kept": s.kept} for s in settings], indent=1
    ),
    "docker": _docker,
}

_COMMANDS = (
    ("report", _report, "devices, links, groups, selection and environment, with reasons", (_add_json, _add_selection)),
    ("snapshot", _snapshot, "the topology as JSON, which every command takes back with --from", (_add_output,)),
    ("select", _select, "the chosen GPUs as a CUDA_VISIBLE_DEVICES value", (_add_selection, _add_format)),
    ("env", _env, "the environment for the chosen GPUs", (_add_selection, _add_shell)),
)
