"""The plans of all hosts in one table, before the ranks start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddp_launch.cluster.network import TRUST

Plan = Mapping[str, Any]
"""A launcher's report on its host: `plan.show.in_parts`, and `plan` as --dry-run --json prints it."""


def show(console: Console, plans: Mapping[str, Plan], notes: Iterable[str], exported: Sequence[str]) -> None:
    """Print hosts, program, settings and notes. plans: host -> its report, in the order of the ranks."""
    first = next(iter(plans.values()))
    console.print(_hosts(plans))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("run", Text(_run(plans)))
    if (endpoint := first["plan"]["rdzv_endpoint"]) is not None:
        facts.add_row("nodes", Text(f"meeting at {endpoint}, held by {next(iter(plans))}"))
    for name, words in _settings(plans):
        facts.add_row(name, Text(words))
    if exported:
        facts.add_row("export", Text(" ".join(exported)))
    console.print(facts)
    for note in _notes(plans, notes):
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)


def in_one_line(plans: Mapping[str, Plan]) -> str:
    """The run in one line, for --quiet."""
    devices = "; ".join(f"{name}: {plan['devices']}" for name, plan in plans.items())
    return f"{devices}; {_run(plans)}"


def _run(plans: Mapping[str, Plan]) -> str:
    """`4 ranks on 2 hosts` and the program."""
    ranks = sum(plan["ranks"] for plan in plans.values())
    hosts = f"{len(plans)} host{'s' * (len(plans) != 1)}"
    return f"{ranks} rank{'s' * (ranks != 1)} on {hosts}{next(iter(plans.values()))['program']}"


def show_commands(console: Console, plans: Mapping[str, Plan]) -> None:
    """Print, for each host, the command that does the same without the launcher."""
    console.print(Text("\nTo run this without the launcher, paste", style="bold"))
    for name, plan in plans.items():
        # No wrapping: the line is meant to be copied.
        console.print(Text(f"on {name}: ", style="bold").append(plan["plan"]["shell"], style="none"), soft_wrap=True)


def _hosts(plans: Mapping[str, Plan]) -> Table:
    """The table of hosts: machine, devices, ranks, network."""
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_row(*(Text(title, style="bold") for title in ("host", "machine", "devices", "ranks", "network")))
    begin = 0
    for name, plan in plans.items():
        end = begin + plan["ranks"] - 1
        numbers = f"{begin}" if begin == end else f"{begin} to {end}"
        row = (name, plan["machine"], plan["devices"], numbers, plan["network"] or "")
        table.add_row(*map(Text, row))
        begin = end + 1
    return table


def _settings(plans: Mapping[str, Plan]) -> Iterable[tuple[str, str]]:
    """The settings, once where all hosts have the same."""
    values: dict[str, list[str]] = {}
    for name, plan in plans.items():
        shown = [f"{one['name']}={_value(one)}" for one in plan["plan"]["environment"]]
        values.setdefault(" ".join(shown), []).append(name)
    for words, names in values.items():
        yield "set", words if len(values) == 1 else f"{', '.join(names)}: {words}"
    training = next(iter(plans.values()))["plan"]["training"]
    if training is not None and (settings := {k: v for k, v in training.items() if k != "reasons"}):
        yield "settings", " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def _value(setting: Mapping[str, Any]) -> str:
    """A variable's value as the table shows it."""
    if setting["unset"]:
        return "(removed)"
    return (setting["value"] or "''") + (" (kept)" if setting["kept"] else "")


def _notes(plans: Mapping[str, Plan], notes: Iterable[str]) -> Iterable[str]:
    """Notes on the run, then those of the plans, with host names where not all hosts have them."""
    yield from notes
    by_note: dict[str, list[str]] = {}
    for name, plan in plans.items():
        reason = plan["plan"]["selection"]["reason"]
        for warning in plan["plan"]["warnings"]:
            if warning.endswith(TRUST):
                # Each host has this warning about its own interface, which the table shows.
                by_note.setdefault(f"the hosts meet and the ranks talk {TRUST}", []).append(name)
            elif warning != reason:
                by_note.setdefault(warning, []).append(name)
    for warning, names in by_note.items():
        yield warning if len(names) == len(plans) else f"{', '.join(names)}: {warning}"
