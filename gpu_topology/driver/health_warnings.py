"""Warnings about the health of the GPUs. Pure: GPUs in, sentences out.

The NVSwitch fabric is not here: what its state means depends on the selection (environment/notes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpu_topology.topology import Gpu

_THROTTLE = {
    "thermal": "its clocks are held back by heat: see to the cooling",
    "hw-thermal": "the hardware halves its clocks or worse because of heat: see to the cooling",
    "hw-power-brake": "the power supply makes it slow down (power brake): see to the power supply",
}

_RECOVERY = {
    "reset": "the driver asks for a reset of it: `nvidia-smi --gpu-reset` when idle",
    "bus-reset": "the driver asks for a reset of it: `nvidia-smi --gpu-reset` when idle",
    "drain-and-reset": "the driver asks to end its work and reset it: `nvidia-smi --gpu-reset` when idle",
    "drain-p2p": "the driver asks to end all peer access to it: see `nvidia-smi -q -d RECOVERY_ACTION`",
    "reboot": "the driver asks for a reboot of this machine",
    "recover-imex-domain": "the driver asks to recover its IMEX domain: see the fabric service of the rack",
}

# DCGM treats 8 replays per minute as a fault; the driver reports only the total.
_MANY_REPLAYS = 100

# Used only where none of the more exact reasons above applies.
_SLOWDOWN = "the hardware holds its clocks back (heat or power): see `nvidia-smi -q -d PERFORMANCE`"

_MEMORY = {
    "row-remap-failed": "a faulty row of its memory could not be replaced: have the card exchanged",
    "row-remap-pending": "a faulty row of its memory is replaced at the next reset: `nvidia-smi --gpu-reset` when idle",
    "page-retirement-pending": "faulty memory pages are retired at the next reboot or driver reload",
}


def concerns(gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """One line for each fault, naming all GPUs that have it; the gravest first.

    A PCIe generation below the card's is no fault: the links of idle GPUs drop to save power, and rise under load.
    """
    found: dict[str, list[int]] = {}
    for check in (_errors, _recovery, _memory_errors, _pcie, _nvlinks, _slow_clocks):
        for gpu in gpus:
            for message in check(gpu):
                found.setdefault(message, []).append(gpu.index)
    return tuple(f"GPU {', '.join(map(str, indices))}: {message}" for message, indices in found.items())


def _errors(gpu: Gpu) -> Iterator[str]:
    """The GPU's error, if it has one."""
    if gpu.error:
        yield gpu.error


def _recovery(gpu: Gpu) -> Iterator[str]:
    """The reset or reboot that the driver asks for."""
    if gpu.recovery in _RECOVERY:
        yield _RECOVERY[gpu.recovery]


def _memory_errors(gpu: Gpu) -> Iterator[str]:
    """Uncorrected memory errors, and rows that could not be replaced."""
    if gpu.ecc_uncorrected:
        count = f"{gpu.ecc_uncorrected} uncorrected memory error{'s' if gpu.ecc_uncorrected > 1 else ''}"
        yield f"{count} since the driver was loaded: a run on it can crash; see `nvidia-smi -q -d ECC`"
    yield from (_MEMORY[fault] for fault in gpu.memory_faults or () if fault in _MEMORY)


def _pcie(gpu: Gpu) -> Iterator[str]:
    """Many PCIe replays, or a link with fewer lanes than the card has."""
    if (gpu.pcie_replays or 0) >= _MANY_REPLAYS:
        yield f"{gpu.pcie_replays} PCIe replays since the driver was loaded: check the riser and the slot"
    now, full, slot = gpu.pcie_width_now, gpu.pcie_width, gpu.pcie_slot_width
    if not (now and full and now < full):
        return
    if slot is None:
        why = "the slot or riser may have no more (`lspci -vv` shows it, LnkCap of the port above)"
    else:
        why = (
            "its slot has no more"
            if slot <= now
            else f"its slot has {min(slot, full)}: reseat the card, check the riser"
        )
    yield f"its PCIe link runs on {now} of {full} lanes: {why}"


def _nvlinks(gpu: Gpu) -> Iterator[str]:
    """NVLinks with transmission errors."""
    if gpu.nvlink_errors:
        links = f"NVLink{'s' * (len(gpu.nvlink_errors) > 1)} {', '.join(map(str, gpu.nvlink_errors))}"
        yield f"its {links} had to repeat or recover transmissions: see `nvidia-smi nvlink -e`"


def _slow_clocks(gpu: Gpu) -> Iterator[str]:
    """Reasons why the clocks are held back."""
    reasons = gpu.throttle or ()
    exact = [_THROTTLE[reason] for reason in reasons if reason in _THROTTLE]
    yield from exact
    if "hw-slowdown" in reasons and not exact:
        yield _SLOWDOWN
