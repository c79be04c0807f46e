"""The CPUs that this process may really use: logical ones, physical cores, and the NUMA nodes they belong to.

The affinity mask (set by cpusets and batch systems) limits which CPUs, a cgroup quota how many at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_core import sysfs


@dataclass(frozen=True, slots=True)
class NumaNode:
    """A NUMA node on which this process may run. `cores`: usable physical cores; `socket`: the CPU package."""

    index: int
    socket: int | None
    cores: int


@dataclass(frozen=True, slots=True)
class Cpus:
    """`usable`: logical CPUs; `usable_cores`: physical ones, None where the kernel does not distinguish them.

    `physical_cores` and `nodes` are those of the machine, `usable_nodes` those with a CPU that this process may use.
    """

    usable: int
    usable_cores: int | None
    physical_cores: int
    nodes: int
    usable_nodes: tuple[NumaNode, ...]


def read_cpus(root: Path, groups: Sequence[Path]) -> Cpus:
    """Read the CPUs below `root`; `groups` are the control groups with quotas that limit this process."""
    allowed = _affinity()
    quotas = [quota for quota in map(_quota, groups) if quota is not None]
    cores = _cores(root / "sys/devices/system/cpu")
    ours = [core for core in cores if core & allowed]
    return Cpus(
        usable=max(1, int(min([len(allowed), *quotas]))),
        usable_cores=max(1, int(min([len(ours), *quotas]))) if ours else None,
        physical_cores=len(cores) or os.cpu_count() or 1,
        nodes=max(1, len(_node_folders(root))),
        usable_nodes=_nodes(root, allowed, ours),
    )


def parse_cpu_list(text: str) -> frozenset[int]:
    """CPU numbers from the kernel's notation: "0-3,8". Parts that are not numbers are ignored."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def _affinity() -> frozenset[int]:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _quota(group: Path) -> float | None:
    """CPUs that a group's quota is worth: cpu.max of version 2, cpu.cfs_* of version 1."""
    words = (sysfs.text(group / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota, period = sysfs.number(group / "cpu.cfs_quota_us"), sysfs.number(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _cores(folder: Path) -> list[frozenset[int]]:
    """The logical CPUs of each physical core. One file per core is read: it names the core's other threads too."""
    cores: list[frozenset[int]] = []
    seen: set[int] = set()
    for name in sorted(sysfs.entries(folder), key=lambda name: (len(name), name)):
        number = name.removeprefix("cpu")
        if not number.isdecimal() or int(number) in seen:
            continue
        core = parse_cpu_list(sysfs.text(folder / name / "topology/thread_siblings_list") or "")
        if core:
            cores.append(core)
            seen |= core
    return cores


def _node_folders(root: Path) -> list[Path]:
    """The folders of the NUMA nodes in sysfs."""
    return list((root / "sys/devices/system/node").glob("node[0-9]*"))


def _nodes(root: Path, allowed: frozenset[int], cores: Sequence[frozenset[int]]) -> tuple[NumaNode, ...]:
    """The usable NUMA nodes. Nodes with only memory (Grace's GPUs, CXL) have no CPU and are left out."""
    found = []
    for folder in _node_folders(root):
        cpus = parse_cpu_list(sysfs.text(folder / "cpulist") or "") & allowed
        if cpus:
            socket = sysfs.number(root / f"sys/devices/system/cpu/cpu{min(cpus)}/topology/physical_package_id")
            count = sum(1 for core in cores if core & cpus) or len(cpus)
            found.append(NumaNode(int(folder.name.removeprefix("node")), socket, count))
    return tuple(sorted(found, key=lambda node: node.index))
