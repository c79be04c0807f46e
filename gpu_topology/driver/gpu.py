"""Reads one GPU from the driver: identity, capabilities and processes. Its state of health is in health.py."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ddp_core import sysfs
from gpu_topology.driver import health
from gpu_topology.driver.library import Device, describe
from gpu_topology.topology import Gpu, GpuProcess, MigDevice

SYSFS_PCI = Path("/sys/bus/pci/devices")

_COMPUTE_MODES = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}

# Sizes of the bit sets asked for, in 64-bit words: NUMA nodes and CPUs.
_NODE_WORDS, _CPU_WORDS = 16, 32

_OUTSIDE_MIG = 0xFFFFFFFF  # nvml.h: the instance of a process that runs outside MIG

# Compute capabilities of GPUs that share the host's memory and report no size: Jetson TX1 to Orin, Thor, GB10.
_UNIFIED = {(5, 3), (6, 2), (7, 2), (8, 7), (11, 0), (12, 1)}

# Errors that mean that a reading is not available here, not that the card is faulty.
_NO_SUCH_READING = ("NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION")

_COMPUTING = "nvmlDeviceGetComputeRunningProcesses"

MPS_SERVER = "nvidia-cuda-mps-server"

# A GPU with at least this utilization in percent and no process is read again a second later: one sample may mislead.
DOUBTFUL_UTILIZATION = 20
_SAMPLE_S = 1.0


def read_gpu(index: int, device: Device, known: dict[object, Any]) -> Gpu:
    """Everything about one GPU. If it is lost meanwhile, `error` says so and what was read before is kept.
    known: answers of GPUs read before that hold for every GPU of the same model or NUMA node; added to here
    """
    ask = device.ask
    bus_id = _bus_id(ask("nvmlDeviceGetPciInfo"))
    capability = _capability(device)
    total, used, memory_problem = _memory(device, capability)
    mig = ask("nvmlDeviceGetMigMode")
    fabric_state, fabric_cluster = health.fabric(device)
    ecc, ecc_uncorrected = health.ecc(device)
    recovery, pcie_replays, nvlink_errors = health.counters(device)
    name, node = _printable(ask("nvmlDeviceGetName")), _numa_node(device, bus_id)
    model = (name, total)
    slices = _slices(device) if mig is not None and mig[0] == 1 else ()
    processes = read_processes(device, _COMPUTING)

    def once(kind: object, function: str, *args: object) -> Any:
        """The answer to a call that is the same for all GPUs of one `kind`; the driver is asked once for each kind."""
        key = (kind, function)
        if None in (name, total, node) or key not in known:
            answer, problem = device.try_ask(function, *args)
            if problem is not None:
                return None
            known[key] = answer
        return known[key]

    gpu = Gpu(
        index=index,
        uuid=ask("nvmlDeviceGetUUID"),
        name=name,
        pci_bus_id=bus_id,
        memory_total=total,
        memory_used=used,
        compute_capability=capability,
        numa_node=node,
        mig_mode=None if mig is None else mig[0] == 1,
        utilization=_utilization(device),
        processes=_processes_on(slices) if processes is None else processes,
        mig_devices=tuple(mig_device for _, mig_device in slices),
        display_active=_flag(ask("nvmlDeviceGetDisplayActive")),
        compute_mode=_COMPUTE_MODES.get(ask("nvmlDeviceGetComputeMode")),
        cores=once(model, "nvmlDeviceGetNumGpuCores"),
        clock_mhz=once(model, "nvmlDeviceGetMaxClockInfo", 1),  # NVML_CLOCK_SM
        pcie_generation=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        fabric_state=fabric_state,
        fabric_cluster=fabric_cluster,
        cpu_affinity=cpu_list(_bits(once(node, "nvmlDeviceGetCpuAffinity", _CPU_WORDS))),
        pcie_generation_now=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_width_now=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        pcie_slot_width=_slot_width(bus_id),
        ecc=ecc,
        ecc_uncorrected=ecc_uncorrected,
        memory_faults=health.memory_faults(device),
        throttle=health.throttle(device),
        recovery=recovery,
        pcie_replays=pcie_replays,
        nvlink_errors=nvlink_errors,
        graphics_processes=read_processes(device, "nvmlDeviceGetGraphicsRunningProcesses"),
    )
    error = describe(device.lost) if device.lost else None if gpu.mig_mode else _silence(gpu, memory_problem)
    return replace(gpu, error=error)


def _silence(gpu: Gpu, problem: str | None) -> str | None:
    """Why a GPU that does not report its memory cannot be chosen; None where it can. `problem`: the NVML error."""
    if problem is None:
        return None
    if gpu.name is None and gpu.compute_capability is None:
        return "the driver does not answer for this GPU: its name, memory and compute capability cannot be read"
    return None if problem in _NO_SUCH_READING else f"its memory cannot be read: {describe(problem)}"


def _flag(value: int | None) -> bool | None:
    """NVML's 0 and 1 as a bool; None stays None."""
    return None if value is None else value == 1


def _bus_id(pci: Any) -> str | None:
    """The PCI bus id as sysfs writes it: "0000:c1:00.0" (NVML pads the domain to eight digits)."""
    if pci is None:
        return None
    text = pci.busId.decode(errors="replace") if isinstance(pci.busId, bytes) else str(pci.busId)
    match = re.fullmatch(r"([0-9A-Fa-f]+):([0-9A-Fa-f]+):([0-9A-Fa-f]+\.[0-9A-Fa-f])", text)
    return f"{int(match[1], 16):04x}:{match[2]}:{match[3]}".lower() if match else text.lower() or None


def read_memory(device: Device) -> tuple[int | None, int | None]:
    """Total and used bytes. Version 2 does not count the driver's reserve as used, like nvidia-smi; version 1 does."""
    memory = device.ask("nvmlDeviceGetMemoryInfo", 0x02000028) or device.ask("nvmlDeviceGetMemoryInfo")
    return (None, None) if memory is None else (int(memory.total), int(memory.used))


def _memory(device: Device, capability: tuple[int, int] | None) -> tuple[int | None, int | None, str | None]:
    """Total and used bytes, or None with the NVML error. A GPU that shares the host's memory counts all of it."""
    total, used = read_memory(device)
    if total:
        return total, used, None
    if capability in _UNIFIED:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None, None
    _, problem = device.try_ask("nvmlDeviceGetMemoryInfo")
    return None, None, problem or "NVML_ERROR_NO_DATA"


def _capability(device: Device) -> tuple[int, int] | None:
    """(major, minor), or None."""
    capability = device.ask("nvmlDeviceGetCudaComputeCapability")
    return None if capability is None else (int(capability[0]), int(capability[1]))


def _utilization(device: Device) -> int | None:
    """Percent of the last sampling interval during which a kernel was running, or None."""
    rates = device.ask("nvmlDeviceGetUtilizationRates")
    return None if rates is None else int(rates.gpu)


def identified(gpus: Sequence[Gpu], devices: Sequence[Device]) -> tuple[Gpu, ...]:
    """The GPUs with their processes named, and with the clients of their MPS servers added to these.

    The driver is asked for the name of each process once: a desktop's processes are on every GPU.
    """
    driver = devices[0].driver
    names: dict[int, str | None] = {}

    def named(processes: tuple[GpuProcess, ...] | None) -> tuple[GpuProcess, ...] | None:
        """The processes with their names."""
        for process in processes or ():
            if process.pid not in names:
                names[process.pid] = _program(driver.ask("nvmlSystemGetProcessName", process.pid))
        return processes and tuple(replace(process, name=names[process.pid]) for process in processes)

    def identify(gpu: Gpu, device: Device) -> Gpu:
        """The GPU with its processes named and its MPS clients added."""
        gpu = replace(gpu, processes=named(gpu.processes), graphics_processes=named(gpu.graphics_processes))
        if not any(process.name == MPS_SERVER for process in gpu.processes or ()):
            return gpu
        clients = named(read_processes(device, "nvmlDeviceGetMPSComputeRunningProcesses")) or ()
        listed = {process.pid for process in clients}
        others = tuple(process for process in gpu.processes or () if process.pid not in listed)
        return replace(gpu, processes=(*others, *(replace(process, mps_client=True) for process in clients)))

    return tuple(identify(gpu, device) for gpu, device in zip(gpus, devices, strict=True))


def _program(command: str | None) -> str | None:
    """ "/opt/google/chrome/chrome --type=gpu-process" -> "chrome"."""
    return PurePosixPath((_printable(command) or "").partition(" -")[0].strip()).name or None


def _printable(text: str | None) -> str | None:
    """`text` without unprintable characters, which could control a terminal."""
    return text and "".join(letter for letter in text if letter.isprintable())


def settled(gpus: Sequence[Gpu], devices: Sequence[Device]) -> tuple[Gpu, ...]:
    """The GPUs, with the utilization read again after a second for those that are busy but show no process.

    The lower of the two readings counts: the start of the driver itself can show as full utilization.
    """
    doubtful = [gpu.index for gpu in gpus if (gpu.utilization or 0) >= DOUBTFUL_UTILIZATION and not gpu.processes]
    if not doubtful:
        return tuple(gpus)
    time.sleep(_SAMPLE_S)
    return tuple(
        replace(gpu, utilization=min(gpu.utilization or 0, _utilization(device) or 0)) if gpu.index in doubtful else gpu
        for gpu, device in zip(gpus, devices, strict=True)
    )


def read_processes(device: Device, function: str) -> tuple[GpuProcess, ...] | None:
    """The processes of one kind, by the newest version of `function` that this driver has; None where none answers."""
    for version in ("", "_v2"):
        found = device.ask(f"{function}{version}")
        if found is not None:
            return tuple(sorted((_process(process) for process in found), key=lambda process: process.pid))
    return None


def _process(process: Any) -> GpuProcess:
    """A process as NVML reports it."""
    memory, instance = process.usedGpuMemory, process.gpuInstanceId
    return GpuProcess(
        pid=int(process.pid),
        used_memory=None if memory is None else int(memory),
        gpu_instance=None if instance == _OUTSIDE_MIG else int(instance),
    )


def _numa_node(device: Device, bus_id: str | None) -> int | None:
    """The NUMA node nearest to this GPU: from sysfs by bus id, else from the driver's memory affinity.

    Not nvmlDeviceGetNumaNodeId: on Grace that is the GPU memory's own node.
    """
    if bus_id is not None:
        try:
            node = int((SYSFS_PCI / bus_id / "numa_node").read_text())
            if node >= 0:
                return node
        except (OSError, ValueError):
            pass  # a container without sysfs, or a virtual bus: ask the driver
    bits = _bits(device.ask("nvmlDeviceGetMemoryAffinity", _NODE_WORDS, 0))  # NVML_AFFINITY_SCOPE_NODE
    # More than one node means that the firmware does not report which one is nearest.
    return bits.bit_length() - 1 if bits.bit_count() == 1 else None


def _slot_width(bus_id: str | None) -> int | None:
    """The most lanes of the port that the GPU is plugged into: a card's own maximum says nothing about its slot."""
    if bus_id is None:
        return None
    lanes = sysfs.number((SYSFS_PCI / bus_id).resolve().parent / "max_link_width")
    return lanes if lanes in (1, 2, 4, 8, 12, 16, 32) else None  # a virtual port has 0 or 255


def _bits(words: Any) -> int:
    """A bit set from words of 64, least first; 0 when the driver did not report it."""
    return 0 if words is None else sum(int(word) << (64 * position) for position, word in enumerate(words))


def cpu_list(bits: int) -> str | None:
    """A bit set of CPUs as the kernel writes lists, "0-19,40-59"; None for the empty set, which means unknown."""
    numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
    starts = [number for number in numbers if not (number and bits >> (number - 1) & 1)]
    ends = [number for number in numbers if not bits >> (number + 1) & 1]
    ranges = (f"{start}" if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))
    return ",".join(ranges) or None


def _processes_on(slices: Sequence[tuple[Device, MigDevice]]) -> tuple[GpuProcess, ...] | None:
    """The compute processes on MIG slices; None where none answers. The driver lists those of a whole GPU in MIG mode
    only for administrators, those of one slice for everybody (nvml.h, nvmlDeviceGetComputeRunningProcesses)."""
    answers = [(mig.gpu_instance, read_processes(device, _COMPUTING)) for device, mig in slices]
    if all(found is None for _, found in answers):
        return None
    # The slices of one GPU instance share its memory, and may list the same processes.
    here = (replace(one, gpu_instance=instance) for instance, found in answers for one in found or ())
    return tuple(dict.fromkeys(here))


def _slices(device: Device) -> tuple[tuple[Device, MigDevice], ...]:
    """The MIG slices of a GPU that have a UUID."""
    found: list[tuple[Device, MigDevice]] = []
    for position in range(device.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        handle = device.ask("nvmlDeviceGetMigDeviceHandleByIndex", position)
        if handle is None:
            continue  # positions may have gaps
        one = Device(device.driver, handle, device.name)
        uuid = one.ask("nvmlDeviceGetUUID")
        if uuid is None:
            continue  # CUDA selects a slice by its UUID
        total, used = read_memory(one)
        slice_of = MigDevice(
            uuid=uuid,
            profile=_mig_profile(one.ask("nvmlDeviceGetName")),
            memory_total=total,
            gpu_instance=one.ask("nvmlDeviceGetGpuInstanceId"),
            compute_instance=one.ask("nvmlDeviceGetComputeInstanceId"),
            memory_used=used,
        )
        found.append((one, slice_of))
    return tuple(found)


def _mig_profile(name: str | None) -> str | None:
    """ "NVIDIA A100-SXM4-40GB MIG 3g.20gb" -> "3g.20gb"."""
    match = re.search(r"MIG (\S+)$", name or "")
    return match[1] if match else None
