"""Finds GPUs by name: in CUDA_VISIBLE_DEVICES as CUDA reads it, and in what a user types after --gpus.

The rules are those of the CUDA programming guide ("CUDA Environment Variables"), as torch reads it: entries are
indices, UUIDs or unique prefixes; the first unknown entry ends the list; a duplicate empties it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_topology.topology import Gpu, MigDevice


@dataclass(frozen=True, slots=True)
class Device:
    """What CUDA calls a device: a GPU, or one of its MIG slices."""

    gpu: Gpu
    mig: MigDevice | None = None

    @property
    def index(self) -> int:
        """The NVML index of the GPU."""
        return self.gpu.index

    @property
    def uuid(self) -> str:
        """The UUID for CUDA_VISIBLE_DEVICES; the index as text where the driver does not report the UUID."""
        return self.mig.uuid if self.mig else self.gpu.uuid or str(self.gpu.index)

    @property
    def memory_total(self) -> int | None:
        """Bytes of the GPU, or of the slice."""
        return self.mig.memory_total if self.mig else self.gpu.memory_total

    @property
    def memory_used(self) -> int | None:
        """Bytes in use on the GPU, or on the slice."""
        return self.mig.memory_used if self.mig else self.gpu.memory_used

    @property
    def label(self) -> str:
        """The name for a sentence: "GPU 3", or "MIG slice 3g.20gb of GPU 3"."""
        if self.mig is None:
            return f"GPU {self.index}"
        return f"MIG slice {self.mig.profile or self.mig.uuid} of GPU {self.index}"

    def is_part_of(self, other: Device) -> bool:
        """Whether this device is `other`, or a slice of it."""
        return self.index == other.index and (other.mig is None or other.mig == self.mig)


@dataclass(frozen=True, slots=True)
class Visible:
    """The devices in CUDA_VISIBLE_DEVICES, in order. `problem`: why some of its entries have no effect."""

    named: tuple[Device, ...]
    by_index: bool = False
    problem: str | None = None

    def position(self, device: Device) -> int | None:
        """The place of the entry that names a device or the GPU that it is a slice of; None when it is hidden."""
        return next((place for place, named in enumerate(self.named) if device.is_part_of(named)), None)


def parse_visible(value: str, gpus: Sequence[Gpu], cuda_order: Sequence[str] | None = None) -> Visible:
    """Read a CUDA_VISIBLE_DEVICES value.

    `cuda_order`: UUIDs or PCI bus ids in CUDA's order; None: indices are in PCI order.
    """
    order = None if cuda_order is None else [_find_any(name, gpus) for name in cuda_order]
    entries = [entry.strip(" \t\n\v\f\r") for entry in value.split(",")]
    if not value.strip():
        return Visible((), problem="CUDA_VISIBLE_DEVICES is empty, which hides every GPU")
    by_index = not entries[0].upper().startswith(("GPU-", "MIG-"))
    found: list[Device] = []
    problems: list[str] = []
    for entry in entries:
        named = _by_ordinal(entry, gpus, order) if by_index else find_uuid(entry, gpus)
        if named is None:
            problems += filter(None, [_end_of_list(entry, entries)])
            break
        if named in found:
            found = []
            problems.append(f"CUDA_VISIBLE_DEVICES names {entry} twice: CUDA then shows no GPU at all")
            break
        found.append(named)
        if by_index and not re.fullmatch(r"\+?[0-9]+", entry):
            digits = _DIGITS.match(entry)
            problems.append(
                f"CUDA reads {entry!r} in CUDA_VISIBLE_DEVICES as {digits and int(digits[0])}: "
                "name GPUs by index or UUID, with commas between them"
            )
    return Visible(tuple(found), by_index, "; ".join(problems) or None)


_DIGITS = re.compile(r"\+?[0-9]{1,18}")


def _end_of_list(entry: str, entries: list[str]) -> str | None:
    """What an entry that names no GPU does to the rest of the list, in words; None for -1 after other entries."""
    rest = entries[entries.index(entry) + 1 :]
    if entry == "-1":
        return "CUDA_VISIBLE_DEVICES=-1 hides every GPU" if entry == entries[0] else None
    tail = f" and hides what follows ({', '.join(rest)})" if rest else ""
    return f"CUDA_VISIBLE_DEVICES names {entry or 'an empty entry'}, which is no GPU here: CUDA stops there{tail}"


def _by_ordinal(entry: str, gpus: Sequence[Gpu], order: Sequence[Device | None] | None) -> Device | None:
    """The device of an index. CUDA reads the leading digits, like strtoul: "1gpu" is 1."""
    match = _DIGITS.match(entry)
    if match is None:
        return None
    number = int(match[0])
    if order is None:
        return find_index(number, gpus)
    return order[number] if number < len(order) else None


def _find_any(name: str, gpus: Sequence[Gpu]) -> Device | None:
    """The device with this UUID, else the GPU at this PCI bus id ("0000:41:00.0"; leading zeros may be missing). CUDA
    reports the bytes of a UUID without "GPU-" or "MIG-": a slice's come as "GPU-..." too (libcuda.py)."""
    at = next((Device(gpu) for gpu in gpus if gpu.pci_bus_id and _bus(gpu.pci_bus_id) == _bus(name)), None)
    return find_uuid(name, gpus) or find_uuid(f"MIG-{name.removeprefix('GPU-')}", gpus) or at


def _bus(bus_id: str) -> tuple[str, ...]:
    """A PCI bus id as parts that compare equal whatever its leading zeros."""
    return tuple(part.lstrip("0") for part in bus_id.lower().replace(".", ":").split(":"))


def find_index(index: int, gpus: Sequence[Gpu]) -> Device | None:
    """The GPU with an NVML index."""
    return next((Device(gpu) for gpu in gpus if gpu.index == index), None)


def find_uuid(prefix: str, gpus: Sequence[Gpu]) -> Device | None:
    """The only GPU or MIG slice with a UUID that begins with `prefix`; None where there are none or several."""
    start = prefix.lower()
    if start in ("", "gpu-", "mig-"):
        return None
    if older := re.fullmatch(r"mig-(gpu-[^/]+)/([0-9]{1,9})/([0-9]{1,9})", start):
        return _find_slice(older[1], int(older[2]), int(older[3]), gpus)
    every = (*(Device(gpu) for gpu in gpus if gpu.uuid), *(Device(gpu, mig) for gpu in gpus for mig in gpu.mig_devices))
    found = [device for device in every if device.uuid.lower().startswith(start)]
    exact = [device for device in found if device.uuid.lower() == start]
    if exact:
        return exact[0]
    return found[0] if len(found) == 1 else None


def _find_slice(uuid: str, gpu_instance: int, compute_instance: int, gpus: Sequence[Gpu]) -> Device | None:
    """The slice "MIG-<UUID of the GPU>/<GPU instance>/<compute instance>", as drivers before R470 name it."""
    every = [Device(gpu, mig) for gpu in gpus for mig in gpu.mig_devices]
    found = [device for device in every if device.uuid.lower() == f"mig-{uuid}/{gpu_instance}/{compute_instance}"] or [
        device
        for device in every
        if (device.gpu.uuid or "").lower() == uuid
        and device.mig is not None
        and device.mig.gpu_instance == gpu_instance
        and (device.mig.compute_instance or 0) == compute_instance
    ]
    return found[0] if len(found) == 1 else None


def find_name(name: str, gpus: Sequence[Gpu]) -> Device | None:
    """The device that a user means by an NVML index, a UUID, or a unique prefix of one with or without "GPU-"."""
    text = name.strip()
    if re.fullmatch("[0-9]{1,18}", text):
        return find_index(int(text), gpus)
    return find_uuid(text, gpus) or find_uuid(f"GPU-{text}", gpus)
