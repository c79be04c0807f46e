"""The command line of launch.py: which words are the launcher's, which the program's.

The first positional argument is the user's script and all that follows is the script's, untouched. With
neither script nor module, the words that the launcher does not know are options of the bundled trainer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from launcher import __version__
from launcher.values import OptionError, device_list, endpoint, memory, node_range, one_of, path, whole

__all__ = ["LaunchOptions", "OptionError", "Program", "option_names", "parse"]

LARGEST_RANKS = 1024
POLICIES = ("largest", "fastest", "mixed")
USAGE = "launch.py [--auto | --gpus LIST | --cpu] [options] [SCRIPT | -m MODULE] [arguments of the program]"
EXAMPLES = """\
Plans a distributed run for this machine, shows the plan, and runs it.

examples:
  python launch.py --auto                           train the bundled models on the best GPUs
  python launch.py --auto --epochs 5 --lr 0.05      the same, with options of the trainer
  python launch.py --auto train.py --lr 0.1         your script; all that follows it is its own
  python launch.py --gpus 0,1 -m package.train      your module on two GPUs
  python launch.py --cpu --nproc 2 train.py         two processes on the CPU
  python launch.py --auto --dry-run                 only the plan, and a command to paste

The options of the bundled trainer: python ddp_train/main.py --help
"""


@dataclass(frozen=True)
class Program:
    """What every rank runs. `name`: a path, a module or an executable; empty for the bundled trainer."""

    kind: Literal["trainer", "script", "module", "executable"]
    name: str
    args: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The launcher's own options, checked. None: not given. `min_memory` in bytes, `grace` in seconds."""

    program: Program
    cpu: bool = False
    gpus: tuple[str, ...] = ()
    nproc: int | None = None
    policy: Literal["largest", "fastest", "mixed"] = "largest"
    exclude: tuple[str, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0
    topology: str | None = None
    dry_run: bool = False
    json: bool = False
    nnodes: tuple[int, int] = (1, 1)
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    max_restarts: int = 0
    grace: int = 30
    log_dir: str | None = None
    tee: bool = False


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(message.removeprefix("argument ") + " (see --help)")


def parse(argv: Sequence[str]) -> LaunchOptions:
    """The options and the program on a command line. Errors: OptionError. --help and --version print and exit 0."""
    parser, actions = _parser()
    own, program = _split(argv, actions)
    values = vars(parser.parse_args(own))
    # --auto is what happens anyway; it is there to be written.
    values.pop("auto")
    if values.pop("no_python"):
        program = _as_executable(program)
    options = LaunchOptions(program=program, **values)
    _check(options)
    return options


def option_names() -> tuple[str, ...]:
    """Every spelling of every launcher option, for suggestions."""
    return tuple(_parser()[1])


def _check(options: LaunchOptions) -> None:
    """Refuse combinations that cannot work: a table of (condition, message)."""
    conflicts = (
        (options.topology is not None and not options.dry_run, "--topology plans for another machine: add --dry-run"),
        (options.json and not options.dry_run, "--json prints a plan as JSON: add --dry-run"),
        (options.cpu and bool(options.gpus), "--cpu and --gpus exclude each other: give one"),
        (options.nnodes[1] > 1 and options.rdzv_endpoint is None, "--nnodes above 1 needs --rdzv-endpoint HOST:PORT"),
        (
            options.node_rank is not None and options.node_rank >= options.nnodes[1],
            "--node-rank must be below --nnodes",
        ),
    )
    for wrong, message in conflicts:
        if wrong:
            raise OptionError(message)


def _as_executable(program: Program) -> Program:
    if program.kind != "script":
        raise OptionError("--no-python needs an executable: launch.py --no-python PROGRAM arguments")
    return Program("executable", program.name, program.args)


def _split(argv: Sequence[str], actions: dict[str, argparse.Action]) -> tuple[list[str], Program]:
    """The launcher's own words, each with its value as --name=value, and the program with the rest."""
    own: list[str] = []
    trainer: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        name = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
        if word in ("-m", "--module", "--"):
            return own, _program("script" if word == "--" else "module", words, trainer, word)
        if name in actions:
            own.append(_with_value(name, word, words, actions))
        elif word.startswith("-") and word != "-":
            trainer.append(word)
            if words and not equals and not words[0].startswith("-"):
                trainer.append(words.pop(0))
        else:
            return own, _program("script", [word, *words], trainer, word)
    if script := _script_among(trainer):
        _refuse_options_before(script, trainer)
    return own, Program("trainer", "", tuple(trainer))


def _with_value(name: str, word: str, words: list[str], actions: dict[str, argparse.Action]) -> str:
    """The option as one word; takes its value from `words` where it needs one and has none."""
    _, equals, value = word.partition("=")
    if equals:
        return f"{name}={value}"
    if actions[name].nargs == 0:
        return name
    if not words or words[0].split("=")[0] in actions:
        raise OptionError(f"{name} needs a value (see --help)")
    return f"{name}={words.pop(0)}"


def _program(kind: Literal["script", "module"], words: Sequence[str], trainer: Sequence[str], word: str) -> Program:
    if not words or not words[0]:
        raise OptionError(f"{word!r}: expected the name of a {kind} after it" if not words else f"'': not a {kind}")
    if trainer:
        _refuse_options_before(_script_among(trainer) or words[0], trainer)
    return Program(kind, words[0], tuple(words[1:]))


def _script_among(trainer: Sequence[str]) -> str | None:
    """A script that was taken for the value of an option that the launcher does not know."""
    return next((word for word in trainer if word.endswith(".py") and not word.startswith("-")), None)


def _refuse_options_before(program: str, trainer: Sequence[str]) -> NoReturn:
    raise OptionError(f"{trainer[0]} is not an option of the launcher; options of {program} stand after {program}")


def _parser() -> tuple[_Parser, dict[str, argparse.Action]]:
    """The parser, and its options by each of their spellings."""
    parser = _Parser(
        prog="launch.py",
        usage=USAGE,
        description=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    actions = [*_device_options(parser), *_program_options(parser), *_run_options(parser), *_node_options(parser)]
    return parser, {name: action for action in actions for name in action.option_strings}


def _device_options(parser: _Parser) -> list[argparse.Action]:
    add = parser.add_argument_group("Where to run").add_argument
    return [
        add("--auto", action="store_true", default=False, help="the best set of GPUs, else the CPU [the default]"),
        add("--gpus", "--devices", metavar="LIST", type=device_list("--gpus"), help="these GPUs: indices or UUIDs"),
        add("--cpu", action="store_true", help="the CPU, with gloo"),
        add(
            *("--nproc", "--nproc-per-node"),
            metavar="N",
            type=whole("--nproc", 1, LARGEST_RANKS),
            help="ranks on this node: as many GPUs [all that were selected; on the CPU 2]",
        ),
        add(
            "--policy",
            metavar="|".join(POLICIES),
            type=one_of("--policy", POLICIES),
            help="largest group of equal GPUs, fastest group, or GPUs of several models [largest]",
        ),
        add("--exclude", metavar="LIST", type=device_list("--exclude"), help="GPUs to leave out"),
        add("--allow-busy", action="store_true", help="take GPUs that other processes use, too"),
        add("--min-memory", metavar="SIZE", type=memory("--min-memory"), help="least memory of a GPU, as in 20GB"),
    ]


def _program_options(parser: _Parser) -> list[argparse.Action]:
    group = parser.add_argument_group("What to run")
    # Only for the help: a module is recognised while the words are split.
    group.add_argument("-m", "--module", metavar="MODULE", help="run a module, as python -m does")
    return [
        group.add_argument(
            "--no-python", action="store_true", default=False, help="the program is an executable, not a Python script"
        )
    ]


def _run_options(parser: _Parser) -> list[argparse.Action]:
    add = parser.add_argument_group("Plan and run").add_argument
    version = f"launch.py {__version__} (Python {sys.version.split()[0]})"
    return [
        add("--dry-run", action="store_true", help="show the plan and a command to paste; start nothing"),
        add("--json", action="store_true", help="with --dry-run: the plan as JSON"),
        add(
            "--topology",
            metavar="FILE",
            type=path("--topology"),
            help="with --dry-run: plan for a machine saved by gpu_topology snapshot",
        ),
        add(
            "--max-restarts",
            metavar="N",
            type=whole("--max-restarts", 0, 1000),
            help="start all ranks again after a failure, at most N times [0]",
        ),
        add(
            "--grace",
            metavar="SECONDS",
            type=whole("--grace", 0, 86400),
            help="time that ranks have to end after a failure or signal before they are killed [30]",
        ),
        add(
            "--log-dir",
            metavar="DIR",
            type=path("--log-dir"),
            help="output of the ranks other than 0 [RUN FOLDER/logs; for your own program a temporary folder]",
        ),
        add("--tee", action="store_true", help="show the output of the other ranks as well"),
        add("--version", action="version", version=version, help="print the version"),
        add("-h", "--help", action="help", help="print this help"),
    ]


def _node_options(parser: _Parser) -> list[argparse.Action]:
    add = parser.add_argument_group("Several nodes (run the same command on each)").add_argument
    return [
        add("--nnodes", metavar="N|MIN:MAX", type=node_range, help="number of nodes, or least and most [1]"),
        add(
            "--node-rank",
            metavar="R",
            type=whole("--node-rank", 0, 99_999),
            help="0 on the node of the rendezvous endpoint [found out by its address]",
        ),
        add("--rdzv-endpoint", metavar="HOST:PORT", type=endpoint, help="where the nodes meet: an address of node 0"),
    ]
