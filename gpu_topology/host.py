"""The host beside the GPUs: the CPUs and memory that this process may really use, /dev/shm, and the network.

Everything comes from /proc and /sys; `root` lets a test (or a bug report) stand in for the machine.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ConfiguredVariable:
    """A variable that one of NCCL's own configuration files sets, and the file."""

    name: str
    value: str
    file: str


@dataclass(frozen=True, slots=True)
class Host:
    """Memory in bytes. `usable_cpus` counts logical CPUs within affinity and cgroup quota; at least 1.

    iommu            names in /sys/class/iommu; empty when the kernel uses none, or shows none
    iommu_types      the distinct types of IOMMU groups ("DMA", "DMA-FQ" translate, "identity" does not)
    virtual_machine  the hypervisor's name, None on bare metal
    container        the container's kind, None outside of one
    nccl_conf        what NCCL's configuration files set
    numactl          whether the program is on PATH
    """

    hostname: str
    usable_cpus: int
    physical_cores: int
    numa_nodes: int
    memory_total: int
    memory_available: int
    shm_total: int | None = None
    shm_free: int | None = None
    interfaces: tuple[str, ...] = ()
    infiniband: tuple[str, ...] = ()
    cpu_flags: frozenset[str] = frozenset()
    cpu_name: str | None = None
    glibc: bool = False
    iommu: tuple[str, ...] = ()
    iommu_types: tuple[str, ...] = ()
    virtual_machine: str | None = None
    container: str | None = None
    nccl_conf: tuple[ConfiguredVariable, ...] = ()
    numactl: bool = False


def read_host(root: Path = Path("/")) -> Host:
    """Read the host. Never raises for a missing file: containers hide many of them."""
    groups = _cgroups(root)
    total, available = _memory(root, groups)
    shm_total, shm_free = _shm(root / "dev/shm")
    flags, name = _cpu_info(root / "proc/cpuinfo")
    return Host(
        hostname=socket.gethostname(),
        usable_cpus=_usable_cpus(groups),
        physical_cores=_physical_cores(root / "sys/devices/system/cpu"),
        numa_nodes=max(1, len(list((root / "sys/devices/system/node").glob("node[0-9]*")))),
        memory_total=total,
        memory_available=available,
        shm_total=shm_total,
        shm_free=shm_free,
        interfaces=_interfaces(root / "sys/class/net"),
        infiniband=_names(root / "sys/class/infiniband"),
        cpu_flags=flags,
        cpu_name=name,
        glibc=_is_glibc(),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _names(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in folder.iterdir()))
    except OSError:
        return ()


def _cgroups(root: Path) -> tuple[Path, ...]:
    """The control-group folders that bind this process, from its own up to the mount: every level's limit counts."""
    folders: list[Path] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        # In a container's own namespace the path may not exist below the mount: then the mount itself is ours.
        parts = Path(path.lstrip("/")).parts
        folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1) if ".." not in parts[:depth]]
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def _usable_cpus(groups: tuple[Path, ...]) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in map(_cpu_quota, groups) if quota is not None]
    return max(1, int(min([cpus, *quotas])))


def _cpu_quota(group: Path) -> float | None:
    """CPUs that a group's quota is worth: cpu.max of version 2, cpu.cfs_* of version 1."""
    words = (_text(group / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _physical_cores(cpus: Path) -> int:
    cores = {_text(path) for path in cpus.glob("cpu[0-9]*/topology/thread_siblings_list")} - {None}
    return len(cores) or os.cpu_count() or 1


def _memory(root: Path, groups: tuple[Path, ...]) -> tuple[int, int]:
    """Total and available bytes; a cgroup limit lowers both."""
    lines = (_text(root / "proc/meminfo") or "").splitlines()
    kib = {words[0]: int(words[1]) for words in (line.replace(":", " ").split() for line in lines) if len(words) > 1}
    total = kib.get("MemTotal", 0) * 1024
    available = kib.get("MemAvailable", kib.get("MemFree", 0)) * 1024
    for group in groups:
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None or limit >= total:
            continue
        total = limit
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        available = min(available, max(0, limit - used + _reclaimable(group)))
    return total, available


def _reclaimable(group: Path) -> int:
    """Page cache that the group can drop: it counts as used and is free in effect."""
    for line in (_text(group / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _shm(folder: Path) -> tuple[int | None, int | None]:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None, None
    return status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail


def _cpu_info(path: Path) -> tuple[frozenset[str], str | None]:
    """Flags and model name of the first CPU; reading on is slow on machines with hundreds of them."""
    flags: frozenset[str] = frozenset()
    name = None
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    flags = frozenset(value.split())
                elif key.strip() == "model name":
                    name = value.strip()
                elif not key.strip() and flags:
                    break
    except OSError:
        pass
    return flags, name


def _interfaces(folder: Path) -> tuple[str, ...]:
    """Network interfaces that are up, without loopback."""
    states = {name: _text(folder / name / "operstate") for name in _names(folder) if name != "lo"}
    return tuple(name for name, state in states.items() if state == "up")


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):
        return False
