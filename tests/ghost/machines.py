"""One machine for all that look for GPUs: NVML for the launcher, libcuda for the order, torch.cuda for the ranks."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

from tests.fake_nvml.machine import MIB, load_machine

from .memory import Gpu

MACHINE = "GHOST_MACHINE"
"""The file with the machine that this process is on."""


def rows(machine: dict[str, Any]) -> list[dict[str, Any]]:
    """What CUDA can count, in PCI order: a GPU, or the slices of one in MIG mode. `speed` as cuda.c has it."""
    found = []
    for gpu in load_machine(machine)["gpus"]:
        facts = {"bus_id": gpu["bus_id"][4:], "speed": gpu.get("cores") or gpu["memory_mib"], "cc": gpu["cc"]}
        for part in gpu["mig"] or [gpu]:
            name = f"{gpu['name']} MIG {part['profile']}" if gpu["mig"] else gpu["name"]
            found.append({**facts, "uuid": part["uuid"], "name": name, "memory_mib": part["memory_mib"]})
    return found


def for_libcuda(machine: dict[str, Any]) -> str:
    """$FAKE_CUDA_GPUS."""
    return ";".join(f"{row['uuid']},{row['bus_id']},{row['speed']}" for row in rows(machine))


def gpus_here() -> list[Gpu]:
    """The GPUs that this process sees, in CUDA's order: libcuda says which, the machine's file what they are."""
    known = {row["uuid"][4:]: row for row in rows(json.loads(Path(os.environ[MACHINE]).read_text()))}
    seen = [known[uuid] for uuid in visible()]
    return [
        Gpu(name=row["name"], uuid=row["uuid"], total=row["memory_mib"] * MIB, capability=tuple(row["cc"]))
        for row in seen
    ]


def visible() -> list[str]:
    """The UUIDs of the GPUs that libcuda counts, without "GPU-" or "MIG-"."""
    library, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    if library.cuInit(0) != 0:
        return []
    library.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for device in range(count.value):
        uuid = (ctypes.c_ubyte * 16)()
        library.cuDeviceGetUuid_v2(uuid, device)
        text = bytes(uuid).hex()
        found.append("-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])))
    return found
