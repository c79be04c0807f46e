"""The tables of the report as rich renderables; the launcher's plan shows the same ones.

rich is imported inside the functions: what answers without drawing does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpu_topology.grouping import Group
from gpu_topology.host import Host
from gpu_topology.nccl import Setting
from gpu_topology.selection import Selection
from gpu_topology.topology import Gpu, Link, LinkLevel, Topology

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

GIB = 2**30

_LEVEL_STYLES = {
    LinkLevel.NV: "bold green",
    LinkLevel.PIX: "cyan",
    LinkLevel.PXB: "cyan",
    LinkLevel.PHB: "yellow",
    LinkLevel.NODE: "yellow",
    LinkLevel.SYS: "magenta",
}


def device_table(topology: Topology, selection: Selection | None = None) -> Table:
    """One row per GPU; the chosen ones are marked. Memory in GiB, utilization in percent, "?" where unknown."""
    table = _table()
    for column in ("", "GPU"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("Name", overflow="fold", min_width=14)
    for column, justify in (("GiB used", "right"), ("CC", "left"), ("NUMA", "right"), ("Bus id", "left")):
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
    short_error = None
    if gpu.error:
        marks.append(short_error := gpu.error.partition(":")[0])  # the selection tells the rest
    if gpu.display_active:
        marks.append("drives a display")
    if gpu.mig_mode:
        marks.append("MIG: " + (", ".join(one.profile or one.uuid for one in gpu.mig_devices) or "no slices"))
    for mark in marks:
        cell.append(f"\n{mark}", style="red" if mark == short_error else "dim")
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


def legend(topology: Topology) -> Text:
    """What the link matrix's words mean, for those that occur in it."""
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
    from rich.text import Text

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
            Text(group.label),
            ", ".join(map(str, group.indices)),
            _gib(group.memory_total),
            capability,
            ", ".join(links) or "-",
        )
    return table


def exclusion_table(topology: Topology, selection: Selection) -> Table:
    """Each GPU left out, with the reason."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for excluded in selection.excluded:
        name = topology.gpu(excluded.index).label.removeprefix("NVIDIA ")
        table.add_row(
            f"  not GPU {excluded.index}", Text(f"{name}: ", style="dim").append(excluded.reason, style="not dim")
        )
    return table


def environment_table(settings: Sequence[Setting]) -> Table:
    """NAME=value with its reason; variables that the user had set are marked `kept`."""
    from rich.text import Text

    table = _table()
    table.add_column("Variable", overflow="fold", max_width=38)
    table.add_column("Reason", overflow="fold", ratio=1)
    for setting in settings:
        reason = Text.from_markup("[yellow]kept:[/yellow] ") if setting.kept else Text()
        table.add_row(
            Text(f"unset {setting.name}" if setting.unset else f"{setting.name}={setting.value}", style="bold"),
            reason.append(setting.reason, style="none"),
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


def bullets(lines: Sequence[str], mark: str = "!") -> Table:
    """Sentences with a mark before each, wrapped with a hanging indent."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(width=3, justify="right", style="yellow")
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(mark, Text(line))
    return table


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 1), header_style="bold")


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.1f}"


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
