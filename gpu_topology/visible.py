"""Names of GPUs to GPUs: CUDA_VISIBLE_DEVICES as CUDA itself reads it, and what a user types after --gpus.

The rules are those of the CUDA programming guide ("CUDA Environment Variables") and of torch's own reading of it:
entries are indices or UUIDs or unique prefixes, the first unknown entry ends the list, a repeated one empties it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_topology.topology import Gpu, MigDevice


@dataclass(frozen=True, slots=True)
class Named:
    """One GPU that a name stands for; `mig` when the name is that of one of its slices."""

    gpu: Gpu
    mig: MigDevice | None = None


@dataclass(frozen=True, slots=True)
class Visible:
    """What CUDA_VISIBLE_DEVICES leaves, in its order. `problem` says why it is less than was written, if it is."""

    named: tuple[Named, ...]
    by_index: bool = False
    problem: str | None = None

    def find(self, index: int) -> Named | None:
        """The entry for a GPU, None when it is hidden."""
        return next((named for named in self.named if named.gpu.index == index), None)


def parse_visible(value: str, gpus: Sequence[Gpu]) -> Visible:
    """Read a CUDA_VISIBLE_DEVICES value. Indices are taken in PCI order (see `Visible.by_index`)."""
    entries = [entry.strip() for entry in value.split(",")]
    if not value.strip():
        return Visible((), problem="CUDA_VISIBLE_DEVICES is empty, which hides every GPU")
    by_index = not entries[0].upper().startswith(("GPU-", "MIG-"))
    found: list[Named] = []
    for entry in entries:
        named = _by_ordinal(entry, gpus) if by_index else find_uuid(entry, gpus)
        if named is None:
            return Visible(tuple(found), by_index, _end_of_list(entry, entries))
        if named in found:
            return Visible(
                (), by_index, f"CUDA_VISIBLE_DEVICES names {entry} twice, for which CUDA shows no GPU at all"
            )
        found.append(named)
    return Visible(tuple(found), by_index)


def _end_of_list(entry: str, entries: list[str]) -> str | None:
    rest = entries[entries.index(entry) + 1 :]
    if entry == "-1":
        return "CUDA_VISIBLE_DEVICES=-1 hides every GPU" if entry == entries[0] else None
    tail = f" and hides what follows ({', '.join(rest)})" if rest else ""
    return f"CUDA_VISIBLE_DEVICES names {entry or 'an empty entry'}, which is no GPU here: CUDA stops there{tail}"


def _by_ordinal(entry: str, gpus: Sequence[Gpu]) -> Named | None:
    """CUDA reads the digits at the start, like strtoul: "1gpu" is 1."""
    match = re.match(r"\+?\d+", entry)
    return find_index(int(match[0]), gpus) if match else None


def find_index(index: int, gpus: Sequence[Gpu]) -> Named | None:
    """The GPU with an NVML index."""
    return next((Named(gpu) for gpu in gpus if gpu.index == index), None)


def find_uuid(prefix: str, gpus: Sequence[Gpu]) -> Named | None:
    """The only GPU or MIG slice whose UUID begins so; None when there is none or more than one."""
    start = prefix.lower()
    if start in ("", "gpu-", "mig-"):
        return None
    found = [Named(gpu) for gpu in gpus if gpu.uuid and gpu.uuid.lower().startswith(start)]
    found += [Named(gpu, mig) for gpu in gpus for mig in gpu.mig_devices if mig.uuid.lower().startswith(start)]
    exact = [named for named in found if (named.mig.uuid if named.mig else named.gpu.uuid or "").lower() == start]
    if exact:
        return exact[0]
    return found[0] if len(found) == 1 else None


def find_name(name: str, gpus: Sequence[Gpu]) -> Named | None:
    """What a user types: an NVML index, a UUID, or a unique prefix of one with or without "GPU-"."""
    text = name.strip()
    if text.isdecimal():
        return find_index(int(text), gpus)
    return find_uuid(text, gpus) or find_uuid(f"GPU-{text}", gpus)
