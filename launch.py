#!/usr/bin/env python3
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

if __name__ == "__main__":
    # Until the command line is read: no traceback from the middle of the imports.
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, lambda number, frame: os._exit(128 + number))

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import NoReturn

from ddp_train.config import UserError
from ddp_train.speed_cache import recall as recall_speeds
from gpu_topology import snapshot
from gpu_topology.host import read_host
from gpu_topology.inherited import read_inherited
from gpu_topology.nvml import read_or_explain
from gpu_topology.topology import TopologyError
from gpu_topology.verify_cache import recall
from launcher.claims import Claims, runtime_folder
from launcher.cluster import find_cluster
from launcher.events import EventLog
from launcher.network import locate
from launcher.options import LaunchOptions, OptionError, parse
from launcher.plan import LaunchPlan, make_plan
from launcher.program import check_program, check_torch

__all__ = ["main", "program"]


def main(argv: Sequence[str] | None = None) -> int:
    """Plan and run what the command line says; the exit status."""
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options = parse(sys.argv[1:] if argv is None else argv, os.environ)
        if options.doctor:
            from launcher import doctor

            return doctor.run(options)
        with EventLog(options.json_events) as events, Claims(runtime_folder(os.environ)) as claims:
            plan = _plan(options, claims)
            return _print(plan, options) if options.dry_run else _run(plan, options, events)
    except (OptionError, UserError, TopologyError) as error:
        remedy = getattr(error, "remedy", None)
        print(f"error: {error}" + (f"; {remedy}" if remedy else ""), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the plan has seen enough (launch.py --dry-run | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM before the ranks are there."""
    sys.exit(128 + number)


def _plan(options: LaunchOptions, claims: Claims) -> LaunchPlan:
    """The plan, and for a run a claim on its GPUs."""
    check_program(options.program)
    if options.topology is not None:
        return make_plan(options, snapshot.load(options.topology), read_host(), os.environ, known_speeds=recall_speeds)
    cluster = locate(find_cluster(options, os.environ), wait=not options.dry_run)
    topology, host = read_or_explain(), read_host()
    inherited = read_inherited(topology, os.environ)

    def plan_beside(others: Mapping[str, str]) -> LaunchPlan:
        own = replace(inherited, claims=others)
        return make_plan(options, topology, host, os.environ, recall, cluster, own, recall_speeds)

    if options.dry_run:
        return plan_beside(claims.others())
    # GPUs that the user names, or takes busy, are taken whoever else has them: the plan warns.
    shared = bool(options.gpus) or options.allow_busy
    plan = claims.settle(plan_beside, lambda plan: plan.selection.uuids, shared=shared)
    if claims.problem is None or not plan.selection.uuids:
        return plan
    note = f"another launcher may choose the same GPUs: no claims can be made ({claims.problem})"
    return replace(plan, warnings=(*plan.warnings, note))


def _print(plan: LaunchPlan, options: LaunchOptions) -> int:
    from launcher.show import show_full, to_json

    if options.json:
        print(json.dumps(to_json(plan), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        show_full(Console(), plan)
    sys.stdout.flush()
    return 0


def _run(plan: LaunchPlan, options: LaunchOptions, events: EventLog) -> int:
    from rich.console import Console

    from launcher.evidence import Witness
    from launcher.folders import prepare
    from launcher.interrupts import deferred
    from launcher.preflight import PreflightError, preflight
    from launcher.quiet import quiet_import
    from launcher.report import Report
    from launcher.show import show_compact, to_json
    from launcher.summary import show

    check_torch()
    console = Console(stderr=True)
    try:
        plan = preflight(plan, options, console)
    except PreflightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    plan, folders = prepare(plan, options)
    show_compact(console, plan, str(folders.logs))
    witness = Witness(plan)
    report = Report(events, witness)
    report.plan(to_json(plan), folders.logs)
    # torch takes seconds to import: only now, with the plan on the screen.
    with deferred(), quiet_import():
        from launcher import elastic

    outcome = elastic.run(plan.job, folders.logs, report)
    show(console, outcome, witness.remedy(outcome.first))
    events.end(outcome.status, message=outcome.message)
    if outcome.status == 0:
        folders.tidy(outcome.seen)
    folders.close()
    return outcome.status


def _open_standard_streams() -> None:
    """Streams that are closed (launch.py >&-) lead nowhere: the next file to be opened would take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. The ranks inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def program() -> NoReturn:
    """`main` as a program: leaves without Python's tear-down of torch, which takes longer than a Ctrl-C may."""
    _open_standard_streams()
    status = main()
    if "torch" not in sys.modules:
        sys.exit(status)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    program()
