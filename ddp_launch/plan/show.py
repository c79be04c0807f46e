"""Shows a plan on the terminal, formatted with rich."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ddp_core.redaction import redacted
from ddp_launch.cluster.cluster import Cluster
from ddp_launch.plan.command import chooses_backend
from ddp_launch.plan.plan import LaunchPlan
from gpu_topology.environment.settings import Setting
from gpu_topology.topology import Gpu

GIB = 2**30
LONGEST_PROGRAM = 240


def show_full(console: Console, plan: LaunchPlan) -> None:
    """The plan with every reason, and the command to paste."""
    console.print(_facts(plan))
    _section(console, "Environment", _settings((s.name, _value(s), s.reason) for s in plan.environment))
    if plan.training is not None and plan.training.settings:
        rows = (("--" + s.name.replace("_", "-"), str(s.value), s.reason) for s in plan.training.settings)
        _section(console, "Training", _settings(rows))
    _show_warnings(console, plan)
    console.print(Text("\nTo run this without the launcher, paste", style="bold"))
    # No wrapping and no markup, so that the copied text is exactly the shell command.
    console.print(Text(plan.shell), soft_wrap=True)


def show_compact(console: Console, plan: LaunchPlan, log_dir: str) -> None:
    """The plan in a few lines, before the ranks start."""
    facts = _facts(plan)
    values = ((s.name, _value(s)) for s in plan.environment)
    facts.add_row("set", Text(" ".join(f"{name}={value}" for name, value in values)))
    if plan.training is not None and plan.training.settings:
        words = (f"--{s.name.replace('_', '-')} {s.value}" for s in plan.training.settings)
        facts.add_row("settings", Text(" ".join(words)))
    if plan.nproc_per_node > 1:
        facts.add_row("logs", Text(log_dir))
    console.print(facts)
    _show_warnings(console, plan)
    console.print(Text("Reasons: add --dry-run", style="dim"))


def in_one_line(plan: LaunchPlan) -> str:
    """The run in one line, for --quiet."""
    chosen = plan.selection.indices
    models = dict.fromkeys(plan.topology.gpu(index).label for index in chosen)
    gpus = f"{' + '.join(models)} (GPU {', '.join(map(str, chosen))})"
    return f"{gpus if chosen else 'CPU'}, {_run(plan)}"


def in_parts(plan: LaunchPlan) -> dict[str, str | int | None]:
    """This host's entries for a table of several hosts. `models`: the devices of its ranks, compared between hosts."""
    counts = Counter(plan.topology.gpu(index).label for index in plan.selection.indices)
    models = " + ".join(f"{number} x {model}" for model, number in counts.items())
    chosen = f"GPU {', '.join(map(str, plan.selection.indices))}" if models else f"CPU: {plan.selection.reason}"
    return {
        "machine": _machine(plan).plain.partition(", ")[2],
        "devices": f"{models} ({chosen})" if models else chosen,
        "models": models or "CPU",
        "ranks": plan.nproc_per_node,
        "network": plan.cluster.address and f"{plan.cluster.interface} {plan.cluster.address}",
        "address": plan.cluster.address,
        "program": _what_runs(plan),
    }


def _facts(plan: LaunchPlan) -> Table:
    """The table of machine, devices, nodes and program."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("machine", _machine(plan))
    table.add_row("devices", _devices(plan))
    if not plan.cluster.one_node:
        table.add_row("nodes", _nodes(plan.cluster))
    table.add_row("run", _run(plan))
    return table


def _machine(plan: LaunchPlan) -> Text:
    """Host name, cores, memory, number of GPUs, driver."""
    host, gpus = plan.host, plan.topology.gpus
    cores = f"{host.usable_cpus} CPU core{'s' * (host.usable_cpus != 1)}"
    parts = [host.hostname, cores, f"{host.memory_total / GIB:.0f} GiB"]
    parts.append(f"{len(gpus)} GPU{'s' * (len(gpus) != 1)}" if gpus else "no GPU")
    if plan.topology.driver_version:
        parts.append(f"driver {plan.topology.driver_version}")
    return Text(", ".join(parts))


def _devices(plan: LaunchPlan) -> RenderableType:
    """The selection, then each GPU that is left out with its reason."""
    selection = plan.selection
    if selection.indices:
        chosen = "GPU " + ", ".join(map(str, selection.indices))
        first = Text.assemble((selection.group, "bold green"), f" ({chosen}): {selection.reason}")
    else:
        first = Text.assemble(("CPU", "bold yellow"), f": {selection.reason}")
    lines = [first]
    for excluded in selection.excluded:
        if excluded.reason != selection.reason:
            about = _short(plan.topology.gpu(excluded.index))
            lines.append(Text(f"not GPU {excluded.index} ({about}): {excluded.reason}", style="dim"))
    return Group(*lines)


def _short(gpu: Gpu) -> str:
    """A GPU's model and memory."""
    memory = f", {gpu.memory_total / GIB:.0f} GiB" if gpu.memory_total else ""
    return (gpu.name or "of unknown name") + memory


def _run(plan: LaunchPlan) -> Text:
    """Number of ranks, backend and program."""
    ranks = f"{plan.nproc_per_node} rank{'s' * (plan.nproc_per_node != 1)}"
    least, most = plan.cluster.nnodes
    nodes = "" if most == 1 else f" on each of {least if least == most else f'{least} to {most}'} nodes"
    return Text(f"{ranks}{nodes}{_what_runs(plan)}")


def _what_runs(plan: LaunchPlan) -> str:
    """Backend, restarts and program, to be put after the number of ranks."""
    most_restarts = plan.job.max_restarts
    restarts = f", up to {most_restarts} restart{'s' * (most_restarts != 1)}" if most_restarts else ""
    backend = "" if chooses_backend(plan.program) else f", {plan.backend}"
    return f"{backend}{restarts}: {_program(plan)}"


def _program(plan: LaunchPlan) -> str:
    """The program with its arguments, cut to LONGEST_PROGRAM characters; the command to paste has all of it."""
    program = plan.program
    named = ("-m", program.name) if program.kind == "module" else (program.name,)
    words = ("trainer", *plan.training.given) if plan.training else (*named, *redacted(program.args))
    # A terminal would obey control characters.
    text = "".join(letter if letter.isprintable() else "?" for letter in shlex.join(words))
    return text if len(text) <= LONGEST_PROGRAM else text[:LONGEST_PROGRAM].rstrip() + " ..."


def _nodes(cluster: Cluster) -> Text:
    """The rendezvous of the nodes, and the source of these facts."""
    this = "" if cluster.node_rank is None else f"this is {cluster.name(cluster.node_rank)}; "
    here = "" if cluster.address is None else f" from {cluster.address} ({cluster.interface})"
    holds = ", held by this node" if cluster.hosts_store else ""
    wait = f"; {cluster.rdzv_timeout_s} s for all to come"
    return Text(f"{this}meeting at {cluster.endpoint}{here}{holds}{wait}; said by {cluster.source}")


def _value(setting: Setting) -> str:
    """A variable's value as the plan shows it."""
    if setting.unset:
        return "(removed)"
    return (setting.value or "''") + (" (kept)" if setting.kept else "")


def _settings(rows: Iterable[tuple[str, str, str]]) -> Table:
    """A table of name, value and reason."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", ratio=1)
    for name, value, reason in rows:
        table.add_row(Text(name), Text(value), Text(reason))
    return table


def _section(console: Console, title: str, body: RenderableType) -> None:
    """Print a title with an indented body."""
    console.print(Text(f"\n{title}", style="bold"))
    console.print(Padding(body, (0, 0, 0, 2)))


def _show_warnings(console: Console, plan: LaunchPlan) -> None:
    """Print the warnings that are not shown above already, as the reason for the CPU or for leaving out a GPU."""
    above = {plan.selection.reason, *(excluded.reason for excluded in plan.selection.excluded)}
    for warning in plan.warnings:
        # The topology's "GPU 3: the GPU is lost" repeats the selection's "not GPU 3 (...): the GPU is lost".
        if warning not in above and re.sub(r"^GPU [\d, ]+: ", "", warning) not in above:
            console.print(Text.assemble(("note: ", "yellow"), warning))
