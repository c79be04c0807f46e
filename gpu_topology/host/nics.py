"""How far InfiniBand and RoCE adapters are from the GPUs, by the folders of sysfs, named as in `nvidia-smi topo -m`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ddp_core import sysfs

_PCI_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")


def nic_distances(bus_ids: Sequence[str], root: Path = Path("/")) -> dict[str, tuple[str | None, ...]]:
    """For each adapter its level to each PCI device ("0000:c1:00.0"): PIX, PXB, PHB, NODE or SYS; None: unknown."""
    places = [_place(root / "sys/bus/pci/devices" / bus) for bus in bus_ids]
    found = {}
    for name in sysfs.entries(root / "sys/class/infiniband"):
        nic = _place(root / "sys/class/infiniband" / name / "device")
        found[name] = tuple(_level(nic, place) for place in places)
    return found


_Place = tuple[str, tuple[str, ...], int | None]


def _place(device: Path) -> _Place | None:
    """The host bridge, the PCI devices from there down to the device, and its NUMA node."""
    folder = device.resolve()
    parts = folder.parts
    bridge = next((at for at, part in enumerate(parts) if re.fullmatch(r"pci[0-9a-f]{4}:[0-9a-f]{2}", part)), None)
    if bridge is None:
        return None
    chain = tuple(part for part in parts[bridge + 1 :] if _PCI_DEVICE.fullmatch(part))
    return parts[bridge], chain, sysfs.number(folder / "numa_node")


def _level(one: _Place | None, other: _Place | None) -> str | None:
    """How near two PCI devices are, as nvidia-smi names it; None where a place is unknown."""
    if one is None or other is None:
        return None
    (bridge, chain, node), (other_bridge, other_chain, other_node) = one, other
    if bridge != other_bridge:
        return "NODE" if node == other_node and node is not None and node >= 0 else "SYS"
    shared = 0
    while shared < min(len(chain), len(other_chain)) and chain[shared] == other_chain[shared]:
        shared += 1
    if shared == 0:
        return "PHB"
    # Between the last bridge that they share and each of the two: a port of the same switch and the device itself.
    return "PIX" if max(len(chain), len(other_chain)) - shared <= 2 else "PXB"
