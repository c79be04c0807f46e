"""A GPU's state of health, from the driver: memory and link errors, clocks held back, and the NVSwitch fabric."""

from __future__ import annotations

import ctypes

from gpu_topology.driver import library
from gpu_topology.driver.library import Device

# nvmlClocksEventReasons (nvml.h). Left out: idle (0x1), clocks set by a user (0x2), clocks of the display (0x100).
_THROTTLE = {
    0x04: "power-cap",
    0x08: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "thermal",
    0x40: "hw-thermal",
    0x80: "hw-power-brake",
}

# nvmlDeviceGpuRecoveryAction_t (nvml.h)
_RECOVERIES = {
    0: "none",
    1: "reset",
    2: "reboot",
    3: "drain-p2p",
    4: "drain-and-reset",
    5: "recover-imex-domain",
    6: "bus-reset",
    7: "reboot",
}

# nvmlNvLinkErrorCounter_t (nvml.h): replayed and recovered transmissions. Bits that CRC corrected are no fault.
_LINK_ERRORS = (0, 1)

_FABRIC_STATES = {1: "not-started", 2: "in-progress", 3: "completed"}  # 0: no fabric to bring up
_FABRIC_COMPLETED = 3

# NVML_GPU_FABRIC_HEALTH_MASK_* (nvml.h): (shift, width mask, the values that mean trouble).
_FABRIC_TROUBLE = (
    (0, 0x3, {1}),  # bandwidth degraded
    (2, 0x3, {1}),  # route recovery in progress
    (4, 0x3, {1}),  # route unhealthy
    (6, 0x3, {1}),  # recovery from an access timeout in progress
    (8, 0xF, set(range(2, 16))),  # incorrect configuration; 1 is none
)


class _FabricInfo(ctypes.Structure):
    """nvmlGpuFabricInfo_v2_t (nvml.h). Releases 12 of nvidia-ml-py lack it or declare it with a wrong layout."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("cluster_uuid", ctypes.c_uint8 * 16),
        ("status", ctypes.c_uint),
        ("clique", ctypes.c_uint32),
        ("state", ctypes.c_uint),
        ("health", ctypes.c_uint32),
    )


def fabric(device: Device) -> tuple[str | None, str | None]:
    """`Gpu.fabric_state` and `Gpu.fabric_cluster`; None where there is no fabric, or the driver does not report it."""
    info = _FabricInfo(version=2 << 24 | ctypes.sizeof(_FabricInfo))
    # nvidia-ml-py passes this argument on unchanged: without byref the driver would write through a null pointer.
    if device.ask("nvmlDeviceGetGpuFabricInfoV", ctypes.byref(info)) is None:
        return None, None
    if info.state != _FABRIC_COMPLETED:
        return _FABRIC_STATES.get(info.state), None
    uuid = bytes(info.cluster_uuid).hex()
    # All zeros where the fabric is within one machine, which needs no name.
    cluster = f"{uuid}/{info.clique}" if uuid.strip("0") else None
    if info.status != 0:  # an NVML error, valid once the state is "completed"
        return "failed", cluster
    poor = any(info.health >> shift & width in trouble for shift, width, trouble in _FABRIC_TROUBLE)
    return "degraded" if poor else "completed", cluster


def ecc(device: Device) -> tuple[bool | None, int | None]:
    """Whether ECC is on, and the uncorrected errors since the driver was loaded."""
    mode, problem = device.field(library.ECC_MODE), None
    if mode is None:
        modes, problem = device.try_ask("nvmlDeviceGetEccMode")
        mode = modes and modes[0]
    on = None if mode is None else mode == 1
    if on is False:
        return on, None
    errors = device.field(library.UNCORRECTED_ERRORS)
    if errors is None and problem != "NVML_ERROR_NOT_SUPPORTED":
        # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC
        errors = device.ask("nvmlDeviceGetTotalEccErrors", 1, 0)
    return on, errors


def memory_faults(device: Device) -> tuple[str, ...] | None:
    """`Gpu.memory_faults`: row remapping on Ampere and newer, page retirement on older GPUs."""
    pending, failed = device.field(library.REMAP_PENDING), device.field(library.REMAP_FAILED)
    retiring = device.field(library.RETIREMENT_PENDING)
    if None in (pending, failed) and retiring is None:
        if (rows := device.ask("nvmlDeviceGetRemappedRows")) is not None:
            _, _, pending, failed = rows
        else:
            retiring = device.ask("nvmlDeviceGetRetiredPagesPendingStatus")
    if pending is failed is retiring is None:
        return None
    words = ("row-remap-failed", failed), ("row-remap-pending", pending), ("page-retirement-pending", retiring)
    return tuple(word for word, is_so in words if is_so)


def throttle(device: Device) -> tuple[str, ...] | None:
    """`Gpu.throttle`: what holds the clocks back at this moment."""
    bits = device.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:  # its name before driver 535
        bits = device.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    return None if bits is None else tuple(word for bit, word in _THROTTLE.items() if bits & bit)


def counters(device: Device) -> tuple[str | None, int | None, tuple[int, ...] | None]:
    """`Gpu.recovery`, `Gpu.pcie_replays` and `Gpu.nvlink_errors`."""
    recovery, replays = device.field(library.RECOVERY_ACTION), device.field(library.PCIE_REPLAYS)
    links = device.field(library.NVLINK_REPLAYS), device.field(library.NVLINK_RECOVERIES)
    if None in links:
        erring = None
    else:
        erring = tuple(link for link in range(library.MAX_LINKS) if any(links) and _link_has_errors(device, link))
    return None if recovery is None else _RECOVERIES.get(recovery), replays, erring


def _link_has_errors(device: Device, link: int) -> bool:
    """Whether any error counter of an NVLink is above 0."""
    return any(device.ask("nvmlDeviceGetNvLinkErrorCounter", link, counter) for counter in _LINK_ERRORS)
