"""The command line of launch.py: which words are the launcher's, which the program's.

The first positional argument is the user's script and all that follows is the script's, untouched. With
neither script nor module, the words that the launcher does not know are options of the bundled trainer.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from ddp_core.cli import CommandLine
from ddp_core.errors import OptionError
from ddp_launch.cli import torchrun_compat
from ddp_launch.cli.arguments import make_parser
from ddp_launch.cli.host_list import Host
from ddp_launch.cli.value_types import AS_MANY_AS_CPUS, AS_MANY_AS_GPUS, LOG_BYTES, NO_TEE, Tee
from ddp_launch.notify.receiver import DEFAULT_EVENTS, VARIABLE, Receiver, receivers
from gpu_topology.select.select import Policy, SelectionRequest
from gpu_topology.topology import Topology

HOST_OPTIONS = (
    *("-H", "--hosts", "--hostfile", "--export", "--sync", "--check-hosts", "--rdzv-endpoint", "--rdzv-conf"),
    *("--json", "--dry-run", "--estimate", "--notify", "--notify-on"),
)
"""Options that are not passed on to the launchers on the hosts."""
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Program:
    """What every rank runs. `name`: a path, a module or an executable; empty for the bundled trainer."""

    kind: Literal["trainer", "script", "module", "executable"]
    name: str
    args: tuple[str, ...]

    @property
    def title(self) -> str:
        """The program's short name, for messages to the user."""
        return Path(self.name).name if self.kind != "trainer" else "ddp_train"


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The launcher's own options, checked; None: not given.

    `needs_gpu`: whether --nproc is torchrun's word `gpu`, as many ranks as GPUs; `min_memory` and `log_size` in bytes;
    `grace`, `rdzv_timeout`, `wait`, `scaling` and `stall_...` in seconds; `notes`: what the user should know about the
    options; `hosts`: the hosts of a run over ssh; `words`: the options for the launcher on each host.
    """

    program: Program
    cpu: bool = False
    gpus: tuple[str, ...] = ()
    nproc: int | None = None
    needs_gpu: bool = False
    policy: Policy = "largest"
    exclude: tuple[str, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0
    topology: str | None = None
    dry_run: bool = False
    doctor: bool = False
    estimate: bool = False
    scaling: float | None = None
    json: bool = False
    preflight: bool | None = None
    wait: float | None = None
    nnodes: tuple[int, int] | None = None
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    rdzv_timeout: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    max_restarts: int | None = None
    grace: int | None = None
    log_dir: str | None = None
    json_events: str | None = None
    tee: Tee = NO_TEE
    log_size: int = LOG_BYTES
    numa_binding: str = "auto"
    stall_report: int = 120
    stall_kill: int = 0
    virtual_local_rank: bool = False
    quiet: bool = False
    last_call: int | None = None
    debug_rank: int | None = None
    hosts: tuple[Host, ...] = ()
    export: tuple[str, ...] = ()
    sync: str | None = None
    check_hosts: bool = False
    notify: tuple[Receiver, ...] = ()
    notify_on: frozenset[str] = DEFAULT_EVENTS
    words: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = ()

    def request(self, topology: Topology) -> SelectionRequest:
        """The request that these options make for the selection of GPUs."""
        return SelectionRequest(
            # Without a GPU the ranks run on the CPU, as many as are asked for.
            count=self.nproc if topology.gpus else None,
            policy=self.policy,
            gpus=self.gpus,
            exclude=self.exclude,
            allow_busy=self.allow_busy,
            min_memory=self.min_memory,
        )


def parse(argv: Sequence[str], environ: Mapping[str, str] = NO_VARIABLES) -> LaunchOptions:
    """The options and the program on a command line. `environ`: has defaults in torchrun's PET_ variables.

    Errors: OptionError. --help, --version and --completion print and exit 0.
    """
    parser, actions = make_parser()
    own, program, notes = _split_as_torchrun(argv, actions)
    try:
        given = vars(parser.parse_args(own))
    except OptionError as error:
        raise OptionError(_as_typed(str(error), own, actions)) from None
    values = given | _from_environment(parser, own, actions, environ)
    # --auto is the default; it exists so that it can be written.
    values.pop("auto")
    if values.pop("no_python"):
        program = _as_executable(program)
    program = _as_launched(program, argv, notes)
    _settle_hosts(values)
    values["notify"] = tuple(values.get("notify") or receivers(environ.get(VARIABLE, "")))
    torchrun_compat.settle(values, notes, environ)
    only, prefix = values.pop("local_ranks_filter", None), values.pop("log_line_prefix_template", None)
    values["tee"] = replace(values.get("tee", NO_TEE), only=only, prefix=prefix)
    if values.get("nproc") == AS_MANY_AS_CPUS:
        values |= {"nproc": len(os.sched_getaffinity(0)), "cpu": True}
    elif values.get("nproc") == AS_MANY_AS_GPUS:
        values |= {"nproc": None, "needs_gpu": not values.get("cpu", False)}
    options = LaunchOptions(program=program, notes=tuple(notes), words=_words_of_a_host(own), **values)
    _check(options)
    if options.estimate:
        options = replace(options, program=replace(program, args=(*program.args, "--tune", "estimate")))
    return options


def _settle_hosts(values: dict[str, Any]) -> None:
    """Take the hosts from --hosts or --hostfile, and join the parts of all --export options. Errors: OptionError."""
    if (from_file := values.pop("hostfile", None)) is not None:
        if "hosts" in values:
            raise OptionError("--hosts and --hostfile exclude each other: give one")
        values["hosts"] = from_file
    values["export"] = tuple(part for parts in values.pop("export", ()) for part in parts)


def _words_of_a_host(own: Sequence[str]) -> tuple[str, ...]:
    """The launcher's options without HOST_OPTIONS."""
    return tuple(word for word in own if word.partition("=")[0] not in HOST_OPTIONS)


def words_of(program: Program) -> tuple[str, ...]:
    """The program as written on a command line, after the launcher's options."""
    match program.kind:
        case "trainer":
            return program.args
        case "module":
            return ("-m", program.name, *program.args)
        case _:
            return ("--", program.name, *program.args)


def option_names() -> tuple[str, ...]:
    """Every spelling of every launcher option, for suggestions."""
    return tuple(make_parser()[1])


def _as_typed(message: str, own: Sequence[str], actions: Mapping[str, argparse.Action]) -> str:
    """The message with the option as the user spelled it, since an option has several names."""
    named, _, rest = message.partition(" ")
    for typed in (word.partition("=")[0] for word in own):
        if named in actions and named in actions[typed].option_strings:
            return f"{typed} {rest}"
    return message


def _from_environment(
    parser: CommandLine, own: Sequence[str], actions: Mapping[str, argparse.Action], environ: Mapping[str, str]
) -> dict[str, Any]:
    """Values of PET_ variables for options that are not on the command line."""
    given = {name for word in own for name in actions[word.partition("=")[0]].option_strings}
    values = {}
    for variable, value, word in torchrun_compat.defaults(environ, given):
        try:
            found = vars(parser.parse_args([word]))
        except OptionError as error:
            expected = str(error).rpartition("expected ")[2]
            raise OptionError(f"{variable}={value[:200]!r} in the environment: expected {expected}") from None
        name = actions[word.partition("=")[0]].dest
        values[name] = found[name]
    return values


def _check(options: LaunchOptions) -> None:
    """Refuse combinations that cannot work: a table of (condition, message)."""
    conflicts = (
        (options.topology is not None and not options.dry_run, "--topology plans for another machine: add --dry-run"),
        (
            options.json
            and not (options.dry_run or options.doctor or options.check_hosts or options.scaling is not None),
            "--json prints a plan as JSON: add --dry-run (or --doctor, --scaling)",
        ),
        (
            options.json_events is not None and (options.dry_run or options.doctor),
            "--json-events records a run, which --dry-run and --doctor do not start",
        ),
        (options.dry_run and options.doctor, "--dry-run and --doctor exclude each other: give one"),
        (
            options.estimate and options.program.kind != "trainer",
            "--estimate measures the bundled trainer: it takes no program",
        ),
        (
            options.debug_rank is not None and options.program.kind == "executable",
            "--debug-rank starts a rank under Python's debugger: it needs a Python program",
        ),
        (options.cpu and bool(options.gpus), "--cpu and --gpus exclude each other: give one"),
        (options.cpu and options.wait is not None, "--wait waits for GPUs, which --cpu does not use: give one"),
        (
            options.wait is not None and options.allow_busy,
            "--wait waits for GPUs that are in use, --allow-busy takes them: give one",
        ),
        *_conflicts_of_hosts(options),
        *_conflicts_of_scaling(options),
        (
            options.rdzv_endpoint is not None and options.master_addr is not None,
            "--rdzv-endpoint and --master-addr name the same thing: give one",
        ),
        (
            options.master_port is not None and options.master_addr is None,
            "--master-port belongs to --master-addr, which is not given",
        ),
    )
    for wrong, message in conflicts:
        if wrong:
            raise OptionError(message)


def _conflicts_of_hosts(options: LaunchOptions) -> tuple[tuple[bool, str], ...]:
    """Conflicts of --hosts with other options, and options that need --hosts."""
    needs = "--export" if options.export else "--check-hosts" if options.check_hosts else "--sync"
    return (
        (
            bool(options.hosts) and (options.doctor or options.topology is not None),
            f"--hosts starts a run: {'--doctor' if options.doctor else '--topology'} looks at one machine",
        ),
        (
            bool(options.hosts)
            and any(one is not None for one in (options.nnodes, options.node_rank, options.master_addr)),
            "--hosts says how many nodes there are and which is which: leave out --nnodes, --node-rank, --master-addr",
        ),
        (
            not options.hosts and (options.sync is not None or bool(options.export) or options.check_hosts),
            f"{needs} belongs to --hosts or --hostfile, which are not given",
        ),
    )


def _conflicts_of_scaling(options: LaunchOptions) -> tuple[tuple[bool, str], ...]:
    """Conflicts of --scaling, which starts several short runs, with other options."""
    excluded = {
        "--dry-run": options.dry_run,
        "--doctor": options.doctor,
        "--estimate": options.estimate,
        "--json-events": options.json_events is not None,
        "--log-dir": options.log_dir is not None,
        "--debug-rank": options.debug_rank is not None,
        "--wait": options.wait is not None,
        "--hosts": bool(options.hosts),
    }
    given = next((name for name, there in excluded.items() if there), None)
    return ((options.scaling is not None and given is not None, f"--scaling and {given} exclude each other: give one"),)


def _as_executable(program: Program) -> Program:
    """The program of --no-python. Errors: OptionError for a module or the bundled trainer."""
    if program.kind != "script":
        raise OptionError("--no-python needs an executable: launch.py --no-python PROGRAM arguments")
    return Program("executable", program.name, program.args)


def _as_launched(program: Program, argv: Sequence[str], notes: list[str]) -> Program:
    """The program with the argument that a pasted torch.distributed.launch passes to it, if any."""
    if program.kind != "script":
        return program
    added = torchrun_compat.arguments_of_launch(argv[: -1 - len(program.args)], program.name, notes)
    return replace(program, args=(*added, *program.args))


def _split_as_torchrun(
    argv: Sequence[str], actions: Mapping[str, argparse.Action]
) -> tuple[list[str], Program, list[str]]:
    """As `_split`, with the notes. Options before a user's program may be abbreviated, as with torchrun."""
    notes: list[str] = []
    try:
        return *_split(argv, actions, notes), notes
    except OptionError:
        with suppress(OptionError):
            own, program = _split(argv, actions, notes := [], abbreviated=True)
            if program.kind != "trainer":
                return own, program, notes
        raise


def _split(
    argv: Sequence[str], actions: Mapping[str, argparse.Action], notes: list[str], *, abbreviated: bool = False
) -> tuple[list[str], Program]:
    """The launcher's own words, each with its value as --name=value, and the program with the rest."""
    own: list[str] = []
    trainer: list[str] = []
    words = list(argv)
    kind: Literal["script", "module"] = "script"
    while words:
        word = words.pop(0)
        if torchrun_compat.is_command(word, words):
            continue
        name, equals, value = torchrun_compat.spelled(word, actions, abbreviated=abbreviated)
        if word == "--":
            return own, _program(kind, words, trainer, word)
        if name in ("-m", "--module"):
            if equals or not words or not words[0].startswith("-"):
                return own, _program("module", [value, *words] if equals else words, trainer, word)
            # As with torchrun, -m may be a separate word before other options.
            kind = "module"
        elif name in actions:
            own.append(_with_value(name, equals, value, words, actions))
        elif name in torchrun_compat.NO_EFFECT:
            if not equals and name not in torchrun_compat.WITHOUT_VALUE:
                value = words.pop(0) if words else ""
            notes.append(torchrun_compat.no_effect(name, value))
        elif word.startswith("-") and word != "-":
            torchrun_compat.refuse(name)
            trainer.append(word)
            if words and not equals and not words[0].startswith("-"):
                trainer.append(words.pop(0))
        else:
            return own, _program(kind, [word, *words], trainer, word)
    if kind == "module":
        raise OptionError("'-m': expected the name of a module after it")
    if script := _script_among(trainer):
        _refuse_options_before(script, trainer)
    return own, Program("trainer", "", tuple(trainer))


def _with_value(name: str, equals: str, value: str, words: list[str], actions: Mapping[str, argparse.Action]) -> str:
    """The option as one word; takes its value from `words` where it needs one and has none."""
    if equals:
        return f"{name}={value}"
    if actions[name].nargs == 0:
        return name
    if actions[name].nargs == "?":
        meant = words and (_fits(actions[name], words[0]) or _is_a_bad_number(words[0]))
        return f"{name}={words.pop(0)}" if meant else name
    if not words or words[0].split("=")[0] in actions:
        raise OptionError(f"{name} needs a value (see --help)")
    return f"{name}={words.pop(0)}"


def _fits(action: argparse.Action, word: str) -> bool:
    """Whether the word is the optional value of this option, and not a separate word of the command line."""
    try:
        return callable(action.type) and action.type(word) is not None
    except OptionError:
        return False


def _is_a_bad_number(word: str) -> bool:
    """Whether a word begins like a number and is no file: not a script, but a value that is out of range."""
    return word[:1].isdigit() and not Path(word).exists()


def _program(kind: Literal["script", "module"], words: Sequence[str], trainer: Sequence[str], word: str) -> Program:
    """A script or module with its arguments. Errors: OptionError."""
    if not words or not words[0]:
        raise OptionError(f"{word!r}: expected the name of a {kind} after it" if not words else f"'': not a {kind}")
    if trainer:
        _refuse_options_before(_script_among(trainer) or words[0], trainer)
    return Program(kind, words[0], tuple(words[1:]))


def _script_among(trainer: Sequence[str]) -> str | None:
    """A script that was taken for the value of an option that the launcher does not know."""
    return next((word for word in trainer if word.endswith(".py") and not word.startswith("-")), None)


def _refuse_options_before(program: str, trainer: Sequence[str]) -> NoReturn:
    """Errors: OptionError for an unknown option in front of the user's program."""
    raise OptionError(f"{trainer[0]} is not an option of the launcher; options of {program} stand after {program}")
