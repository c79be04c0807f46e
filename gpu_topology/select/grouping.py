"""Groups of identical devices, and their order from best to worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.peak_flops import peak_tflops
from gpu_topology.select.visible import Device
from gpu_topology.topology import Topology

GIB = 2**30

# ECC takes a sixteenth of the memory on cards that keep its check bits there: cards with and without it are identical.
_SAME_MEMORY = 1 - 1 / 16 - 0.005

# A display card has at most this much memory, and less than this share of the fastest usable card's peak.
_DISPLAY_MEMORY = 8 * GIB
_DISPLAY_SPEED = 1 / 10


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs with the same name, memory, compute capability and MIG mode, or slices of one profile, one per GPU.

    memory_total  bytes of one device; the smallest value where ECC makes a difference
    throughput    estimated peak in tera-operations per second with equal shards, None where unknown
    ring_gb_s     modelled speed of the slowest link in the group's best ring, None for a single GPU
    for_display   small, slow cards beside much faster ones: they never win by their number
    """

    name: str
    devices: tuple[Device, ...]
    memory_total: int | None
    compute_capability: tuple[int, int] | None
    mig_mode: bool | None
    throughput: float | None
    ring_gb_s: float | None
    for_display: bool = False

    @property
    def indices(self) -> tuple[int, ...]:
        """The NVML indices of the GPUs."""
        return tuple(device.index for device in self.devices)

    @property
    def memory_gib(self) -> int:
        """Memory of one device in whole GiB, 0 when unknown: cards of one size differ by some MiB."""
        return round((self.memory_total or 0) / GIB)

    @property
    def each(self) -> float | None:
        """The throughput of one device."""
        return self.throughput and self.throughput / len(self.devices)

    def takes(self, device: Device) -> bool:
        """Whether a device belongs to this group, itself or as another slice of the same GPU and profile."""
        return any(kind_of(device) == kind_of(own) and device.index == own.index for own in self.devices)

    @property
    def label(self) -> str:
        """ "NVIDIA RTX A5000 x 3"."""
        return f"{self.name} x {len(self.devices)}"


def make_groups(topology: Topology, devices: Iterable[Device], policy: str = "largest") -> tuple[Group, ...]:
    """The groups of identical devices, best first. A GPU with slices of two profiles is in two groups.

    largest: most GPUs (display cards last), then more memory, higher peak, better links (bottleneck, sum), lower index.
    fastest: highest estimated throughput, then as above.
    """
    kinds: dict[object, list[Device]] = {}
    for device in devices:
        kinds.setdefault(kind_of(device), []).append(device)
    found = [_group(topology, alike) for members in kinds.values() for alike in _by_memory(members)]
    return ranked(topology, _told_apart(_with_display_cards(found)), policy)


def ranked(topology: Topology, groups: Iterable[Group], policy: str, count: int | None = None) -> tuple[Group, ...]:
    """The groups, best first, if all devices of a group are used, or `count` of them."""
    every = tuple(groups)
    fabric = Fabric(topology, sorted({index for group in every for index in group.indices}))
    return tuple(sorted(every, key=lambda group: _rank(group, fabric, policy, count)))


def estimate(devices: Sequence[Device]) -> float | None:
    """Peak tera-operations per second of devices that work in step on equal shards: the slowest limits all.

    This is a peak of the arithmetic units, to rank different GPUs. The speed of a training run is measured instead.
    """
    each = [peak_tflops(device.gpu, device.mig) for device in devices]
    known = [value for value in each if value is not None]
    return len(devices) * min(known) if known and len(known) == len(each) else None


def peaks(devices: Iterable[Device], groups: Sequence[Group]) -> dict[Device, float]:
    """Device -> estimated peak tera-operations per second, by its group; 0 where that is unknown."""
    return {
        device: max((group.each or 0.0 for group in groups if group.takes(device)), default=0.0) for device in devices
    }


def one_each(devices: Iterable[Device]) -> tuple[Device, ...]:
    """At most one device per GPU: the slice with the most memory, of equal ones the first instance."""
    best: dict[int, Device] = {}
    for device in devices:
        rival = best.get(device.index)
        if rival is None or _slice_rank(device) < _slice_rank(rival):
            best[device.index] = device
    return tuple(best.values())


def _slice_rank(device: Device) -> tuple[int, int, int, str]:
    """Sorts the slices of a GPU: most memory first, then by instance."""
    mig = device.mig
    return (
        -(device.memory_total or 0),
        (mig and mig.gpu_instance) or 0,
        (mig and mig.compute_instance) or 0,
        device.uuid,
    )


def kind_of(device: Device) -> object:
    """The key that the devices of a group share, apart from memory; a slice without a profile has its UUID instead.

    GPUs with unknown names are each of a different kind.
    """
    gpu, mig = device.gpu, device.mig
    profile = mig and (mig.profile or mig.uuid)
    return gpu.name or gpu.index, gpu.compute_capability, profile


def _by_memory(devices: Sequence[Device]) -> list[list[Device]]:
    """Devices of one kind, split by clearly different memory (an RTX 3080 has 10 or 12 GB)."""
    parts: list[list[Device]] = []
    for device in sorted(devices, key=lambda one: -(one.memory_total or 0)):
        if parts and _same_memory(device.memory_total, parts[-1][0].memory_total):
            parts[-1].append(device)
        else:
            parts.append([device])
    return parts


def _same_memory(less: int | None, more: int | None) -> bool:
    """Whether two sizes in bytes differ by no more than ECC takes."""
    return less == more if less is None or more is None else less >= _SAME_MEMORY * more


def _group(topology: Topology, alike: Sequence[Device]) -> Group:
    """A group of identical devices, with its memory (bytes, of the smallest) and speeds."""
    devices = tuple(sorted(one_each(alike), key=lambda device: device.index))
    first = devices[0]
    indices = tuple(device.index for device in devices)
    profile = first.mig and (first.mig.profile or "slice")
    memory = [device.memory_total for device in devices if device.memory_total is not None]
    return Group(
        name=f"{first.gpu.label} MIG {profile}" if profile else first.gpu.label,
        devices=devices,
        memory_total=min(memory, default=None),
        compute_capability=first.gpu.compute_capability,
        mig_mode=first.gpu.mig_mode,
        throughput=estimate(devices),
        ring_gb_s=Fabric(topology, indices).bottleneck(indices) if len(indices) > 1 else None,
    )


def _with_display_cards(groups: Sequence[Group]) -> list[Group]:
    """The groups, with display cards marked."""
    fastest = max((group.each or 0.0 for group in groups), default=0.0)
    return [replace(group, for_display=_is_for_display(group, fastest)) for group in groups]


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """The groups, with the memory added to names that would be the same."""
    names = [group.name for group in groups]
    return [
        replace(group, name=f"{group.name} {_memory_words(group)}") if names.count(group.name) > 1 else group
        for group in groups
    ]


def _memory_words(group: Group) -> str:
    """The memory of a group's devices, in words."""
    return "of unknown memory" if group.memory_total is None else f"{group.memory_gib} GiB"


def _is_for_display(group: Group, fastest: float) -> bool:
    """Whether the group is small cards beside much faster ones. `fastest`: the best group's peak per device."""
    peak = group.each
    if peak is None or group.memory_total is None or group.mig_mode:
        return False
    return group.memory_total <= _DISPLAY_MEMORY and peak < _DISPLAY_SPEED * fastest


def _rank(group: Group, fabric: Fabric, policy: str, count: int | None) -> tuple[float, ...]:
    """The sort key of a group: see `make_groups`."""
    used = len(group.devices) if count is None else count
    enough = len(group.devices) >= used
    each = group.each or 0.0
    speed = -each * used if policy == "fastest" else 0.0
    links = (-(group.ring_gb_s or 0.0), -fabric.total(group.indices))
    display = policy != "fastest" and group.for_display
    load = sum(fabric.load[index] for index in group.indices)
    return (display, not enough, speed, -len(group.devices), -group.memory_gib, -each, *links, load, group.indices[0])
