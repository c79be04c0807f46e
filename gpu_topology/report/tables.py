"""The tables of the report, on a `Screen`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gpu_topology.environment.settings import Setting
from gpu_topology.host.host import Host
from gpu_topology.report.terminal_table import Column, Content, Screen
from gpu_topology.select.grouping import Group
from gpu_topology.select.select import Selection
from gpu_topology.topology import Gpu, Topology, short_name

GIB = 2**30

_SLOW = ("thermal", "hw-slowdown", "hw-thermal", "hw-power-brake")
"""Throttle reasons that no user set on purpose; they are shown as a mark below the GPU's name."""


_VARIABLE = 41
"""Most characters of the variable's column: a UUID and a comma. It is that wide where there are UUIDs and room."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the device table. `least`: the terminal's least width, in characters, at which it is shown."""

    title: str
    cell: Callable[[Gpu], Content]
    right: bool = False
    least: int = 0


def devices(screen: Screen, topology: Topology, selection: Selection | None = None) -> None:
    """One row per GPU; the chosen ones are marked. Memory in GiB, utilization in percent, "?" where unknown.

    A wide screen has more columns.
    """
    shown = [column for column in _device_columns() if screen.width >= column.least]
    columns = [Column(one.title, one.right, one.title == "Name", 14 if one.title == "Name" else 1) for one in shown]
    chosen = selection.indices if selection else ()
    rows = []
    for gpu in topology.gpus:
        cells = [column.cell(gpu) for column in shown]
        if gpu.error is not None:
            cells = [(cell, "red") if isinstance(cell, str) else cell for cell in cells]
        rows.append([(">", "bold green") if gpu.index in chosen else "", *cells])
    screen.table([Column(), *columns], rows)


def _device_columns() -> tuple[_Column, ...]:
    """The columns of the device table."""
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
    """The compute capability: "8.6", or "?"."""
    return "?" if gpu.compute_capability is None else ".".join(map(str, gpu.compute_capability))


def _pcie_cell(gpu: Gpu) -> Content:
    """The PCIe generation and width that GPU and slot support; in red, with the lanes in use, where these are fewer."""
    if gpu.pcie_generation is None or gpu.pcie_width is None:
        return "?"
    now = gpu.pcie_width_now
    if now is not None and now < gpu.pcie_width:
        return f"gen{gpu.pcie_generation} x{now}/{gpu.pcie_width}", "red"
    return f"gen{gpu.pcie_generation} x{gpu.pcie_width}"


def _name_cell(gpu: Gpu) -> Content:
    """The name, with what is special about the GPU below it."""
    marks = [(f"\n{mark}", "red" if bad else "dim") for mark, bad in _marks(gpu)]
    return [(short_name(gpu.name), "red" if gpu.error else ""), *marks]


def _marks(gpu: Gpu) -> Iterator[tuple[str, bool]]:
    """What is special about a GPU, in a few words, and whether it is bad. The warnings give the details."""
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


def nodes(screen: Screen, topology: Topology) -> None:
    """The CPUs near the GPUs, one line for each NUMA node; nothing where the driver does not report them."""
    found: dict[tuple[int | None, str], list[int]] = {}
    for gpu in topology.gpus:
        if gpu.cpu_affinity is not None:
            found.setdefault((gpu.numa_node, gpu.cpu_affinity), []).append(gpu.index)
    for (node, cpus), gpus in found.items():
        screen.text(f"NUMA node {_known(node)}: CPUs {cpus}, GPU {', '.join(map(str, gpus))}", indent=2)


def group_rows(screen: Screen, topology: Topology, groups: Sequence[Group]) -> None:
    """The homogeneous groups with what their members have in common."""
    columns = [
        Column("Group", wraps=True),
        Column("GPUs", wraps=True),
        Column("GiB each", right=True),
        Column("CC"),
        Column("Links", wraps=True),
    ]
    rows = []
    for group in groups:
        capability = _capability(topology.gpu(group.indices[0]))
        links = sorted({link.label for link in topology.links_within(group.indices)})
        members = ", ".join(map(str, group.indices))
        rows.append([group.label, members, _gib(group.memory_total), capability, ", ".join(links) or "-"])
    screen.table(columns, rows)


def exclusions(screen: Screen, topology: Topology, selection: Selection) -> None:
    """The GPUs left out, with the reason; those of one model with the same reason share a line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for excluded in selection.excluded:
        known = topology.gpu(excluded.index).name
        name = f" {short_name(known)}" if known else ""
        alike.setdefault((name, excluded.reason), []).append(str(excluded.index))
    rows: list[list[Content]] = [
        [("not GPU", "dim"), [(f"{', '.join(dict.fromkeys(indices))}{name}: ", "dim"), (reason, "")]]
        for (name, reason), indices in alike.items()
    ]
    screen.table([Column(), Column(wraps=True)], rows, left=2, gap=1)


def environment(screen: Screen, settings: Sequence[Setting]) -> None:
    """NAME=value with its reason; variables that the user had set are marked `kept`."""
    rows: list[list[Content]] = [
        [
            (f"unset {setting.name}" if setting.unset else f"{setting.name}={setting.value}", "bold"),
            [("kept: ", "yellow") if setting.kept else ("", ""), (setting.reason, "")],
        ]
        for setting in settings
    ]
    wide = any("GPU-" in (setting.value or "") for setting in settings) and screen.width >= 2 * _VARIABLE - 4
    variable = Column("Variable", wraps=True, least=_VARIABLE if wide else 1, most=_VARIABLE)
    screen.table([variable, Column("Reason", wraps=True)], rows)


def host_facts(screen: Screen, host: Host) -> None:
    """CPUs, memory, /dev/shm and network of the host in a few lines."""
    screen.text(f"{host.hostname}: {host.cpu_name}" if host.cpu_name else host.hostname, indent=2)
    screen.text(
        f"{_count(host.usable_cpus, 'usable CPU')} (affinity and cgroup quota), "
        f"{_count(host.physical_cores, 'physical core')}, {_count(host.numa_nodes, 'NUMA node')}",
        indent=2,
    )
    shm = "" if host.shm_total is None else f", /dev/shm {_gib(host.shm_total)} GiB"
    memory = f"{_gib(host.memory_available)} GiB of memory available of {_gib(host.memory_total)}{shm}"
    screen.text(memory, indent=2)
    networks = [*host.interfaces, *(f"InfiniBand {name}" for name in host.infiniband)]
    screen.text(f"network: {', '.join(networks) or 'loopback only'}", indent=2)


def bullets(screen: Screen, lines: Sequence[str], mark: str = "!") -> None:
    """Sentences with a mark before each, wrapped with a hanging indent."""
    screen.table([Column(), Column(wraps=True)], [[(mark, "yellow"), line] for line in lines], left=2, gap=1)


def _gib(size: int | None) -> str:
    """Bytes as GiB with one decimal."""
    return "?" if size is None else f"{size / GIB:.1f}"


def _known(value: int | None) -> str:
    """A number, or "?"."""
    return "?" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    """`1 CPU`, `2 CPUs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
