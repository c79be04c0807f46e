"""One run on several hosts, as the launcher that was started by hand sees it: check, show one plan, run, end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from ddp_core.cli import print_json
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.events.jsonl import EventLog
from ddp_launch.hosts import between, sync, table
from ddp_launch.hosts.bring_up import Ready, Refusals, bring_up, exported
from ddp_launch.hosts.ending import Ending
from ddp_launch.hosts.fleet import Fleet
from ddp_launch.hosts.seat import grace
from ddp_launch.notify.notifier import Notifier


def run(options: LaunchOptions) -> int:
    """The run on `options.hosts`; its exit status. Errors: UserError."""
    variables = exported(options.export, os.environ)
    copied = None if options.sync is None else sync.folder(options.sync)
    console = Console(stderr=True)
    if options.check_hosts:
        return between.run(options, variables, copied, console)
    names = [host.name for host in options.hosts]
    receivers = () if options.dry_run else options.notify
    with (
        Notifier(receivers, options.notify_on, options.program.title, names) as notifier,
        EventLog(None, notifier.hear) as events,
    ):
        status, problem = _run(options, variables, copied, console, notifier)
        if not options.dry_run:
            events.end(status, message=problem)
        return status


def _run(
    options: LaunchOptions, variables: Mapping[str, str], copied: str | None, console: Console, notifier: Notifier
) -> tuple[int, str | None]:
    """Check the hosts, show their plan, and run; the exit status, and the problem where no rank failed."""
    due = options.preflight and not options.dry_run and len(options.hosts) > 1
    if due and (status := between.run(replace(options, json=False), variables, copied, console, preflight=True)):
        return status, "the check of the network between the hosts has failed (--preflight)"
    with Fleet(options.hosts) as fleet:
        ready = bring_up(fleet, options, variables, copied, console)
        if isinstance(ready, Refusals):
            return ready.status, ready.words
        _show(ready, options, [*variables], console)
        if options.dry_run:
            return 0, None
        ending = Ending(fleet, console, grace(options), hear=notifier.hear)
        return ending.run_to_end(), ending.problem


def _show(ready: Ready, options: LaunchOptions, exports: list[str], console: Console) -> None:
    """Show the plan of all hosts as JSON, in one line, or as a table."""
    if options.dry_run and options.json:
        hosts = [{"host": name, **plan["plan"]} for name, plan in ready.plans.items()]
        print_json({**hosts[0], "hosts": hosts})
    elif options.quiet:
        console.print(table.in_one_line(ready.plans), markup=False, highlight=False, soft_wrap=True)
    else:
        table.show(Console() if options.dry_run else console, ready.plans, ready.notes, exports)
        if options.dry_run:
            table.show_commands(Console(), ready.plans)
