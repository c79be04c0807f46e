"""The tables of the report as rich renderables; the launcher's plan shows the same ones.

rich is imported inside the functions: what answers without drawing does not wait for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_topology.grouping import Group
from gpu_topology.host import Host
from gpu_topology.nccl import Setting
from gpu_topology.selection import Selection
from gpu_topology.topology import Gpu, Topology, short_name

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.table import Table
    from rich.text import Text

GIB = 2**30

_SLOW = ("thermal", "hw-slowdown", "hw-thermal", "hw-power-brake")
"""What holds clocks back although nothing is limited on purpose: a mark beside the name."""


@dataclass(frozen=True, slots=True)
class _Column:
    """`least` is the width of the terminal, in characters, from which on the column is shown."""

    title: str
    cell: Callable[[Gpu], RenderableType]
    right: bool = False
    least: int = 0


def device_table(topology: Topology, selection: Selection | None = None, width: int = 80) -> Table:
    """One row per GPU; the chosen ones are marked. Memory in GiB, utilization in percent, "?" where unknown.

    `width` is the terminal's, in characters: a wide one has more columns.
    """
    columns = [column for column in _device_columns() if width >= column.least]
    table = _table()
    table.add_column("", no_wrap=True)
    for column in columns:
        name = column.title == "Name"
        justify: JustifyMethod = "right" if column.right else "left"
        table.add_column(
            column.title, justify=justify, no_wrap=not name, overflow="fold", min_width=14 if name else None
        )
    chosen = selection.indices if selection else ()
    for gpu in topology.gpus:
        mark = "[bold green]>[/]" if gpu.index in chosen else ""
        style = None if gpu.error is None else "red"
        table.add_row(mark, *(column.cell(gpu) for column in columns), style=style)
    return table


def _device_columns() -> tuple[_Column, ...]:
    return (
        _Column("GPU", lambda gpu: str(gpu.index), right=True),
        _Column("Name", _name_cell),
        _Column("GiB used", lambda gpu: f"{_gib(gpu.memory_used)} / {_gib(gpu.memory_total)}", right=True),
        _Column("Util", lambda gpu: "?" if gpu.utilization is None else f"{gpu.utilization}%", right=True),
        _Column("Procs", lambda gpu: "?" if gpu.processes is None else str(len(gpu.processes)), right=True, least=52),
        _Column("CC", _capability, least=90),
        _Column("NUMA", lambda gpu: _known(gpu.numa_node), right=True, least=58),
        _Column("PCIe", _pcie_cell, least=68),
        _Column(
            "Bus id", lambda gpu: "?" if gpu.pci_bus_id is None else gpu.pci_bus_id.removeprefix("0000:"), least=77
        ),
        _Column("UUID", lambda gpu: "?" if gpu.uuid is None else gpu.uuid, least=130),
    )


def _capability(gpu: Gpu) -> str:
    return "?" if gpu.compute_capability is None else ".".join(map(str, gpu.compute_capability))


def _pcie_cell(gpu: Gpu) -> Text:
    """The generation and width that card and slot can do; in red the lanes where fewer are in use."""
    from rich.text import Text

    if gpu.pcie_generation is None or gpu.pcie_width is None:
        return Text("?")
    now = gpu.pcie_width_now
    if now is not None and now < gpu.pcie_width:
        return Text(f"gen{gpu.pcie_generation} x{now}/{gpu.pcie_width}", style="red")
    return Text(f"gen{gpu.pcie_generation} x{gpu.pcie_width}")


def _name_cell(gpu: Gpu) -> Text:
    from rich.text import Text

    cell = Text(short_name(gpu.name))
    for mark, bad in _marks(gpu):
        cell.append(f"\n{mark}", style="red" if bad else "dim")
    return cell


def _marks(gpu: Gpu) -> Iterator[tuple[str, bool]]:
    """What is special about a GPU, in few words, and whether it is bad. The warnings tell the rest."""
    if gpu.error:
        yield gpu.error.partition(":")[0], True
    if gpu.display_active:
        yield "drives a display", False
    if gpu.mig_mode:
        profiles = Counter(one.profile or "slice" for one in gpu.mig_devices)
        slices = ", ".join(f"{count} x {profile}" for profile, count in profiles.items())
        yield f"MIG: {slices or 'no slices'}", False
    if gpu.fabric_state not in (None, "completed"):
        yield f"fabric {gpu.fabric_state}", True
    if gpu.ecc_uncorrected:
        yield f"{gpu.ecc_uncorrected} memory errors", True
    yield from ((fault, True) for fault in gpu.memory_faults or ())
    slow = [word for word in gpu.throttle or () if word in _SLOW]
    if slow:
        yield f"held back: {', '.join(slow)}", True


def node_text(topology: Topology) -> Text | None:
    """The CPUs beside the GPUs, a line for each NUMA node; None where the driver does not tell them."""
    from rich.text import Text

    nodes: dict[tuple[int | None, str], list[int]] = {}
    for gpu in topology.gpus:
        if gpu.cpu_affinity is not None:
            nodes.setdefault((gpu.numa_node, gpu.cpu_affinity), []).append(gpu.index)
    lines = [
        f"  NUMA node {_known(node)}: CPUs {cpus}, GPU {', '.join(map(str, gpus))}"
        for (node, cpus), gpus in nodes.items()
    ]
    return Text("\n".join(lines)) if lines else None


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
        capability = _capability(topology.gpu(group.indices[0]))
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
    """The GPUs left out, with the reason; those of one model with the same reason share a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    alike: dict[tuple[str, str], list[str]] = {}
    for excluded in selection.excluded:
        name = short_name(topology.gpu(excluded.index).name)
        alike.setdefault((name, excluded.reason), []).append(str(excluded.index))
    for (name, reason), indices in alike.items():
        which = Text(f"{', '.join(dict.fromkeys(indices))} {name}: ", style="dim")
        table.add_row("  not GPU", which.append(reason, style="not dim"))
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

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 0, 0, 1), header_style="bold")


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.1f}"


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
