"""The energy that a GPU has used since the driver was loaded, for all processes, by its own counter.

nvmlDeviceGetTotalEnergyConsumption (nvml.h) gives millijoules, on Volta and newer. It counts the whole card: a GPU in
MIG mode has no counter for each slice. Nothing is estimated where there is no counter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_topology.driver.library import Driver, Note, session

_MIG_ENABLED = 1  # NVML_DEVICE_MIG_ENABLE


def handle_of(driver: Driver, name: str) -> Any:
    """The driver's handle of the GPU with this UUID, or NVML index as text; None where there is no such GPU."""
    if name.isdecimal():
        return driver.ask("nvmlDeviceGetHandleByIndex", int(name))
    return driver.ask("nvmlDeviceGetHandleByUUID", name)


def energy_of(driver: Driver, handle: Any) -> float | None:
    """Joules that the GPU has used since the driver was loaded; None without a counter, or in MIG mode."""
    mode = driver.ask("nvmlDeviceGetMigMode", handle)
    if mode is not None and mode[0] == _MIG_ENABLED:
        return None
    millijoules = driver.ask("nvmlDeviceGetTotalEnergyConsumption", handle)
    return None if millijoules is None else millijoules / 1000


def read_energy_here(names: Sequence[str], note: Note | None = None) -> dict[str, float]:
    """Given name -> joules, for each of these GPUs that has a counter. Raises a DriverError without a driver.

    Runs in a child process (child_process.py).
    """
    with session(note) as driver:
        found = {name: energy_of(driver, handle) for name in names if (handle := handle_of(driver, name)) is not None}
    return {name: joules for name, joules in found.items() if joules is not None}


def taken(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Joules used between two readings, for the GPUs that are in both. A GPU is left out if its counter ran backwards
    (the driver was reloaded in between)."""
    return {name: after[name] - joules for name, joules in before.items() if after.get(name, -1.0) >= joules}
