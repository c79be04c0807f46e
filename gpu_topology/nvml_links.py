"""The links between GPUs: NVLinks direct and through NVSwitch, the PCIe path, and whether peer access works."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from gpu_topology.driver import Driver
from gpu_topology.topology import Gpu, Link, LinkLevel

# NVML_NVLINK_MAX_LINKS of nvidia-ml-py 13.615. Older cards answer INVALID_ARGUMENT past their last link.
_MAX_LINKS = 36

# nvmlNvLinkDeviceType (nvml.h)
_REMOTE_GPU, _REMOTE_SWITCH = 0, 2

# Inside a virtual machine an NVSwitch has no bus id of its own (nvml.h, fabric-manager guide).
_HIDDEN_SWITCH = "FFFFFFFF:FF:FF.0"

# nvmlGpuTopologyLevel (nvml.h): 0 is two GPUs on one board, behind that board's PCIe switch.
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

# NVML_P2P_CAPS_INDEX_READ and _WRITE as numbers: in nvidia-ml-py 13.615 the READ constant is a tuple by mistake.
_READ, _WRITE = 0, 1


@dataclass
class _NvLinks:
    """The active NVLinks of one GPU; `known` is False when the driver failed to tell."""

    peers: Counter[str] = field(default_factory=Counter)
    to_switch: int = 0
    known: bool = True


def read_links(driver: Driver, gpus: tuple[Gpu, ...], handles: list[Any]) -> tuple[Link, ...]:
    """One `Link` for each pair of GPUs that have not failed. `handles[i]` belongs to `gpus[i]`."""
    usable = [(gpu, handle) for gpu, handle in zip(gpus, handles, strict=True) if gpu.error is None]
    if len(usable) < 2:
        return ()
    nvlinks = {gpu.index: _nvlinks_of(driver, handle) for gpu, handle in usable}
    links = []
    for (a, handle_a), (b, handle_b) in combinations(usable, 2):
        count = _count_between(a, b, nvlinks)
        pcie = _LEVELS.get(driver.ask("nvmlDeviceGetTopologyCommonAncestor", handle_a, handle_b))
        level = LinkLevel.NV if count else pcie
        links.append(Link(a.index, b.index, level, count, _p2p(driver, handle_a, handle_b), pcie))
    return tuple(links)


def _nvlinks_of(driver: Driver, handle: Any) -> _NvLinks:
    found = _NvLinks()
    for link in range(_MAX_LINKS):
        active, problem = driver.try_ask("nvmlDeviceGetNvLinkState", handle, link)
        if problem == "NVML_ERROR_INVALID_ARGUMENT":
            break  # past the last link
        if problem == "NVML_ERROR_NOT_SUPPORTED":
            continue  # a card without NVLink, or a link that this board leaves out
        if problem is not None:
            found.known = False
            break
        if active == 1:
            _note_remote(driver, handle, link, found)
    return found


def _note_remote(driver: Driver, handle: Any, link: int, found: _NvLinks) -> None:
    kind = driver.ask("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
    if kind == _REMOTE_SWITCH:
        found.to_switch += 1
        return
    pci = driver.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
    if pci is None:
        found.known = found.known and kind not in (None, _REMOTE_GPU)
        return
    bus_id = _key(pci.busId)
    if bus_id == _HIDDEN_SWITCH:
        found.to_switch += 1
    elif kind in (None, _REMOTE_GPU):
        found.peers[bus_id] += 1


def _key(bus_id: bytes | str) -> str:
    """A bus id that compares: NVML's eight-digit domain, upper case."""
    text = bus_id.decode(errors="replace") if isinstance(bus_id, bytes) else bus_id
    domain, _, rest = text.upper().partition(":")
    return f"{domain.zfill(8)}:{rest}"


def _count_between(a: Gpu, b: Gpu, nvlinks: dict[int, _NvLinks]) -> int | None:
    """NVLinks that join two GPUs: direct ones, else through NVSwitch as many as the end with fewer has."""
    of_a, of_b = nvlinks[a.index], nvlinks[b.index]
    direct = max(of_a.peers[_key(b.pci_bus_id or "")], of_b.peers[_key(a.pci_bus_id or "")])
    count = direct + min(of_a.to_switch, of_b.to_switch)
    return count if count or (of_a.known and of_b.known) else None


def _p2p(driver: Driver, a: Any, b: Any) -> str | None:
    """ "ok" when read and write work in both directions; else the first reason why not; None when unknown."""
    answers = [
        driver.ask("nvmlDeviceGetP2PStatus", first, second, what)
        for first, second in ((a, b), (b, a))
        for what in (_READ, _WRITE)
    ]
    names = [_P2P.get(answer) for answer in answers if answer is not None]
    refused = [name for name in names if name not in (None, "ok")]
    if refused:
        return refused[0]
    return "ok" if names and None not in names else None
