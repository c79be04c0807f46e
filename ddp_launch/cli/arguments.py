"""The launcher's options as argparse knows them: names, values, help, in titled groups."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any, NoReturn

from ddp_core import __version__
from ddp_core.cli import CommandLine
from ddp_launch.cli.host_list import exported, host_list, hostfile
from ddp_launch.cli.value_types import (
    BOTH,
    FileName,
    OneOf,
    SomeOf,
    Tee,
    device_list,
    duration,
    host_name,
    local_ranks,
    memory,
    node_range,
    ranks,
    seconds,
    settings,
    tee,
    whole,
)
from ddp_launch.notify.receiver import EVENTS, receiver
from gpu_topology.select.select import POLICIES

LARGEST_RANKS = 1024
# torchrun's modes, and the launcher's own: auto and off.
BINDINGS = ("auto", "off", "node", "socket", "exclusive", "core-complex")
SHELLS = ("bash", "zsh", "fish")
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
Options that torchrun has too take their defaults from its variables, such as PET_NPROC_PER_NODE.
"""


class _PrintCompletion(argparse.Action):
    """Prints the script for a shell and ends the program."""

    def __call__(self, parser: Any, namespace: object, values: Any, option_string: str | None = None) -> NoReturn:
        """Print the script for the shell, and end with status 0."""
        from ddp_launch.cli.completion import script

        print(script(values, make_parser()[1].values()), end="")
        sys.exit(0)


def make_parser() -> tuple[CommandLine, dict[str, argparse.Action]]:
    """The parser, and its options by each of their spellings."""
    parser = CommandLine(
        prog="launch.py",
        usage=USAGE,
        description=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = (
        _device_options,
        _program_options,
        _plan_options,
        _run_options,
        _output_options,
        _host_options,
        _node_options,
        _about_options,
    )
    actions = [action for group in groups for action in group(parser)]
    return parser, {name: action for action in actions for name in action.option_strings}


def _device_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    add = parser.add_argument_group("Where to run").add_argument
    return [
        add("--auto", action="store_true", default=False, help="the best set of GPUs, else the CPU [the default]"),
        add("--gpus", "--devices", metavar="LIST", type=device_list("--gpus"), help="these GPUs: indices or UUIDs"),
        add("--cpu", action="store_true", help="the CPU, with gloo"),
        add(
            *("--nproc", "--nproc-per-node"),
            metavar="N",
            type=ranks("--nproc", LARGEST_RANKS),
            help="ranks on this node: as many GPUs [all that were selected; on the CPU 2]",
        ),
        add(
            "--policy",
            metavar="|".join(POLICIES),
            type=OneOf("--policy", POLICIES),
            help="largest group of equal GPUs, fastest group, or GPUs of several models [largest]",
        ),
        add("--exclude", metavar="LIST", type=device_list("--exclude"), help="GPUs to leave out [none]"),
        add("--allow-busy", action="store_true", help="take GPUs that others use or have claimed, too"),
        add(
            "--wait",
            nargs="?",
            const=math.inf,
            metavar="TIME",
            type=duration("--wait"),
            help="while the GPUs asked for are in use, wait for them, at most TIME, as in 30m or 2h [no wait]",
        ),
        add("--min-memory", metavar="SIZE", type=memory("--min-memory"), help="least memory of a GPU, as in 20GB [0]"),
    ]


def _program_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    group = parser.add_argument_group("What to run")
    # Only for the help: cli/options.py recognizes a module while it splits the command line.
    group.add_argument("-m", "--module", metavar="MODULE", help="run a module, as python -m does")
    return [
        group.add_argument(
            "--no-python", action="store_true", default=False, help="the program is an executable, not a Python script"
        )
    ]


def _plan_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    add = parser.add_argument_group("Plan and checks").add_argument
    return [
        add("--dry-run", action="store_true", help="show the plan and a command to paste; start nothing"),
        add(
            "--doctor", action="store_true", help="check installation and machine, train two epochs; start nothing else"
        ),
        add(
            "--estimate",
            action="store_true",
            help="the bundled trainer: memory by part and time of an epoch, from half a minute of it",
        ),
        add(
            "--scaling",
            nargs="?",
            const=5.0,
            metavar="SECONDS",
            type=seconds("--scaling", 1, 600),
            help="run the program on 1, 2, 4 ... ranks for so long each, and report where the time goes and how many"
            " ranks to use; for a program that may be started several times and ended at any step [5]",
        ),
        add("--json", action="store_true", help="with --dry-run, --doctor or --scaling: the answer as JSON"),
        add(
            "--topology",
            metavar="FILE",
            type=FileName("--topology"),
            help="with --dry-run: plan for a machine saved by gpu_topology snapshot",
        ),
        add(
            "--preflight",
            action=argparse.BooleanOptionalAction,
            help="check copies and an all-reduce between the GPUs first [only where the plan says: needs verify]",
        ),
    ]


def _run_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    add = parser.add_argument_group("The run").add_argument
    return [
        add(
            "--max-restarts",
            metavar="N",
            type=whole("--max-restarts", 0, 1000),
            help="start all ranks again after a failure, at most N times [0; 3 with --nnodes MIN:MAX]",
        ),
        add(
            *("--grace", "--shutdown-timeout"),
            metavar="SECONDS",
            type=whole("--grace", 0, 86400),
            help="time that ranks have to end after a failure or signal before they are killed"
            " [30; under Slurm and Kubernetes 25; with --hosts 7]",
        ),
        add(
            "--numa-binding",
            metavar="|".join(BINDINGS),
            type=OneOf("--numa-binding", BINDINGS),
            help="bind ranks to the CPUs beside their GPUs [auto: where that works and leaves none idle]",
        ),
        add(
            "--stall-report",
            metavar="SECONDS",
            type=whole("--stall-report", 0, 604_800),
            help="report where every rank is when one makes no progress in its collectives for so long; 0 is never"
            " [120]",
        ),
        add(
            "--stall-kill",
            metavar="SECONDS",
            type=whole("--stall-kill", 0, 604_800),
            help="end the run when a rank makes no progress for so long; 0 is never [0]",
        ),
        add(
            "--debug-rank",
            metavar="RANK",
            type=whole("--debug-rank", 0, 1_000_000),
            help="this rank waits for a debugger before it starts, with debugpy at port 5678 of this machine [none]",
        ),
        add(
            "--virtual-local-rank",
            action="store_true",
            help="each rank sees its own GPU alone, and has LOCAL_RANK=0 [where the GPUs are MIG slices]",
        ),
    ]


def _output_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    add = parser.add_argument_group("Output and logs").add_argument
    return [
        add(
            "--log-dir",
            metavar="DIR",
            type=FileName("--log-dir"),
            help="output of every rank, in files [RUN FOLDER/logs; for your own program a temporary folder]",
        ),
        add(
            "--log-size",
            metavar="SIZE",
            type=memory("--log-size"),
            help="keep only the head and the tail of longer output, for each rank and stream; 0 keeps all [32MiB]",
        ),
        add(
            "--json-events",
            metavar="FILE",
            type=FileName("--json-events"),
            help="write what happens as JSON Lines, see docs/events.md; - is standard output",
        ),
        add(
            "--notify",
            metavar="URL",
            action="append",
            type=receiver,
            help="send a message there when the run ends, fails, stalls or restarts: Slack, Discord, ntfy, else JSON;"
            " may be repeated [DDP_NOTIFY, which other users cannot see in ps]",
        ),
        add(
            "--notify-on",
            metavar="LIST",
            type=SomeOf("--notify-on", EVENTS),
            help=f"events to send messages about: {', '.join(EVENTS)} [all but start]",
        ),
        add(
            *("-t", "--tee"),
            nargs="?",
            const=Tee(BOTH),
            metavar="RANKS",
            type=tee,
            help="show the output of other ranks than the first, too: all, or as in 1,2 [none]",
        ),
        add(
            "--local-ranks-filter",
            metavar="LIST",
            type=local_ranks,
            help="show these ranks of the node and no other on the screen, as in 0,1 [the first, and those of --tee]",
        ),
        add(
            "--log-line-prefix-template",
            metavar="TEXT",
            help="prefix of a rank's lines on the screen, as in '[${rank}] ' [none for the first rank,"
            " others [rank N]]",
        ),
        add("-q", "--quiet", action="store_true", help="one line about the run in place of the plan"),
    ]


def _about_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    add = parser.add_argument_group("About").add_argument
    version = f"launch.py {__version__} (Python {sys.version.split()[0]})"
    return [
        add(
            *("--completion", "--print-completion"),
            metavar="|".join(SHELLS),
            type=OneOf("--completion", SHELLS),
            action=_PrintCompletion,
            help="print a completion script, as in: source <(python launch.py --completion bash)",
        ),
        add("--version", action="version", version=version, help="print the version"),
        add("-h", "--help", action="help", help="print this help"),
    ]


def _host_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options for several hosts over ssh."""
    add = parser.add_argument_group("Several hosts over ssh (run one command on one of them)").add_argument
    return [
        add(
            *("-H", "--hosts"),
            metavar="LIST",
            type=host_list,
            help="start on these hosts, as in gpu01,gpu02 or gpu01:4,me@gpu02:4 with ranks; keys only, no passwords",
        ),
        add(
            "--hostfile",
            metavar="FILE",
            type=hostfile,
            help="the hosts in a file, a line each: HOST, or HOST slots=RANKS as DeepSpeed and Open MPI have it",
        ),
        add(
            "--export",
            action="append",
            metavar="NAME,...",
            type=exported,
            help="variables that the ranks on all hosts get, with their values here, or NAME=VALUE; may be repeated"
            " [none]",
        ),
        add(
            "--sync",
            metavar="DIR",
            type=FileName("--sync"),
            help="copy this folder to the same path on the other hosts first, with rsync [none: a shared disk]",
        ),
        add(
            "--check-hosts",
            action="store_true",
            help="check the hosts and measure the network between them, no more; --preflight does it before a run",
        ),
    ]


def _node_options(parser: CommandLine) -> list[argparse.Action]:
    """Add the options of this section of the help to the parser, and return them."""
    add = parser.add_argument_group("Several nodes (run the same command on each)").add_argument
    return [
        add(
            "--nnodes",
            metavar="N|MIN:MAX",
            type=node_range,
            help="number of nodes, or least and most [what Slurm, mpirun or Kubernetes says; else 1]",
        ),
        add(
            "--node-rank",
            metavar="R",
            type=whole("--node-rank", 0, 99_999),
            help="0 on the node of the rendezvous endpoint [found out by its address]",
        ),
        add("--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet: an address of node 0"),
        add("--rdzv-id", metavar="NAME", type=FileName("--rdzv-id"), help="name of the run, the same on each node"),
        add(
            "--rdzv-timeout",
            metavar="SECONDS",
            type=whole("--rdzv-timeout", 1, 604_800),
            help="how long to wait for the other nodes [600]",
        ),
        add(
            "--rdzv-conf",
            metavar="KEY=VALUE,...",
            type=settings,
            help="torchrun's settings for several nodes: join_timeout is --rdzv-timeout, last_call_timeout the"
            " seconds to wait for more than the least number of nodes",
        ),
        add(
            "--master-addr", metavar="HOST", type=host_name, help="another way to give the endpoint, with --master-port"
        ),
        add(
            "--master-port",
            metavar="PORT",
            type=whole("--master-port", 1, 65_535),
            help="with --master-addr [29500]",
        ),
    ]
