"""The driver, through nvidia-ml-py, to a `Topology`.

Devices are read one by one, then the links between each pair. Each question is guarded on its own (see driver.py): what
a card or an old driver does not tell stays None, and a lost GPU is a row that says so.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_topology.driver import (
    Driver,
    DriverError,
    DriverMismatchError,
    NoDevicesError,
    NoDriverError,
    NoPermissionError,
    describe,
    session,
    start_error,
)
from gpu_topology.nvml_links import read_links
from gpu_topology.topology import Gpu, GpuProcess, MigDevice, Topology

__all__ = [
    "DriverError",
    "DriverMismatchError",
    "NoDevicesError",
    "NoDriverError",
    "NoPermissionError",
    "read_or_explain",
    "read_topology",
]

SYSFS_PCI = Path("/sys/bus/pci/devices")

# These mean that the card itself is gone, not that one reading is missing.
_FATAL = ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED")

_COMPUTE_MODES = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}
_FABRIC_STATES = {1: "not-started", 2: "in-progress", 3: "completed"}


def read_topology() -> Topology:
    """Ask the driver for everything. Raises a `DriverError` subclass with a remedy when there is nothing to read."""
    with session() as driver:
        count, problem = driver.try_ask("nvmlDeviceGetCount")
        if problem is not None:
            raise start_error(problem)
        if count == 0:
            raise NoDevicesError(
                "the NVIDIA driver works but finds no GPU",
                "see `lspci | grep -i nvidia`; in a virtual machine or container, pass a GPU through",
            )
        handles = [driver.try_ask("nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        gpus = tuple(_read_gpu(driver, index, *handles[index]) for index in range(count))
        links = read_links(driver, gpus, [handle for handle, _ in handles])
        gpus = tuple(_still_there(driver, gpu, handles[gpu.index][0]) for gpu in gpus)
        failed = {gpu.index for gpu in gpus if gpu.error}
        return Topology(
            gpus=gpus,
            links=tuple(link for link in links if not {link.a, link.b} & failed),
            driver_version=driver.ask("nvmlSystemGetDriverVersion"),
            cuda_version=_cuda_version(driver.ask("nvmlSystemGetCudaDriverVersion_v2")),
            warnings=tuple(f"GPU {gpu.index}: {gpu.error}" for gpu in gpus if gpu.error),
        )


def _still_there(driver: Driver, gpu: Gpu, handle: Any) -> Gpu:
    """The GPU, with its error if it was lost while the links were read."""
    if gpu.error is not None:
        return gpu
    _, problem = driver.try_ask("nvmlDeviceGetUUID", handle)
    return replace(gpu, error=describe(problem)) if problem in _FATAL else gpu


def read_or_explain() -> Topology:
    """Like `read_topology`, but never raises: without a GPU, `warnings` holds the reason and then what to do."""
    try:
        return read_topology()
    except DriverError as error:
        return Topology(warnings=(str(error), *([f"to use a GPU: {error.remedy}"] if error.remedy else [])))


def _cuda_version(number: int | None) -> str | None:
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


class _Questions:
    """Guarded questions about one device that remember the first error which means that the device is gone."""

    def __init__(self, driver: Driver, handle: Any) -> None:
        self.driver, self.handle = driver, handle
        self.fatal: str | None = None

    def __call__(self, function: str, *args: object) -> Any:
        if self.fatal is not None:
            return None
        answer, problem = self.driver.try_ask(function, self.handle, *args)
        if problem in _FATAL:
            self.fatal = problem
        return answer


def _read_gpu(driver: Driver, index: int, handle: Any, problem: str | None) -> Gpu:
    if problem is not None:
        return Gpu(index, error=describe(problem))
    ask = _Questions(driver, handle)
    bus_id = _bus_id(ask("nvmlDeviceGetPciInfo"))
    total, used = _memory(ask)
    capability, utilization, mode = _identity(ask)
    mig = ask("nvmlDeviceGetMigMode")
    gpu = Gpu(
        index=index,
        uuid=ask("nvmlDeviceGetUUID"),
        name=ask("nvmlDeviceGetName"),
        pci_bus_id=bus_id,
        memory_total=total,
        memory_used=used,
        compute_capability=capability,
        numa_node=_numa_node(ask, bus_id),
        mig_mode=None if mig is None else mig[0] == 1,
        utilization=utilization,
        processes=_processes(ask),
        mig_devices=_mig_devices(driver, ask) if mig is not None and mig[0] == 1 else (),
        display_active=_flag(ask("nvmlDeviceGetDisplayActive")),
        compute_mode=None if mode is None else _COMPUTE_MODES.get(mode),
        cores=ask("nvmlDeviceGetNumGpuCores"),
        clock_mhz=ask("nvmlDeviceGetMaxClockInfo", 1),  # NVML_CLOCK_SM
        pcie_generation=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        fabric_state=_fabric_state(driver, ask),
    )
    return gpu if ask.fatal is None else replace(gpu, error=describe(ask.fatal))


Ask = Callable[..., Any]


def _flag(value: int | None) -> bool | None:
    return None if value is None else value == 1


def _bus_id(pci: Any) -> str | None:
    """As sysfs writes it: "0000:c1:00.0" (NVML pads the domain to eight digits)."""
    if pci is None:
        return None
    text = pci.busId.decode(errors="replace") if isinstance(pci.busId, bytes) else str(pci.busId)
    match = re.fullmatch(r"([0-9A-Fa-f]+):([0-9A-Fa-f]+):([0-9A-Fa-f]+\.[0-9A-Fa-f])", text)
    return f"{int(match[1], 16):04x}:{match[2]}:{match[3]}".lower() if match else text.lower() or None


def _memory(ask: Ask) -> tuple[int | None, int | None]:
    """Total and used bytes. Version 2 keeps the driver's own reserve apart, as nvidia-smi does; version 1 does not."""
    memory = ask("nvmlDeviceGetMemoryInfo", 0x02000028) or ask("nvmlDeviceGetMemoryInfo")
    return (None, None) if memory is None else (int(memory.total), int(memory.used))


def _identity(ask: Ask) -> tuple[tuple[int, int] | None, int | None, int | None]:
    capability = ask("nvmlDeviceGetCudaComputeCapability")
    rates = ask("nvmlDeviceGetUtilizationRates")
    return (
        None if capability is None else (int(capability[0]), int(capability[1])),
        None if rates is None else int(rates.gpu),
        ask("nvmlDeviceGetComputeMode"),
    )


def _processes(ask: Ask) -> tuple[GpuProcess, ...] | None:
    """Compute processes: the newest function that this driver has. None when none of them answers."""
    for version in ("", "_v2"):
        found = ask(f"nvmlDeviceGetComputeRunningProcesses{version}")
        if found is not None:
            return tuple(sorted((_process(process) for process in found), key=lambda process: process.pid))
    return None


def _process(process: Any) -> GpuProcess:
    memory, instance = process.usedGpuMemory, process.gpuInstanceId
    return GpuProcess(
        pid=int(process.pid),
        used_memory=None if memory is None else int(memory),
        gpu_instance=None if instance == 0xFFFFFFFF else int(instance),  # nvml.h: all ones outside MIG
    )


def _numa_node(ask: Ask, bus_id: str | None) -> int | None:
    """The host's NUMA node beside this GPU: sysfs by bus id, else the driver's memory affinity.

    Not nvmlDeviceGetNumaNodeId: on Grace that is the GPU memory's own node.
    """
    if bus_id is not None:
        try:
            node = int((SYSFS_PCI / bus_id / "numa_node").read_text())
            if node >= 0:
                return node
        except (OSError, ValueError):
            pass  # a container without sysfs, or a virtual bus: ask the driver
    words = ask("nvmlDeviceGetMemoryAffinity", 16, 0)  # NVML_AFFINITY_SCOPE_NODE; 16 words are 1024 nodes
    bits = 0 if words is None else sum(int(word) << (64 * position) for position, word in enumerate(words))
    # More than one node means that the firmware does not tell which.
    return bits.bit_length() - 1 if bits.bit_count() == 1 else None


def _mig_devices(driver: Driver, ask: Ask) -> tuple[MigDevice, ...]:
    found: list[MigDevice] = []
    for position in range(ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        handle = ask("nvmlDeviceGetMigDeviceHandleByIndex", position)
        if handle is None:
            continue  # positions may have gaps
        about = _Questions(driver, handle)
        uuid = about("nvmlDeviceGetUUID")
        if uuid is None:
            continue  # nothing could name it to CUDA
        total, _ = _memory(about)
        found.append(
            MigDevice(
                uuid=uuid,
                profile=_mig_profile(about("nvmlDeviceGetName")),
                memory_total=total,
                gpu_instance=about("nvmlDeviceGetGpuInstanceId"),
                compute_instance=about("nvmlDeviceGetComputeInstanceId"),
            )
        )
    return tuple(found)


def _mig_profile(name: str | None) -> str | None:
    """ "NVIDIA A100-SXM4-40GB MIG 3g.20gb" -> "3g.20gb"."""
    match = re.search(r"MIG (\S+)$", name or "")
    return match[1] if match else None


def _fabric_state(driver: Driver, ask: Ask) -> str | None:
    """Whether the NVSwitch fabric is up; None where there is none to bring up."""
    # Under its older name, c_nvmlGpuFabricInfoV_t, nvidia-ml-py 12.560 declares this structure with a wrong layout.
    kind = getattr(driver.api, "c_nvmlGpuFabricInfo_v2_t", None)
    if kind is None:
        return None
    info = kind()
    # nvidia-ml-py hands this argument on as it is: without byref the driver would write through a null pointer.
    answer = ask("nvmlDeviceGetGpuFabricInfoV", ctypes.byref(info))
    return None if answer is None else _FABRIC_STATES.get(int(info.state))
