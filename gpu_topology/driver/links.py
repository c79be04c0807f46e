"""The links between GPUs: NVLinks direct and through NVSwitch, the PCIe path, and whether peer access works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from gpu_topology.driver.library import Device
from gpu_topology.topology import Gpu, Link, LinkLevel, PeerAccess

# NVML_NVLINK_MAX_LINKS of nvidia-ml-py 13.615. Older cards answer INVALID_ARGUMENT past their last link.
_MAX_LINKS = 36

# nvmlNvLinkDeviceType (nvml.h)
_REMOTE_GPU, _REMOTE_SWITCH = 0, 2

# Inside a virtual machine an NVSwitch has no bus id of its own (nvml.h, fabric-manager guide).
_HIDDEN_SWITCH = "FFFFFFFF:FF:FF.0"

# nvmlGpuTopologyLevel (nvml.h): 0 is two GPUs on one board, below that board's PCIe switch.
_LEVELS = {
    0: LinkLevel.PIX,
    10: LinkLevel.PIX,
    20: LinkLevel.PXB,
    30: LinkLevel.PHB,
    40: LinkLevel.NODE,
    50: LinkLevel.SYS,
}

# nvmlGpuP2PStatus (nvml.h); 6 is the driver's own "unknown".
_P2P = {
    0: "ok",
    1: "chipset-not-supported",
    2: "gpu-not-supported",
    3: "topology-not-supported",
    4: "disabled-by-regkey",
    5: "not-supported",
}

# nvmlGpuP2PCapsIndex (nvml.h) as numbers: in nvidia-ml-py the constant for READ is a tuple by mistake.
_READ, _WRITE, _NVLINK, _ATOMICS = 0, 1, 2, 3


@dataclass
class _NvLinks:
    """The active NVLinks of one GPU; `known` is False when the driver failed to tell where each of them leads."""

    peers: Counter[str] = field(default_factory=Counter)
    to_switch: int = 0
    known: bool = True

    def may_reach(self, other: _NvLinks) -> bool:
        """Whether unreported links could join the two: a link has two ends, or meets others at a switch."""
        return (not self.known and not other.known) or bool(
            (not self.known and other.to_switch) or (not other.known and self.to_switch)
        )


def read_links(gpus: Sequence[Gpu], devices: Sequence[Device]) -> tuple[Link, ...]:
    """One `Link` for each pair of GPUs that have not failed. `devices[i]` belongs to `gpus[i]`.

    Each NVLink is asked once, each kind of peer access once per pair and direction.
    """
    usable = [(gpu, device) for gpu, device in zip(gpus, devices, strict=True) if gpu.error is None]
    if len(usable) < 2:
        return ()
    buses = {None if gpu.pci_bus_id is None else _key(gpu.pci_bus_id) for gpu, _ in usable}
    nvlinks = {gpu.index: _nvlinks_of(device, buses) for gpu, device in usable}
    return tuple(_read_link(a, b, nvlinks) for a, b in combinations(usable, 2))


def _read_link(a: tuple[Gpu, Device], b: tuple[Gpu, Device], nvlinks: dict[int, _NvLinks]) -> Link:
    (gpu_a, device_a), (gpu_b, device_b) = a, b
    count = _count_between(gpu_a, gpu_b, nvlinks)
    ancestor = _ask_pair("nvmlDeviceGetTopologyCommonAncestor", device_a, device_b)
    pcie = None if ancestor is None else _LEVELS.get(ancestor)
    peer = PeerAccess(*(_both_ways(device_a, device_b, kind) for kind in (_READ, _WRITE, _NVLINK, _ATOMICS)))
    return Link(
        gpu_a.index,
        gpu_b.index,
        level=LinkLevel.NV if count else pcie,
        nvlinks=count,
        p2p=summary(peer),
        pcie_level=pcie,
        peer=None if peer == PeerAccess() else peer,
    )


def _nvlinks_of(device: Device, buses: Collection[str | None]) -> _NvLinks:
    """`buses`: the GPUs' bus ids as `_key` writes them; None among them for a GPU whose bus id is unknown."""
    found = _NvLinks()
    for link in range(_MAX_LINKS):
        active, problem = device.try_ask("nvmlDeviceGetNvLinkState", link)
        if problem == "NVML_ERROR_INVALID_ARGUMENT":
            break  # past the last link
        if problem == "NVML_ERROR_NOT_SUPPORTED":
            continue  # a card without NVLink, or a link that this board leaves out
        if problem is not None:
            found.known = False
            break
        if active == 1:
            _note_remote(device, link, buses, found)
    return found


def _note_remote(device: Device, link: int, buses: Collection[str | None], found: _NvLinks) -> None:
    kind = device.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link)
    if kind == _REMOTE_SWITCH:
        found.to_switch += 1
        return
    pci = device.ask("nvmlDeviceGetNvLinkRemotePciInfo", link)
    if pci is None:
        found.known = found.known and kind not in (None, _REMOTE_GPU)
        return
    bus_id = _key(pci.busId)
    if bus_id == _HIDDEN_SWITCH:
        found.to_switch += 1
    elif bus_id in buses:
        found.peers[bus_id] += 1
    elif kind is None or (kind == _REMOTE_GPU and None in buses):
        found.known = False  # a switch, or the GPU that does not tell its own bus id


def _key(bus_id: bytes | str) -> str:
    """A bus id that compares: NVML's eight-digit domain, upper case."""
    text = bus_id.decode(errors="replace") if isinstance(bus_id, bytes) else bus_id
    domain, _, rest = text.upper().partition(":")
    return f"{domain.zfill(8)}:{rest}"


def _count_between(a: Gpu, b: Gpu, nvlinks: dict[int, _NvLinks]) -> int | None:
    """NVLinks that join two GPUs: direct ones, else through NVSwitch as many as the end with fewer has."""
    of_a, of_b = nvlinks[a.index], nvlinks[b.index]
    direct = max(of_a.peers[_key(b.pci_bus_id or "")], of_b.peers[_key(a.pci_bus_id or "")])
    # A switch joins only the GPUs of one fabric partition.
    parted = a.fabric_cluster and b.fabric_cluster and a.fabric_cluster != b.fabric_cluster
    count = direct + (0 if parted else min(of_a.to_switch, of_b.to_switch))
    return None if count == 0 and not parted and of_a.may_reach(of_b) else count


def _ask_pair(function: str, first: Device, second: Device, *args: object) -> int | None:
    """A question about two GPUs; None without asking once either is lost."""
    if first.lost or second.lost:
        return None
    # An error names neither of the two, so it marks neither as lost: whoever it is says so when asked alone.
    answer: int | None = first.driver.ask(function, first.handle, second.handle, *args)
    return answer


def _both_ways(a: Device, b: Device, kind: int) -> tuple[str | None, str | None]:
    return _peer_status(a, b, kind), _peer_status(b, a, kind)


def _peer_status(first: Device, second: Device, kind: int) -> str | None:
    status = _ask_pair("nvmlDeviceGetP2PStatus", first, second, kind)
    return None if status is None else _P2P.get(status)


def summary(peer: PeerAccess) -> str | None:
    """ "ok" when read and write work both ways, as far as reported; else the first reason; None when unknown."""
    answers = (peer.read[0], peer.write[0], peer.read[1], peer.write[1])
    refused = [answer for answer in answers if answer not in (None, "ok")]
    if refused:
        return refused[0]
    return "ok" if any(answers) else None
