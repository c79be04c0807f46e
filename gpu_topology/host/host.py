"""The host beside the GPUs: the CPUs and memory that this process may really use, /dev/shm, and the network.

Everything comes from /proc and /sys; `root` lets a test (or a bug report) replace the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddp_core import sysfs
from ddp_core.host_memory import control_groups, limit_and_left
from gpu_topology.host import virtualization
from gpu_topology.host.cpus import NumaNode, read_cpus
from gpu_topology.host.kernel_log import read_xids
from gpu_topology.host.nccl_conf import ConfiguredVariable, read_nccl_conf


@dataclass(frozen=True, slots=True)
class Host:
    """Memory in bytes. `usable_cpus` counts logical CPUs within affinity and cgroup quota; at least 1.

    usable_cores     the same in physical cores, None where the kernel does not distinguish hyperthreads
    usable_nodes     the NUMA nodes with a CPU that this process may use
    cpu_vendor       "GenuineIntel", "AuthenticAMD"; None where /proc/cpuinfo names none (Arm)
    iommu            names in /sys/class/iommu; empty when the kernel uses none, or shows none
    iommu_types      the distinct types of the GPUs' IOMMU groups ("DMA", "DMA-FQ" translate, "identity" does not)
    virtual_machine  the hypervisor's name, None on bare metal
    container        the container's kind ("docker", "kubernetes", ...), None outside of one
    nccl_conf        what NCCL's configuration files set
    xids             (PCI bus id without function, Xid): GPU errors in the kernel's log; () also if it is unreadable
    numactl          whether the program is on PATH; `numa_policy`: whether the kernel lets it work, None unknown
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
    numa_policy: bool | None = None
    cpu_vendor: str | None = None
    usable_cores: int | None = None
    usable_nodes: tuple[NumaNode, ...] = ()
    xids: tuple[tuple[str, int], ...] = ()

    def threads(self, ranks: int) -> int:
        """Threads for each of `ranks` processes: its share of the physical cores, where they are known; at least 1."""
        return max(1, (self.usable_cores or self.usable_cpus) // ranks)


def read_host(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Host:
    """Read the host. Never raises for a missing file: containers hide many of them."""
    groups = control_groups(root)
    cpus = read_cpus(root, groups)
    total, available = _memory(root, groups)
    shm_total, shm_free = _shm(root / "dev/shm")
    cpu = _cpu_info(root / "proc/cpuinfo")
    flags = frozenset((cpu.get("flags") or cpu.get("Features") or "").split())
    iommu = virtualization.read_iommu(root)
    numactl = virtualization.has_numactl(root, environ)
    return Host(
        hostname=os.uname().nodename,
        usable_cpus=cpus.usable,
        physical_cores=cpus.physical_cores,
        numa_nodes=cpus.nodes,
        memory_total=total,
        memory_available=available,
        shm_total=shm_total,
        shm_free=shm_free,
        interfaces=_interfaces(root / "sys/class/net"),
        infiniband=sysfs.entries(root / "sys/class/infiniband"),
        cpu_flags=flags,
        cpu_name=cpu.get("model name"),
        glibc=_is_glibc(),
        iommu=iommu,
        iommu_types=virtualization.read_iommu_types(root) if iommu else (),
        virtual_machine=virtualization.read_virtual_machine(root, flags),
        container=virtualization.read_container(root, environ),
        nccl_conf=read_nccl_conf(root, environ),
        numactl=numactl,
        numa_policy=virtualization.numactl_works() if numactl else None,
        cpu_vendor=cpu.get("vendor_id"),
        usable_cores=cpus.usable_cores,
        usable_nodes=cpus.usable_nodes,
        xids=read_xids(root),
    )


def _memory(root: Path, groups: tuple[Path, ...]) -> tuple[int, int]:
    """Total and available bytes; a cgroup limit lowers both."""
    lines = (sysfs.text(root / "proc/meminfo") or "").splitlines()
    kib = {words[0]: int(words[1]) for words in (line.replace(":", " ").split() for line in lines) if len(words) > 1}
    total = installed = kib.get("MemTotal", 0) * 1024
    available = kib.get("MemAvailable", kib.get("MemFree", 0)) * 1024
    for group in groups:
        found = limit_and_left(group)
        if found is not None and found[0] < installed:
            total, available = min(total, found[0]), min(available, found[1])
    return total, available


def _shm(folder: Path) -> tuple[int | None, int | None]:
    """(total, free) bytes of /dev/shm; None where there is none."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None, None
    return status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail


def _cpu_info(path: Path) -> dict[str, str]:
    """The fields of the first CPU in /proc/cpuinfo; reading all is slow on machines with hundreds of CPUs."""
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if not key.strip() and found:
                    break
                found[key.strip()] = value.strip()
    except OSError:
        pass
    return found


def _interfaces(folder: Path) -> tuple[str, ...]:
    """Network interfaces that are up, without loopback."""
    states = {name: sysfs.text(folder / name / "operstate") for name in sysfs.entries(folder) if name != "lo"}
    return tuple(name for name, state in states.items() if state == "up")


def _is_glibc() -> bool:
    """Whether the C library is glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):
        return False
