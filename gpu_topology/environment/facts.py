"""The input of the environment's rules: one machine, one selection, one host, the user's own variables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_topology.host.host import Host
from gpu_topology.select.select import Selection
from gpu_topology.select.visible import parse_visible
from gpu_topology.topology import Link, LinkLevel, Topology

if TYPE_CHECKING:
    from gpu_topology.verify_cache import Verdict

# NCCL calls both PHB and NODE of NVML PHB, a path through the CPU (src/graph/topo.h).
_NEAR = (LinkLevel.PIX, LinkLevel.PXB)
_FAR = (LinkLevel.PHB, LinkLevel.NODE, LinkLevel.SYS)


def peer_reach(gpus: int, host: Host) -> tuple[LinkLevel, ...]:
    """The PCIe levels over which NCCL uses peer access by default: up to PXB; any for two GPUs on an AMD CPU.

    Source: NCCL src/graph/paths.cc, ncclTopoCheckP2p. The GPUs that count are those of the communicator on this node.
    """
    return (*_NEAR, *_FAR) if host.cpu_vendor == "AuthenticAMD" and gpus <= 2 else _NEAR


@dataclass(frozen=True, slots=True)
class Given:
    """A value that the user or administrator has set; `file` is None for the environment itself."""

    value: str
    file: str | None = None

    @property
    def origin(self) -> str:
        """Where the value was set, for a sentence: "set by you", "set in /etc/nccl.conf"."""
        return f"set in {self.file}" if self.file else "set by you"


@dataclass(frozen=True, slots=True)
class Facts:
    """The input of a rule. `ranks` is the number of processes on this node.

    interface  network interface on which the ranks meet, where it was chosen: "lo" on one node, its name on several
    nodes      number of machines that take part
    verdict    what `verify` found on these GPUs
    bound      whether ranks are bound to NUMA nodes where that is possible
    trainer    whether the bundled trainer runs; some tuning suits only its training loop
    """

    topology: Topology
    selection: Selection
    host: Host
    ranks: int = 1
    environ: Mapping[str, str] | None = None
    interface: str | None = None
    nodes: int = 1
    verdict: Verdict | None = None
    bound: bool = True
    trainer: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether the plan is for GPUs."""
        return bool(self.selection.indices)

    @property
    def has_mig(self) -> bool:
        """Whether a chosen device is a MIG slice."""
        return any(uuid.startswith("MIG-") for uuid in self.selection.uuids)

    @property
    def given(self) -> dict[str, Given]:
        """The user's variables by name; those of NCCL's files count where the environment has none, as for NCCL."""
        files = {variable.name: Given(variable.value, variable.file) for variable in self.host.nccl_conf}
        return {**files, **{name: Given(value) for name, value in (self.environ or {}).items()}}

    def is_on(self, name: str) -> bool:
        """Whether the user has set a switch to 1."""
        given = self.given.get(name)
        return given is not None and given.value == "1"

    @property
    def counts_differ(self) -> bool:
        """Whether CUDA may number GPUs differently from the driver: another order, or some that it cannot open."""
        order = self.given.get("CUDA_DEVICE_ORDER", Given("PCI_BUS_ID"))
        return order.value != "PCI_BUS_ID" or any(gpu.error is not None or gpu.mig_mode for gpu in self.topology.gpus)

    @property
    def by_index(self) -> bool:
        """Whether the chosen GPUs are named by index rather than by UUID."""
        return self.on_gpu and not self.has_mig and not self.counts_differ

    @property
    def devices(self) -> str:
        """The value for CUDA_VISIBLE_DEVICES."""
        named = map(str, self.selection.indices) if self.by_index else self.selection.uuids
        return ",".join(named)

    @property
    def devices_in_words(self) -> str:
        """The chosen devices, which may be fewer than the group: "NVIDIA A30 x 2"."""
        names: Counter[str] = Counter()
        for index, uuid in zip(self.selection.indices, self.selection.uuids, strict=True):
            gpu = self.topology.gpu(index)
            profiles = [mig.profile or "slice" for mig in gpu.mig_devices if mig.uuid == uuid]
            names[" MIG ".join([gpu.label, *profiles])] += 1
        return " + ".join(f"{name} x {count}" for name, count in names.items())

    @property
    def mask_names_the_same(self) -> bool:
        """Whether the user's own CUDA_VISIBLE_DEVICES names the chosen devices in the chosen order."""
        visible = parse_visible(self.given["CUDA_VISIBLE_DEVICES"].value, self.topology.gpus)
        if visible.by_index and self.counts_differ:
            return False
        return [device.uuid for device in visible.named] == list(self.selection.uuids)

    @property
    def links(self) -> tuple[Link, ...]:
        """The links among the chosen GPUs, in the order of their indices."""
        links = self.topology.links_within(self.selection.indices)
        return tuple(sorted(links, key=lambda link: (link.a, link.b)))

    @property
    def peer_links(self) -> tuple[Link, ...]:
        """The links that peer access could use. GPUs in MIG mode have none by design (MIG user guide)."""
        sliced = {gpu.index for gpu in self.topology.gpus if gpu.mig_mode}
        return tuple(link for link in self.links if not sliced & {link.a, link.b})

    @property
    def broken_nvlinks(self) -> tuple[Link, ...]:
        """The chosen pairs that share NVLinks although the driver reports no peer access."""
        return tuple(link for link in self.peer_links if link.level is LinkLevel.NV and link.p2p not in (None, "ok"))

    @property
    def refused_over_pcie(self) -> tuple[str, ...]:
        """Why peer access over PCIe does not work, each reason once."""
        statuses = {link.p2p for link in self.peer_links if link.level is not LinkLevel.NV}
        return tuple(sorted(status for status in statuses if status not in (None, "ok")))

    @property
    def peers_over_pcie(self) -> tuple[Link, ...]:
        """The pairs between which NCCL would move data by peer access over PCIe."""
        reach = peer_reach(len(set(self.selection.indices)), self.host)
        return tuple(link for link in self.peer_links if link.level in reach and link.p2p == "ok")
