"""A topology, its groups, the selection and the environment as one JSON object, or as tables in a terminal.

rich is imported inside the functions that draw: the JSON, `select` and `env` do not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from gpu_topology import nccl, snapshot
from gpu_topology.grouping import Group
from gpu_topology.host import Host
from gpu_topology.nccl import Setting
from gpu_topology.selection import Selection
from gpu_topology.topology import Gpu, Link, LinkLevel, Topology

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

GIB = 2**30

_LEVEL_STYLES = {
    LinkLevel.NV: "bold green",
    LinkLevel.PIX: "cyan",
    LinkLevel.PXB: "cyan",
    LinkLevel.PHB: "yellow",
    LinkLevel.NODE: "yellow",
    LinkLevel.SYS: "red",
}


def to_json(
    topology: Topology, host: Host, selection: Selection, groups: Sequence[Group], settings: Sequence[Setting]
) -> dict[str, object]:
    """The report as plain data: a snapshot's keys, then `groups`, `selection`, `environment`, `host`, `warnings`.

    `--from` reads a saved report too. `estimated_peak_tops` and `ring_model_gb_s` are models that rank groups, not
    measurements.
    """
    return {
        **snapshot.to_dict(topology),
        "groups": [_group_json(group) for group in groups],
        "selection": {
            "indices": list(selection.indices),
            "uuids": list(selection.uuids),
            "group": selection.group,
            "policy": selection.policy,
            "excluded": [asdict(excluded) for excluded in selection.excluded],
            "reason": selection.reason,
        },
        "environment": [asdict(setting) for setting in settings],
        "host": {**asdict(host), "cpu_flags": sorted(host.cpu_flags)},
        "warnings": list(all_warnings(topology, selection, host)),
    }


def all_warnings(topology: Topology, selection: Selection, host: Host) -> tuple[str, ...]:
    """Everything that the user should know: of the reading, of the choice, and of what is deliberately not set."""
    return (*topology.warnings, *selection.warnings, *nccl.notes(topology, selection, host))


def _group_json(group: Group) -> dict[str, object]:
    return {
        "name": group.name,
        "indices": list(group.indices),
        "memory_total": group.memory_total,
        "compute_capability": group.compute_capability and list(group.compute_capability),
        "mig_mode": group.mig_mode,
        "estimated_peak_tops": group.throughput,
        "ring_model_gb_s": group.ring_gb_s,
    }


def render(
    console: Console,
    topology: Topology,
    host: Host,
    selection: Selection,
    groups: Sequence[Group],
    settings: Sequence[Setting],
) -> None:
    """Print the whole report; a machine without a GPU gets its own screen."""
    if not topology.gpus:
        _render_without_gpu(console, topology, host, settings)
        return
    console.print(_heading(f"GPUs  [dim]{_versions(topology)}[/dim]"))
    console.print(device_table(topology, selection))
    if len(topology.gpus) > 1:
        console.print(_heading("Links"))
        console.print(link_table(topology, selection))
        console.print(_legend(topology))
    if groups:
        console.print(_heading("Groups of like GPUs, best first"))
        console.print(group_table(topology, groups))
    console.print(_heading("Selection"))
    console.print(selection_text(topology, selection))
    console.print(_heading("Environment"))
    console.print(environment_table(settings))
    console.print(_heading("Host"))
    console.print(host_text(host))
    _render_warnings(console, all_warnings(topology, selection, host))


def device_table(topology: Topology, selection: Selection | None = None) -> Table:
    """One row per GPU; the chosen ones are marked. Memory in GiB, utilization in percent, "?" where unknown."""
    table = _table()
    for column in ("", "GPU"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("Name", overflow="fold", min_width=14)
    for column, justify in (("Used / GiB", "right"), ("CC", "left"), ("NUMA", "right"), ("Bus id", "left")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for column in ("Procs", "Util"):
        table.add_column(column, justify="right", no_wrap=True)
    chosen = selection.indices if selection else ()
    for gpu in topology.gpus:
        table.add_row(*_device_row(gpu, gpu.index in chosen), style=None if gpu.error is None else "red")
    return table


def _device_row(gpu: Gpu, chosen: bool) -> tuple[RenderableType, ...]:
    capability = "?" if gpu.compute_capability is None else ".".join(map(str, gpu.compute_capability))
    return (
        "[bold green]>[/]" if chosen else "",
        str(gpu.index),
        _name_cell(gpu),
        f"{_gib(gpu.memory_used)} / {_gib(gpu.memory_total)}",
        capability,
        _known(gpu.numa_node),
        "?" if gpu.pci_bus_id is None else gpu.pci_bus_id.removeprefix("0000:"),
        "?" if gpu.processes is None else str(len(gpu.processes)),
        "?" if gpu.utilization is None else f"{gpu.utilization}%",
    )


def _name_cell(gpu: Gpu) -> Text:
    from rich.text import Text

    cell = Text((gpu.name or "?").removeprefix("NVIDIA "))
    marks = []
    if gpu.error:
        marks.append(gpu.error)
    if gpu.display_active:
        marks.append("drives a display")
    if gpu.mig_mode:
        marks.append("MIG: " + (", ".join(one.profile or one.uuid for one in gpu.mig_devices) or "no slices"))
    for mark in marks:
        cell.append(f"\n{mark}", style="red" if mark == gpu.error else "dim")
    return cell


def link_table(topology: Topology, selection: Selection | None = None) -> Table:
    """The link matrix in nvidia-smi's notation; a star marks pairs whose peer access does not work."""
    from rich.text import Text

    table = _table()
    chosen = selection.indices if selection else ()
    table.add_column("", no_wrap=True)
    for gpu in topology.gpus:
        table.add_column(f"GPU{gpu.index}", no_wrap=True, header_style="bold green" if gpu.index in chosen else "bold")
    for row in topology.gpus:
        cells = [_link_cell(topology.link(row.index, gpu.index)) for gpu in topology.gpus]
        name = Text(f"GPU{row.index}", style="bold green" if row.index in chosen else "bold")
        table.add_row(name, *cells)
    return table


def _link_cell(link: Link) -> Text:
    from rich.text import Text

    if link.a == link.b:
        return Text("X", style="dim")
    cell = Text(link.label, style=_LEVEL_STYLES[link.level] if link.level else "dim")
    return cell.append("*", style="red") if link.p2p not in (None, "ok") else cell


def _legend(topology: Topology) -> Text:
    from rich.text import Text

    seen = {link.level for link in topology.links}
    lines = [f"{level.value:<5}{level.meaning}" for level in LinkLevel if level in seen]
    refused = sorted({link.p2p for link in topology.links if link.p2p not in (None, "ok")} - {None})
    if refused:
        lines.append(f"*    no peer access ({', '.join(str(name) for name in refused)}): by way of host memory")
    if None in seen:
        lines.append("?    the driver does not tell")
    return Text("\n".join(f"  {line}" for line in lines), style="dim")


def group_table(topology: Topology, groups: Sequence[Group]) -> Table:
    """The homogeneous groups with what their members have in common."""
    table = _table()
    table.add_column("Group", overflow="fold")
    table.add_column("GPUs", overflow="fold")
    table.add_column("GiB each", justify="right", no_wrap=True)
    table.add_column("CC", no_wrap=True)
    table.add_column("Links", overflow="fold")
    for group in groups:
        capability = "?" if group.compute_capability is None else ".".join(map(str, group.compute_capability))
        links = sorted({link.label for link in topology.links_within(group.indices)})
        table.add_row(
            group.label,
            ", ".join(map(str, group.indices)),
            _gib(group.memory_total),
            capability,
            ", ".join(links) or "-",
        )
    return table


def selection_text(topology: Topology, selection: Selection) -> Text:
    """What was chosen and why, then each GPU left out and why."""
    from rich.text import Text

    text = Text()
    if selection.indices:
        text.append(f"  GPU {', '.join(map(str, selection.indices))}", style="bold green")
        text.append(f": {selection.reason}")
    else:
        text.append("  none", style="bold yellow")
        text.append(f": {selection.reason}")
    for excluded in selection.excluded:
        text.append(f"\n  not GPU {excluded.index} ({topology.gpu(excluded.index).label}): ", style="dim")
        text.append(excluded.reason)
    return text


def environment_table(settings: Sequence[Setting]) -> Table:
    """NAME=value with its reason; variables that the user had set are marked `kept`."""
    from rich.text import Text

    table = _table()
    table.add_column("Variable", overflow="fold", max_width=38)
    table.add_column("Reason", overflow="fold", ratio=1)
    for setting in settings:
        reason = Text("kept: ", style="yellow") if setting.kept else Text()
        table.add_row(
            Text(f"{setting.name}={setting.value}", style="bold"), reason.append(setting.reason, style="none")
        )
    return table


def host_text(host: Host) -> Text:
    """CPUs, memory, /dev/shm and network of the host in a few lines."""
    from rich.text import Text

    lines = [f"{host.hostname}: {host.cpu_name}" if host.cpu_name else host.hostname]
    lines.append(
        f"{_count(host.usable_cpus, 'usable CPU')} (affinity and cgroup quota), "
        f"{_count(host.physical_cores, 'physical core')}, {_count(host.numa_nodes, 'NUMA node')}"
    )
    shm = "" if host.shm_total is None else f", /dev/shm {_gib(host.shm_total)} GiB"
    lines.append(f"{_gib(host.memory_available)} GiB of memory available of {_gib(host.memory_total)}{shm}")
    networks = [*host.interfaces, *(f"InfiniBand {name}" for name in host.infiniband)]
    lines.append(f"network: {', '.join(networks) or 'loopback only'}")
    return Text("\n".join(f"  {line}" for line in lines))


def _render_without_gpu(console: Console, topology: Topology, host: Host, settings: Sequence[Setting]) -> None:
    from rich.padding import Padding

    reason, *remedies = topology.warnings or ("this machine has no NVIDIA GPU",)
    console.print(_heading("No NVIDIA GPU can be used here"))
    console.print(Padding(f"Why: {reason}.", (0, 2)), markup=False)
    for remedy in remedies:
        console.print(Padding(f"{remedy[:1].upper()}{remedy[1:]}.", (0, 2)), markup=False)
    instead = (
        "Until then: training runs on the CPU with the gloo backend; ranks x threads fill the "
        f"{_count(host.usable_cpus, 'CPU')} that this process may use."
    )
    console.print(Padding(instead, (0, 2)), markup=False)
    console.print(_heading("Host"))
    console.print(host_text(host))
    console.print(_heading("Environment for training on the CPU"))
    console.print(environment_table(settings))


def _render_warnings(console: Console, warnings: Sequence[str]) -> None:
    from rich.table import Table

    if not warnings:
        return
    console.print(_heading("Worth knowing"))
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2, justify="right", style="yellow")
    table.add_column(overflow="fold")
    for warning in warnings:
        table.add_row("!", warning)
    console.print(table, markup=False)


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 1), header_style="bold")


def _heading(title: str) -> Text:
    from rich.text import Text

    return Text.from_markup(f"\n[bold]{title}[/bold]")


def _versions(topology: Topology) -> str:
    known = [("driver", topology.driver_version), ("CUDA up to", topology.cuda_version)]
    return ", ".join(f"{name} {version}" for name, version in known if version)


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.1f}"


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
