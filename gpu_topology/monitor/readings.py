"""Single readings of GPUs, for a progress display. Imports neither the live monitor nor rich."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpu_topology.driver.energy import energy_of, handle_of
from gpu_topology.driver.library import Driver, DriverError, session


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one moment: percent, bytes, watts, degrees Celsius. None where the driver does not report it."""

    uuid: str
    utilization: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power_watts: float | None = None
    temperature_c: int | None = None


def read_gpus(uuids: Sequence[str]) -> list[Reading]:
    """A reading for each named GPU (UUID, or NVML index as text) that the driver knows, in the order asked.

    Never raises; [] without a driver. The driver stays open until the process ends: opening it is the slow part.
    """
    driver = _open() if uuids else None
    if driver is None:
        return []
    readings = (_read(driver, uuid) for uuid in uuids)
    return [reading for reading in readings if reading is not None]


def read_energy(uuids: Sequence[str]) -> dict[str, float]:
    """Name -> joules that the GPU has used since the driver was loaded; without GPUs that have no counter (older than
    Volta, or in MIG mode). For the difference of two readings see `taken` in gpu_topology/driver/energy.py.

    Never raises; {} without a driver.
    """
    driver = _open() if uuids else None
    if driver is None:
        return {}
    found = {uuid: energy_of(driver, handle) for uuid in uuids if (handle := _handle(uuid)) is not None}
    return {uuid: joules for uuid, joules in found.items() if joules is not None}


@cache
def _open() -> Driver | None:
    """The driver, open until the process ends; None where there is none."""
    stack = ExitStack()
    try:
        driver = stack.enter_context(session())
    except DriverError:
        return None
    atexit.register(stack.close)
    return driver


@cache
def _handle(uuid: str) -> Any:
    """The handle of a device; None where there is no such device."""
    driver = _open()
    return None if driver is None else handle_of(driver, uuid)


def _read(driver: Driver, uuid: str) -> Reading | None:
    """A reading of one GPU; None where the driver does not know it."""
    handle = _handle(uuid)
    if handle is None:
        return None
    rates = driver.ask("nvmlDeviceGetUtilizationRates", handle)
    memory = driver.ask("nvmlDeviceGetMemoryInfo", handle, 0x02000028) or driver.ask("nvmlDeviceGetMemoryInfo", handle)
    milliwatts = driver.ask("nvmlDeviceGetPowerUsage", handle)
    temperature = driver.ask("nvmlDeviceGetTemperatureV", handle, 0)
    if temperature is None:
        temperature = driver.ask("nvmlDeviceGetTemperature", handle, 0)
    return Reading(
        uuid=uuid,
        utilization=None if rates is None else int(rates.gpu),
        memory_used=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        temperature_c=temperature,
    )
