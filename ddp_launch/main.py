"""One command that looks at the machine, plans a distributed run, shows the plan, and runs it.

    python launch.py --auto                    the bundled trainer on the best GPUs
    python launch.py --auto train.py --lr 0.1  your script
    python launch.py --auto --dry-run          the plan alone

Exit status: 0; 2 for a mistake found before anything started; else the status of the rank that failed first
(128 + n for signal n); 130 after Ctrl-C; 143 after SIGTERM. torch is imported only once the plan is on the screen.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ddp_core import missing_packages
from ddp_core.cli import cannot_write, discard_stdout, prepare_output, print_json
from ddp_core.errors import PreflightError, UserError, line_of
from ddp_launch.cli.options import LaunchOptions, parse
from ddp_launch.cluster import over_ssh
from ddp_launch.cluster.cluster import find_cluster
from ddp_launch.events.jsonl import EventLog
from ddp_launch.notify.notifier import Notifier
from ddp_launch.notify.receiver import VARIABLE as NOTIFY
from ddp_launch.plan.plan import LaunchPlan
from ddp_launch.run.gpu_claims import Claims, runtime_folder
from ddp_launch.run.planner import NextAttempt, Planner
from ddp_launch.run.program_check import check_packages, check_program

if TYPE_CHECKING:
    from rich.console import Console

    from ddp_launch.hosts.seat import Seat
    from ddp_launch.run.folders import Folders
    from ddp_launch.run.run_energy import RunEnergy

COMMANDS = {
    "compare": "ddp_train.compare.command",
    "notify": "ddp_launch.notify.command",
    "report": "ddp_train.report.command",
    "stacks": "ddp_launch.stall.command",
}
"""First word of a command line that starts no run -> the module with the `run` function that takes the other words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Plan and run what the command line says; the exit status."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare_output()
    try:
        words = [*(sys.argv[1:] if argv is None else argv)]
        if words and words[0] in COMMANDS and not Path(words[0]).is_file():
            return _shown(partial(import_module(COMMANDS[words[0]]).run, words[1:]))
        options = parse(words, os.environ)
        # The receivers' addresses are secret, and the ranks and launchers below this one do not need them.
        os.environ.pop(NOTIFY, None)
        if options.doctor:
            from ddp_launch.doctor import doctor

            return _shown(partial(doctor.run, options))
        if options.hosts:
            from ddp_launch.hosts import launch

            return launch.run(options)
        if options.scaling is not None:
            return _measure_scaling(options)
        return _launch(options, _seat())
    except UserError as error:
        if error.speaks:
            print(line_of(error), file=sys.stderr)
        return error.status
    except ModuleNotFoundError as error:
        if (mistake := missing_packages.explained(error)) is None:
            raise
        print(line_of(mistake), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the plan has seen enough (launch.py --dry-run | head).
        discard_stdout()
        return 0


def _seat() -> Seat | None:
    """The place of this launcher in a run over ssh; None where it was started by hand, or by a cluster's manager."""
    if over_ssh.VARIABLE not in os.environ:
        return None
    from ddp_launch.hosts.seat import Seat

    return Seat.taken(os.environ)


def _launch(options: LaunchOptions, seat: Seat | None) -> int:
    """Plan and run on this machine; the exit status. Errors: UserError."""
    options = options if seat is None else seat.adapted(options)
    try:
        with (
            _notifier(options) as notifier,
            EventLog(options.json_events, notifier.hear if seat is None else seat.hear) as events,
            Claims(runtime_folder(os.environ)) as claims,
        ):
            options = replace(options, program=check_program(options.program))
            planner = Planner(options, claims)
            os.environ.pop(over_ssh.VARIABLE, None)
            plan = planner.first()
            if seat is not None:
                seat.meet(plan)
            if options.dry_run:
                return _shown(partial(_print, plan, options)) if seat is None else 0
            return _run(plan, planner, options, events, seat)
    except UserError as error:
        if seat is None:
            raise
        seat.refused(line_of(error).removeprefix("error: "), error.status)
        return error.status


def _notifier(options: LaunchOptions) -> Notifier:
    """The sender of messages about the run. Where nodes were started one by one, only the first node sends any."""
    silent = options.dry_run or not options.notify
    with suppress(UserError):  # the planner raises it again
        silent = silent or find_cluster(options, os.environ).node_rank not in (None, 0)
    return Notifier(() if silent else options.notify, options.notify_on, options.program.title)


def _measure_scaling(options: LaunchOptions) -> int:
    """Run the program briefly on 1, 2, 4 ... ranks and report the scaling; the exit status. Errors: UserError."""
    missing_packages.need("torch", "rich", "psutil")
    from ddp_launch.scaling import command

    with Claims(runtime_folder(os.environ)) as claims:
        plan = Planner(replace(options, program=check_program(options.program), dry_run=True), claims).first()
    return command.run(options, plan, lambda trial: _launch(trial, None))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Handler of SIGTERM until the ranks start: exit with status 128 + the signal's number."""
    sys.exit(128 + number)


def _shown(show: Callable[[], int]) -> int:
    """The status of a function that prints to stdout: 2, and one line, where stdout is a file on a full disk."""
    try:
        status = show()
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename is not None:
            raise
        return cannot_write(error)
    return status


def _print(plan: LaunchPlan, options: LaunchOptions) -> int:
    """Print the plan as JSON, as a table, or as text where rich is missing; status 0."""
    from ddp_launch.plan.plain import as_text, to_json

    if options.json:
        print_json(to_json(plan))
    elif find_spec("rich") is None:
        print(as_text(plan))
    else:
        from rich.console import Console

        from ddp_launch.plan.show import show_full

        show_full(Console(), plan)
    return 0


def _run(plan: LaunchPlan, planner: Planner, options: LaunchOptions, events: EventLog, seat: Seat | None = None) -> int:
    """Check the devices, run the ranks and show how it ended; the exit status."""
    check_packages(plan.program, plan.job)
    from rich.console import Console

    from ddp_launch.run.folders import prepare
    from ddp_launch.run.preflight import preflight
    from ddp_launch.run.run_energy import RunEnergy
    from ddp_train.report.read_run import EVENTS
    from ddp_train.report.write import is_foreign, write_page_if_possible

    console = Console(stderr=True)
    try:
        plan = preflight(plan, options, console)
    except PreflightError as error:
        if seat is None:
            print(f"error: {error}", file=sys.stderr)
        else:
            seat.refused(str(error), 1)
        return 1
    plan, folders = prepare(plan, options)
    _show(console, plan, folders.shown, options, seat)
    if not is_foreign(kept := folders.record / EVENTS):
        events.append_to(kept)
    status = _run_ranks(plan, planner, events, console, folders, RunEnergy(plan), seat)
    if status or not folders.temporary:
        write_page_if_possible(folders.record)
    folders.close(success=status == 0)
    return status


def _run_ranks(
    plan: LaunchPlan,
    planner: Planner,
    events: EventLog,
    console: Console,
    folders: Folders,
    energy: RunEnergy,
    seat: Seat | None,
) -> int:
    """Run the ranks, record what happens, and show how it ended; the exit status."""
    from ddp_launch.events.run_events import RunEvents
    from ddp_launch.failure.evidence import EvidenceCollector
    from ddp_launch.failure.summary import show
    from ddp_launch.plan.plain import to_json
    from ddp_launch.run.signals import deferred
    from ddp_launch.run.torch_logging import importing_silently

    evidence = EvidenceCollector(plan)
    run_events, next_attempt = RunEvents(events, evidence, console), NextAttempt(plan, planner, evidence)
    run_events.plan(to_json(plan), folders.logs, folders.run)
    # torch takes seconds to import: only now, with the plan on the screen.
    with deferred(), importing_silently():
        from ddp_launch.run import agent

    energy.started()
    outcome = agent.run(plan.job, folders.logs, run_events, next_attempt)
    end = partial(show, console) if seat is None else seat.ended
    end(outcome, evidence.remedy(outcome.speaker))
    run_events.energy(energy.taken_by(next_attempt.indices))
    events.end(outcome.status, message=outcome.message)
    return outcome.status


def _show(console: Console, plan: LaunchPlan, logs: str, options: LaunchOptions, seat: Seat | None) -> None:
    """Show the plan before the ranks start. Over ssh only report the logs: the table of all hosts has the plan."""
    from ddp_launch.plan.show import in_one_line, show_compact

    if seat is not None:
        seat.logs(logs)
    elif options.quiet:
        console.print(in_one_line(plan), markup=False, highlight=False, soft_wrap=True)
    else:
        show_compact(console, plan, logs)


def _open_standard_streams() -> None:
    """Open closed standard streams (launch.py >&-) on /dev/null; else the next opened files would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # os.open returns the lowest free number, which is this one. The ranks inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def program() -> NoReturn:
    """Run `main` as a program. Exits without Python's tear-down of torch, which takes too long after a Ctrl-C."""
    _open_standard_streams()
    status = main()
    if "torch" not in sys.modules:
        sys.exit(status)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
