"""One run on several hosts, as the launcher that was started by hand sees it: check, show one plan, run, end."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from rich.console import Console

from ddp_launch.cli.options import LaunchOptions
from ddp_launch.events.jsonl import EventLog
from ddp_launch.hosts import between, sync, table
from ddp_launch.hosts.bring_up import Ready, bring_up, exported
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
        return between.run(options, variables, console)
    due = options.preflight and not options.dry_run and len(options.hosts) > 1
    if due and (status := between.run(replace(options, json=False), variables, console, preflight=True)):
        return status
    names = [host.name for host in options.hosts]
    receivers = () if options.dry_run else options.notify
    with (
        Notifier(receivers, options.notify_on, options.program.title, names) as notifier,
        EventLog(None, notifier.hear) as events,
        Fleet(options.hosts) as fleet,
    ):
        ready = bring_up(fleet, options, variables, copied, console)
        if isinstance(ready, int):
            events.end(ready, message="a host could not take part")
            return ready
        _show(ready, options, [*variables], console)
        if options.dry_run:
            return 0
        ending = Ending(fleet, console, grace(options), hear=notifier.hear)
        status = ending.run_to_end()
        events.end(status, message=ending.problem)
        return status


def _show(ready: Ready, options: LaunchOptions, exports: list[str], console: Console) -> None:
    """Show the plan of all hosts as JSON, in one line, or as a table."""
    if options.dry_run and options.json:
        hosts = [{"host": name, **plan["plan"]} for name, plan in ready.plans.items()]
        print(json.dumps({**hosts[0], "hosts": hosts}, indent=2, ensure_ascii=False))
    elif options.quiet:
        console.print(table.in_one_line(ready.plans), markup=False, highlight=False, soft_wrap=True)
    else:
        table.show(Console() if options.dry_run else console, ready.plans, ready.notes, exports)
        if options.dry_run:
            table.show_commands(Console(), ready.plans)
