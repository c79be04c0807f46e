"""Notes on the environment: what is in doubt, what is deliberately not set, and what no variable can fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from gpu_topology.environment.facts import Facts
from gpu_topology.host.host import Host
from gpu_topology.select.select import Selection
from gpu_topology.topology import Topology

if TYPE_CHECKING:
    from gpu_topology.verify_cache import Verdict

# With a smaller /dev/shm, DataLoader workers and NCCL's shared-memory transport can die of "Bus error".
_SHM_FLOOR = 1 * 2**30

# How to make /dev/shm larger, by the kind of container: None is no known container, any other gets _SHM_REMEDY.
_SHM_REMEDIES = {
    "kubernetes": "mount an emptyDir with `medium: Memory` at /dev/shm in the pod",
    None: "in a container, start it with `--shm-size=8g` or `--ipc=host`; else `mount -o remount,size=8g /dev/shm`",
}
_SHM_REMEDY = "start the container with `--shm-size=8g` or `--ipc=host`"

_FABRIC_STOPPED = ("not-started", "in-progress")


class Named(Protocol):
    """A variable of the environment, as far as a note needs it."""

    @property
    def name(self) -> str:
        """The variable."""

    @property
    def value(self) -> str:
        """Its value."""


def needs_verify(topology: Topology, selection: Selection, host: Host) -> str | None:
    """Why peer access that the driver reports as working may still fail, in one line; None where it is not in doubt.

    Peer requests over PCIe that an IOMMU translates, or that ACS redirects as a hypervisor demands, can hang or arrive
    corrupted although the driver's status is OK (NCCL user guide, Troubleshooting, PCI Access Control Services). NVLink
    passes neither. ACS itself can be read by root alone.
    """
    links = Facts(topology, selection, host).peers_over_pcie
    evidence = _translation(host)
    if not links or evidence is None:
        return None
    pairs = ", ".join(f"{link.a}-{link.b}" for link in links[:4]) + (", ..." if len(links) > 4 else "")
    return (
        f"peer access over PCIe (GPUs {pairs}) needs verify: the driver reports ok, but {evidence}, and then data"
        " can hang or arrive corrupted"
    )


def _translation(host: Host) -> str | None:
    """Evidence that peer requests over PCIe are translated or redirected; None without any."""
    if host.iommu and set(host.iommu_types) != {"identity"}:
        types = f"of type {', '.join(host.iommu_types)}" if host.iommu_types else "of unknown type"
        return f"an IOMMU is on ({', '.join(host.iommu[:4])}; groups {types})"
    if host.virtual_machine is not None:
        return f"this is a virtual machine ({host.virtual_machine}), and its hypervisor keeps an IOMMU and ACS on"
    return None


def left_unset(
    topology: Topology, selection: Selection, host: Host, settings: Sequence[Named] = ()
) -> tuple[tuple[str, str], ...]:
    """(name, reason) of variables that are often set without need and are not set here."""
    facts = Facts(topology, selection, host)
    if len(selection.indices) < 2:
        return ()
    folklore = (
        ("NCCL_P2P_DISABLE", _why_no_p2p_disable(facts)),
        (
            "NCCL_IB_DISABLE",
            "InfiniBand is used" if host.infiniband else "NCCL sees itself that there is no InfiniBand",
        ),
        ("CUDA_LAUNCH_BLOCKING", "for debugging only"),
    )
    named = {setting.name for setting in settings}
    return tuple((name, why) for name, why in folklore if name not in named)


def _why_no_p2p_disable(facts: Facts) -> str:
    """Why NCCL_P2P_DISABLE is not set."""
    if not facts.peer_links and facts.has_mig:
        return "MIG slices have no peer access to turn off"
    if facts.refused_over_pcie:
        return "redundant: NCCL sees itself that there is no peer access over PCIe"
    if any(link.p2p is None for link in facts.links):
        return "NCCL asks the driver itself"
    return "the driver reports working peer access"


def notes(
    topology: Topology,
    selection: Selection,
    host: Host,
    *,
    settings: Sequence[Named] = (),
    verdict: Verdict | None = None,
) -> tuple[str, ...]:
    """What is deliberately not set, what is in doubt, and what the environment cannot fix.

    `settings`: the environment of the plan; `verdict`: what `verify` found on these GPUs.
    """
    facts = Facts(topology, selection, host, verdict=verdict)
    off = {setting.name for setting in settings if setting.value == "1"}
    return (
        *_about_peers(facts, peers_off="NCCL_P2P_DISABLE" in off),
        *_about_fabric(facts),
        *_about_xids(facts),
        *_about_shm(facts),
    )


def _about_peers(facts: Facts, *, peers_off: bool) -> Iterator[str]:
    """Pairs without peer access, and what follows for NCCL."""
    if facts.refused_over_pcie:
        unset = "is" if peers_off else "would be"
        yield (
            f"no peer access over PCIe ({', '.join(facts.refused_over_pcie)}): NCCL uses host memory by itself,"
            f" NCCL_P2P_DISABLE {unset} redundant{'' if peers_off else ' and stays unset'}"
        )
    broken = [{link.a, link.b} for link in facts.broken_nvlinks]
    shared = sorted(set.intersection(*broken)) if len(broken) > 1 else []
    if shared:
        yield (
            f"every NVLink without peer access ends at GPU {shared[0]}: without it (--exclude {shared[0]}) the others"
            " keep theirs, and NCCL_P2P_DISABLE is not needed"
        )
    verdict = facts.verdict
    if verdict is not None and facts.on_gpu:
        when = verdict.when[:10] or "an earlier day"
        if not verdict.ok and not verdict.settings:
            remedy = f"; {verdict.remedy}" if verdict.remedy else ""
            yield f"verify failed on these GPUs on {when}: {verdict.problem or 'no reason was kept'}{remedy}"
        elif verdict.ok and facts.peers_over_pcie and _translation(facts.host):
            yield f"peer access over PCIe was verified on {when}, with this driver and NCCL: data arrived whole"
        yield from (f"verify on {when}: {concern}" for concern in verdict.concerns)
        return
    doubt = None if peers_off else needs_verify(facts.topology, facts.selection, facts.host)
    if doubt:
        yield f"{doubt}; run `python -m gpu_topology verify`"


def _about_fabric(facts: Facts) -> Iterator[str]:
    """An NVSwitch fabric that is not up."""
    chosen = [gpu for gpu in facts.topology.gpus if gpu.index in facts.selection.indices]
    stopped = [str(gpu.index) for gpu in chosen if gpu.fabric_state in _FABRIC_STOPPED]
    if stopped:
        yield (
            f"the NVSwitch fabric of GPU {', '.join(stopped)} is not up: CUDA will not start there;"
            " run `systemctl start nvidia-fabricmanager`"
        )
    for state in ("failed", "degraded"):
        wrong = [str(gpu.index) for gpu in chosen if gpu.fabric_state == state]
        if wrong:
            yield (
                f"the NVSwitch fabric of GPU {', '.join(wrong)} has {state}: see Fabric in `nvidia-smi -q`;"
                " restart nvidia-fabricmanager (in an NVL72 rack, the fabric service of the switch trays)"
            )


def _about_xids(facts: Facts) -> Iterator[str]:
    """Xid errors of the chosen GPUs in the kernel's log; a GPU that has fallen off the bus is never chosen."""
    for index in dict.fromkeys(facts.selection.indices):
        bus = (facts.topology.gpu(index).pci_bus_id or "").rpartition(".")[0]
        if numbers := [str(number) for one, number in facts.host.xids if one == bus]:
            yield (
                f"GPU {index} has had Xid {', '.join(numbers)} since boot: `dmesg | grep -i xid` shows when, NVIDIA's"
                " page on Xid errors what it means"
            )


def _about_shm(facts: Facts) -> Iterator[str]:
    """A /dev/shm that is too small for several ranks."""
    total = facts.host.shm_total
    if total is not None and total < _SHM_FLOOR and len(facts.selection.indices) > 1:
        container = facts.host.container
        yield (
            f"/dev/shm has {total / 2**20:.0f} MiB, which NCCL and DataLoader workers can exhaust;"
            f" {_SHM_REMEDIES.get(container, _SHM_REMEDY)}"
        )
