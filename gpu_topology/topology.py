"""Pure data: the GPUs of one machine and the links between them.

Memory is in bytes, utilization in percent, clocks in MHz. `None` always means "the driver did not report it",
which differs from "no" (`False`, `0`, an empty tuple).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

# More than any machine has.
MOST_GPUS = 64


class LinkLevel(StrEnum):
    """The path between two GPUs, named as `nvidia-smi topo -m` names it; nearest first."""

    NV = "NV"
    PIX = "PIX"
    PXB = "PXB"
    PHB = "PHB"
    NODE = "NODE"
    SYS = "SYS"

    @property
    def meaning(self) -> str:
        """One line for a legend, in nvidia-smi's words."""
        return _MEANING[self]


_MEANING = {
    LinkLevel.NV: "NVLink (NV4: a bonded set of 4 links)",
    LinkLevel.PIX: "at most one PCIe switch",
    LinkLevel.PXB: "several PCIe switches, without the host bridge",
    LinkLevel.PHB: "a PCIe host bridge (the CPU)",
    LinkLevel.NODE: "host bridges within one NUMA node",
    LinkLevel.SYS: "the interconnect between NUMA nodes",
}


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU. In a container the pid is the host's. `gpu_instance` is its MIG instance, if any.

    name        the program, without its folder; None where the driver does not report it
    mps_client  it computes through an MPS server, which is another of the GPU's processes
    """

    pid: int
    used_memory: int | None = None
    gpu_instance: int | None = None
    name: str | None = None
    mps_client: bool = False


@dataclass(frozen=True, slots=True)
class MigDevice:
    """One MIG slice: `profile` as CUDA names it ("3g.20gb"), memory in bytes."""

    uuid: str
    profile: str | None = None
    memory_total: int | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None
    memory_used: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver describes it; `index` is NVML's, which is PCI order.

    A GPU that is lost, does not answer or denies access is listed too: `error` says why; unread fields stay `None`.

    memory_total      bytes; the host's total where GPU and CPU share one memory (GB10, Thor, Orin)
    processes         compute processes; `graphics_processes` are those of a desktop or a renderer
    numa_node         the NUMA node nearest to the GPU; `cpu_affinity` lists its CPUs, "0-19,40-59"
    compute_mode      "default", "exclusive-process", "exclusive-thread" or "prohibited"
    pcie_generation   the most that GPU and slot support, like `pcie_width`; `..._now` is the present state (an idle
                      link drops its generation); `pcie_slot_width`: the most lanes of the port above, if sysfs shows it
    fabric_state      on NVSwitch machines with a fabric manager: "not-started", "in-progress", "completed", "degraded"
                      (completed, in poor health) or "failed"; `fabric_cluster` is "cluster UUID/clique": only GPUs of
                      the same cluster and clique reach each other through NVSwitch
    ecc_uncorrected   memory errors that ECC could not correct, since the driver was loaded
    memory_faults     "row-remap-failed", "row-remap-pending", "page-retirement-pending"; () when sound
    throttle          why clocks are held back now: "power-cap", "thermal", "hw-slowdown", "hw-thermal",
                      "hw-power-brake", "sync-boost"; () when they are not
    recovery          action that the driver asks for: "none", "reset", "bus-reset", "drain-and-reset", "drain-p2p",
                      "reboot", "recover-imex-domain"
    pcie_replays      transmissions over PCIe that had to be repeated, since the driver was loaded
    nvlink_errors     numbers of the NVLinks that repeated or recovered transmissions since then
    """

    index: int
    uuid: str | None = None
    name: str | None = None
    pci_bus_id: str | None = None
    memory_total: int | None = None
    memory_used: int | None = None
    compute_capability: tuple[int, int] | None = None
    numa_node: int | None = None
    mig_mode: bool | None = None
    utilization: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    mig_devices: tuple[MigDevice, ...] = ()
    display_active: bool | None = None
    compute_mode: str | None = None
    cores: int | None = None
    clock_mhz: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    fabric_state: str | None = None
    fabric_cluster: str | None = None
    cpu_affinity: str | None = None
    pcie_generation_now: int | None = None
    pcie_width_now: int | None = None
    pcie_slot_width: int | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    memory_faults: tuple[str, ...] | None = None
    throttle: tuple[str, ...] | None = None
    recovery: str | None = None
    pcie_replays: int | None = None
    nvlink_errors: tuple[int, ...] | None = None
    graphics_processes: tuple[GpuProcess, ...] | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """The name for a sentence: "NVIDIA A30", or "GPU 3" where the driver reports no name."""
        return self.name or f"GPU {self.index}"


def short_name(name: str | None) -> str:
    """A model without the maker's names: "RTX A5000", "V100-SXM2-32GB"; "?" where the driver did not report it."""
    for prefix in ("NVIDIA ", "GeForce ", "Tesla "):
        name = (name or "?").removeprefix(prefix)
    return name or "?"


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """The driver's answer on each kind of peer access, as (a to b, b to a): "ok" or why not; None unknown."""

    read: tuple[str | None, str | None] = (None, None)
    write: tuple[str | None, str | None] = (None, None)
    nvlink: tuple[str | None, str | None] = (None, None)
    atomics: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True, slots=True)
class Link:
    """The connection between GPUs `a` < `b`.

    level       the nearest path: NV when they share NVLinks (directly or through NVSwitch), else the PCIe level
    nvlinks     how many NVLinks; 0 none, None unknown
    p2p         "ok", or why peer access does not work ("chipset-not-supported", "not-supported", ...), None unknown
    pcie_level  the PCIe path alone, also where NVLink is nearer
    peer        peer access by kind and direction, which `p2p` sums up; None where none was reported
    """

    a: int
    b: int
    level: LinkLevel | None = None
    nvlinks: int | None = None
    p2p: str | None = None
    pcie_level: LinkLevel | None = None
    peer: PeerAccess | None = None

    @property
    def label(self) -> str:
        """nvidia-smi's notation: "NV4", "PHB", "SYS"; "?" where unknown."""
        if self.level is None:
            return "?"
        return f"NV{self.nvlinks or '?'}" if self.level is LinkLevel.NV else self.level.value

    @property
    def path(self) -> LinkLevel | None:
        """The PCIe path, also of a pair with NVLink; None where it is not known."""
        path = self.pcie_level or self.level
        return None if path is LinkLevel.NV else path


@dataclass(frozen=True)
class Topology:
    """Everything read from the driver at one moment. `links` holds each pair once."""

    gpus: tuple[Gpu, ...] = ()
    links: tuple[Link, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def versions(self) -> str:
        """The versions for a heading: "driver 580.95.05, CUDA up to 13.0"; unknown ones are left out."""
        known = (("driver", self.driver_version), ("CUDA up to", self.cuda_version))
        return ", ".join(f"{name} {version}" for name, version in known if version)

    @property
    def identical(self) -> bool:
        """Whether the GPUs are alike, so that CUDA's own order, the fastest first, is PCI order. Two cards of one name
        may differ in cores (RTX 3080 of 10 and 12 GB, GTX 1060 of 3 and 6 GB)."""
        return len({(gpu.name, gpu.cores) for gpu in self.gpus}) < 2

    def gpu(self, index: int) -> Gpu:
        """The GPU with this NVML index; KeyError when there is none."""
        return self._gpus[index]

    def link(self, a: int, b: int) -> Link:
        """The link between two GPUs in either order; a link with all fields unknown where none was read."""
        pair = min(a, b), max(a, b)
        return self._links.get(pair) or Link(*pair)

    def for_programs(self) -> Topology:
        """The topology as CUDA programs see it: a GPU in MIG mode has no NVLink or peer access (MIG user guide)."""
        sliced = {gpu.index for gpu in self.gpus if gpu.mig_mode}
        links = (
            replace(link, level=link.path, nvlinks=0, p2p="not-supported") if sliced & {link.a, link.b} else link
            for link in self.links
        )
        return replace(self, links=tuple(links)) if sliced else self

    @cached_property
    def _gpus(self) -> dict[int, Gpu]:
        """NVML index -> GPU."""
        return {gpu.index: gpu for gpu in self.gpus}

    @cached_property
    def _links(self) -> dict[tuple[int, int], Link]:
        """(lower index, higher index) -> link."""
        return {(link.a, link.b): link for link in self.links}

    def links_within(self, indices: tuple[int, ...]) -> Iterator[Link]:
        """The links with both ends in `indices`."""
        chosen = set(indices)
        return (link for link in self.links if link.a in chosen and link.b in chosen)
