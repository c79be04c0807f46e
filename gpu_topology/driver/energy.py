"""The energy that a GPU has taken, by its own counter: since the driver was loaded, for whomever it worked.

nvmlDeviceGetTotalEnergyConsumption (nvml.h) gives millijoules, on Volta and newer. The counter is the whole card's: a
GPU in MIG mode has none that is a slice's own. Nothing is estimated where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_topology.driver.library import Driver, Note, session

_MIG_ENABLED = 1  # NVML_DEVICE_MIG_ENABLE


def handle_of(driver: Driver, name: str) -> Any:
    """The driver's handle of a GPU, by its UUID or NVML index as text; None where it has no such."""
    if name.isdecimal():
        return driver.ask("nvmlDeviceGetHandleByIndex", int(name))
    return driver.ask("nvmlDeviceGetHandleByUUID", name)


def energy_of(driver: Driver, handle: Any) -> float | None:
    """Joules that the GPU has taken since the driver was loaded; None where there is no such counter."""
    mode = driver.ask("nvmlDeviceGetMigMode", handle)
    if mode is not None and mode[0] == _MIG_ENABLED:
        return None
    millijoules = driver.ask("nvmlDeviceGetTotalEnergyConsumption", handle)
    return None if millijoules is None else millijoules / 1000


def read_energy_here(names: Sequence[str], note: Note | None = None) -> dict[str, float]:
    """`energy_of` each of these GPUs that has a counter, by its name as given. Raises a DriverError without a driver.

    For a child process (child_process.py).
    """
    with session(note) as driver:
        found = {name: energy_of(driver, handle) for name in names if (handle := handle_of(driver, name)) is not None}
    return {name: joules for name, joules in found.items() if joules is not None}


def taken(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Joules between two readings, of the GPUs that are in both. A counter that ran backwards (the driver was loaded
    again in between) tells nothing."""
    return {name: after[name] - joules for name, joules in before.items() if after.get(name, -1.0) >= joules}
