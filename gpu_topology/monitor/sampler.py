"""Samples of GPUs over time: what `monitor` shows, writes and sums up.

Cheap values are read for every sample. Processes and PCIe counters can cost a millisecond per GPU on real drivers; they
are read only as often as keeps them below 0.25% of one core, and their last values are reused in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from gpu_topology.driver.gpu import read_memory, read_processes
from gpu_topology.driver.health import throttle
from gpu_topology.driver.library import Device, Driver, describe, session
from gpu_topology.driver.read import open_handles
from gpu_topology.monitor.traffic import Traffic, TrafficMeter
from gpu_topology.select.select import SelectionError
from gpu_topology.select.visible import find_name
from gpu_topology.topology import Gpu

SHARE_OF_A_CORE = 0.0025


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """A compute process on a GPU; `name` is None where /proc does not show it (another container)."""

    pid: int
    name: str | None
    used_memory: int | None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment: percent, bytes, watts, degrees Celsius, bytes per second. None: not reported.

    error  set when the GPU is lost; everything else is then None
    """

    index: int
    uuid: str | None
    name: str | None
    utilization: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power_watts: float | None = None
    temperature_c: int | None = None
    throttle: tuple[str, ...] | None = None
    pcie_sent: float | None = None
    pcie_received: float | None = None
    nvlink_sent: float | None = None
    nvlink_received: float | None = None
    processes: tuple[ProcessSample, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """All watched GPUs at one moment: local time with its offset, and seconds of a clock that is never set back."""

    time: datetime
    seconds: float
    gpus: tuple[GpuSample, ...]


@contextmanager
def open_sampler(names: Sequence[str] = ()) -> Iterator[Sampler]:
    """A sampler of the named GPUs (indices, UUIDs or unique beginnings), or of all.

    Raises a DriverError where there is nothing to read, SelectionError for a name of no GPU.
    """
    with session() as driver:
        found = [_identify(driver, index, *handle) for index, handle in enumerate(open_handles(driver))]
        gpus = [gpu for gpu, _ in found]
        wanted = [_find(name, gpus) for name in names] or [gpu.index for gpu in gpus]
        yield Sampler([found[index] for index in dict.fromkeys(wanted)])


def _identify(driver: Driver, index: int, handle: object, problem: str | None) -> tuple[Gpu, Device]:
    """A GPU's identity and its device; `problem`: the NVML error of a GPU that is already lost."""
    device = Device(driver, handle)
    if problem is not None:
        device.lost = problem
        return Gpu(index), device
    return Gpu(index, uuid=device.ask("nvmlDeviceGetUUID"), name=device.ask("nvmlDeviceGetName")), device


def _find(name: str, gpus: Sequence[Gpu]) -> int:
    """The NVML index of a GPU by its name. Errors: SelectionError."""
    found = find_name(name, gpus)
    if found is None:
        span = "0" if len(gpus) == 1 else f"0 to {len(gpus) - 1}"
        raise SelectionError(f"unknown GPU {name!r}: this machine has {span}, or name a UUID")
    return found.gpu.index


class Sampler:
    """Reads some GPUs repeatedly; a GPU that is lost is reported, and the others continue."""

    def __init__(self, gpus: Sequence[tuple[Gpu, Device]]) -> None:
        self._gpus = list(gpus)
        self._meter = TrafficMeter([device for _, device in gpus])
        self._started = time.monotonic()
        self._slow_due = 0.0
        self._traffic = [Traffic() for _ in gpus]
        self._processes: list[tuple[ProcessSample, ...] | None] = [None for _ in gpus]

    def sample(self) -> Sample:
        """A sample of all GPUs now."""
        if time.monotonic() >= self._slow_due:
            self._read_slow()
        now, seconds = datetime.now().astimezone(), time.monotonic() - self._started
        return Sample(now, seconds, tuple(self._read(position) for position in range(len(self._gpus))))

    def _read_slow(self) -> None:
        """Read traffic and processes, and set when they are due again."""
        before = time.thread_time()
        self._traffic = self._meter.read()
        self._processes = [_processes(device) for _, device in self._gpus]
        spent = time.thread_time() - before
        self._slow_due = time.monotonic() + spent / SHARE_OF_A_CORE

    def _read(self, position: int) -> GpuSample:
        """One sample of the GPU at a position; with an error where it is lost."""
        gpu, device = self._gpus[position]
        utilization = device.ask("nvmlDeviceGetUtilizationRates")
        total, used = read_memory(device)
        milliwatts = device.ask("nvmlDeviceGetPowerUsage")
        temperature = read_temperature(device)
        held_back = throttle(device)
        if device.lost is not None:
            return GpuSample(gpu.index, gpu.uuid, gpu.name, error=describe(device.lost))
        traffic = self._traffic[position]
        return GpuSample(
            index=gpu.index,
            uuid=gpu.uuid,
            name=gpu.name,
            utilization=None if utilization is None else int(utilization.gpu),
            memory_used=used,
            memory_total=total,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_c=temperature,
            throttle=held_back,
            pcie_sent=traffic.pcie[0],
            pcie_received=traffic.pcie[1],
            nvlink_sent=traffic.nvlink[0],
            nvlink_received=traffic.nvlink[1],
            processes=self._processes[position],
        )


def read_temperature(device: Device) -> int | None:
    """Degrees Celsius of the GPU itself, by the newest call that answers."""
    temperature: int | None = device.ask("nvmlDeviceGetTemperatureV", 0)
    return device.ask("nvmlDeviceGetTemperature", 0) if temperature is None else temperature


def _processes(device: Device) -> tuple[ProcessSample, ...] | None:
    """The compute processes on a device; None where they cannot be read."""
    found = read_processes(device, "nvmlDeviceGetComputeRunningProcesses")
    if found is None:
        return None
    return tuple(ProcessSample(process.pid, _process_name(process.pid), process.used_memory) for process in found)


@cache
def _process_name(pid: int) -> str | None:
    """A process's name in /proc; None where it is not shown."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return None
