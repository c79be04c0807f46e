"""The links between GPUs: NVLinks direct and through NVSwitch, the PCIe path, and whether peer access works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from gpu_topology.driver.library import LINKS_TO_SWITCHES, LOST, MAX_LINKS, NVLINK_STATE, Device
from gpu_topology.topology import Gpu, Link, LinkLevel, PeerAccess

# Up to this number of GPUs, every kind of peer access is read for every pair, in both directions.
_ALL_ASKED = 4

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

# nvmlGpuP2PCapsIndex (nvml.h) for read, write, NVLink, atomics; in nvidia-ml-py the constant for READ is a tuple.
_KINDS = (0, 1, 2, 3)


@dataclass
class _NvLinks:
    """The active NVLinks of one GPU; `known` is False where the driver failed to report the other end of any."""

    peers: Counter[str] = field(default_factory=Counter)
    to_switch: int = 0
    known: bool = True

    def may_reach(self, other: _NvLinks) -> bool:
        """Whether unreported links could join the two: directly if both have some, or at a switch of the other."""
        return (not self.known and not other.known) or bool(
            (not self.known and other.to_switch) or (not other.known and self.to_switch)
        )


def read_links(gpus: Sequence[Gpu], devices: Sequence[Device]) -> tuple[Link, ...]:
    """One `Link` for each pair of GPUs that have not failed. `devices[i]` belongs to `gpus[i]`.

    With more than four GPUs, peer access is read in one direction and taken for both; and for a pair like an earlier
    one (models, PCIe path, NVLink or not, and status for reads) the other kinds are copied from that.
    """
    usable = [(gpu, device) for gpu, device in zip(gpus, devices, strict=True) if gpu.error is None]
    if len(usable) < 2:
        return ()
    buses = {None if gpu.pci_bus_id is None else _key(gpu.pci_bus_id) for gpu, _ in usable}
    nvlinks = {gpu.index: _nvlinks_of(device, buses) for gpu, device in usable}
    known: dict[object, PeerAccess] | None = {} if len(usable) > _ALL_ASKED else None
    return tuple(_read_link(a, b, nvlinks, known) for a, b in combinations(usable, 2))


def _read_link(
    a: tuple[Gpu, Device], b: tuple[Gpu, Device], nvlinks: dict[int, _NvLinks], known: dict[object, PeerAccess] | None
) -> Link:
    """The connection of two GPUs: NVLinks, PCIe path and peer access."""
    (gpu_a, device_a), (gpu_b, device_b) = a, b
    count = _count_between(gpu_a, gpu_b, nvlinks)
    ancestor = _ask_pair("nvmlDeviceGetTopologyCommonAncestor", device_a, device_b)
    pcie = None if ancestor is None else _LEVELS.get(ancestor)
    models = frozenset((gpu_a.name, gpu_b.name))
    peer = _peer_access(device_a, device_b, known, (models, pcie, count and count > 0))
    return Link(
        gpu_a.index,
        gpu_b.index,
        level=LinkLevel.NV if count else pcie,
        nvlinks=count,
        p2p=summary(peer),
        pcie_level=pcie,
        peer=None if peer == PeerAccess() else peer,
    )


def _peer_access(a: Device, b: Device, known: dict[object, PeerAccess] | None, alike: tuple[object, ...]) -> PeerAccess:
    """The peer access of a pair; with `known`, all kinds are read once for pairs with equal `alike` and read status."""
    if known is None:
        return PeerAccess(*((_peer_status(a, b, kind), _peer_status(b, a, kind)) for kind in _KINDS))
    read = _peer_status(a, b, _KINDS[0])
    key = (read, *alike)
    if key not in known:
        statuses = [read, *(_peer_status(a, b, kind) for kind in _KINDS[1:])]
        known[key] = PeerAccess(*((status, status) for status in statuses))
    return known[key]


def _nvlinks_of(device: Device, buses: Collection[str | None]) -> _NvLinks:
    """The NVLinks of one GPU. `buses`: the GPUs' bus ids as `_key` writes them, with None for an unknown one."""
    found = _NvLinks()
    switched, states = _link_states(device)
    for link, active in states:
        if active is None:
            found.known = False
        elif active and (switched or found.to_switch):  # no board has links to switches and to GPUs
            found.to_switch += 1
        elif active:
            _note_remote(device, link, buses, found)
    return found


def _link_states(device: Device) -> tuple[bool, list[tuple[int, bool | None]]]:
    """Whether the links are known to lead to switches, and (link, active) for each existing link; active is None for
    the last one where the driver fails to report it.

    Uses fields, as NCCL does with new drivers; a driver that reports no active link this way is asked link by link.
    """
    states = ((link, device.field(NVLINK_STATE, link)) for link in range(MAX_LINKS))
    told: list[tuple[int, bool | None]] = [(link, state == 1) for link, state in states if state is not None]
    if any(active for _, active in told):
        return bool(device.field(LINKS_TO_SWITCHES)), told
    first, problem = device.try_ask("nvmlDeviceGetNvLinkState", 0)
    if problem == "NVML_ERROR_INVALID_ARGUMENT":
        return False, []
    if problem not in (None, "NVML_ERROR_NOT_SUPPORTED"):
        return False, [(0, None)]
    # A card without NVLink does not support the question for link 0; a board may leave out others.
    return False, [(0, first == 1), *_one_by_one(device)] if problem is None else []


def _one_by_one(device: Device) -> Iterator[tuple[int, bool | None]]:
    """(link, active or None) for the links after the first, up to the last that the driver knows."""
    for link in range(1, MAX_LINKS):  # older cards answer INVALID_ARGUMENT past their last link
        active, problem = device.try_ask("nvmlDeviceGetNvLinkState", link)
        if problem == "NVML_ERROR_INVALID_ARGUMENT":
            return
        if problem not in (None, "NVML_ERROR_NOT_SUPPORTED"):
            yield link, None
            return
        yield link, active == 1


def _note_remote(device: Device, link: int, buses: Collection[str | None], found: _NvLinks) -> None:
    """Note which GPU or switch is at the other end of one NVLink."""
    pci = device.ask("nvmlDeviceGetNvLinkRemotePciInfo", link)
    bus_id = None if pci is None else _key(pci.busId)
    if bus_id is not None and bus_id in buses:
        found.peers[bus_id] += 1
        return
    if bus_id == _HIDDEN_SWITCH:
        found.to_switch += 1
        return
    kind = device.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link)
    if kind == _REMOTE_SWITCH:
        found.to_switch += 1
    elif kind is None or (kind == _REMOTE_GPU and (pci is None or None in buses)):
        found.known = False  # a switch, or a GPU with an unknown bus id


def _key(bus_id: bytes | str) -> str:
    """A bus id in one form for comparison: eight-digit domain as in NVML, upper case."""
    text = bus_id.decode(errors="replace") if isinstance(bus_id, bytes) else bus_id
    domain, _, rest = text.upper().partition(":")
    return f"{domain.zfill(8)}:{rest}"


def _count_between(a: Gpu, b: Gpu, nvlinks: dict[int, _NvLinks]) -> int | None:
    """Number of NVLinks that join two GPUs: direct ones, and through NVSwitch as many as the GPU with fewer has."""
    of_a, of_b = nvlinks[a.index], nvlinks[b.index]
    direct = max(of_a.peers[_key(b.pci_bus_id or "")], of_b.peers[_key(a.pci_bus_id or "")])
    # A switch joins only the GPUs of one fabric partition.
    parted = a.fabric_cluster and b.fabric_cluster and a.fabric_cluster != b.fabric_cluster
    count = direct + (0 if parted else min(of_a.to_switch, of_b.to_switch))
    return None if count == 0 and not parted and of_a.may_reach(of_b) else count


def _ask_pair(function: str, first: Device, second: Device, *args: object) -> int | None:
    """The answer to a call about two GPUs; None, without a call, once either is lost."""
    if first.lost or second.lost:
        return None
    pair = f"{first.name} and {second.name}"
    answer: int | None
    answer, problem = first.driver.try_ask(function, first.handle, second.handle, *args, about=pair)
    if problem in LOST:  # the error does not say which is lost: ask each
        first.ask("nvmlDeviceGetUUID")
        second.ask("nvmlDeviceGetUUID")
    return answer


def _peer_status(first: Device, second: Device, kind: int) -> str | None:
    """NVML's peer-to-peer status of one kind in words, or None."""
    status = _ask_pair("nvmlDeviceGetP2PStatus", first, second, kind)
    return None if status is None else _P2P.get(status)


def summary(peer: PeerAccess) -> str | None:
    """ "ok" where reads and writes work both ways, as far as reported; else the first reason; None where unknown."""
    answers = (peer.read[0], peer.write[0], peer.read[1], peer.write[1])
    refused = [answer for answer in answers if answer not in (None, "ok")]
    if refused:
        return refused[0]
    return "ok" if any(answers) else None
