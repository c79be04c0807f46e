"""Which GPUs and MIG slices may be used, and for each other GPU the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpu_topology.select.visible import Device, Visible
from gpu_topology.topology import Gpu, GpuProcess, LinkLevel, Topology

# A desktop's few hundred MiB do not make a GPU busy; a tenth of its memory does, as does any compute process of others.
BUSY_FRACTION = 0.10
BUSY_FLOOR_BYTES = 512 * 2**20

GIB = 2**30

_FABRIC_UP = ("completed", "degraded")
_ALL_THE_SAME = "(name it with --gpus to use it all the same)"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a request asks of a device.

    asked, excluded  a GPU includes each of its MIG slices
    min_memory       bytes
    own_pids         processes whose memory is not that of others
    claims           UUID -> who has claimed that device without being on it yet
    fabric_up        whether the NVSwitch fabric works for some GPU here (`usable` looks)
    cut_off          GPUs with NVLinks that lead nowhere, among others with NVLinks that work (`usable` looks)
    """

    visible: Visible | None = None
    visible_value: str | None = None
    asked: tuple[Device, ...] = ()
    excluded: tuple[Device, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0
    own_pids: frozenset[int] = frozenset()
    claims: Mapping[str, str] = field(default_factory=dict)
    fabric_up: bool = False
    cut_off: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Usable:
    """The devices that may be used, in NVML's order, and why each other GPU may not (by NVML index).

    A GPU in MIG mode is replaced by its slices, of which some may be left out without a reason.
    """

    devices: tuple[Device, ...]
    refused: Mapping[int, str]

    def of(self, device: Device) -> tuple[Device, ...]:
        """Those that are this device or, of a GPU, its slices."""
        return tuple(one for one in self.devices if one.is_part_of(device))


def usable(topology: Topology, rules: Rules) -> Usable:
    """Judge every GPU and slice."""
    fabric_up = any(gpu.fabric_state in _FABRIC_UP for gpu in topology.gpus)
    rules = replace(rules, fabric_up=fabric_up, cut_off=_cut_off(topology))
    devices: list[Device] = []
    refused: dict[int, str] = {}
    for gpu in topology.gpus:
        judged = [(device, refusal(device, rules)) for device in devices_of(gpu)]
        fit = [device for device, reason in judged if reason is None]
        devices += fit
        if not fit:
            refused[gpu.index] = _together(gpu, [reason for _, reason in judged if reason is not None])
    return Usable(tuple(devices), refused)


def devices_of(gpu: Gpu) -> tuple[Device, ...]:
    """The GPU, or its slices where MIG is on and there are any."""
    slices = tuple(Device(gpu, mig) for mig in gpu.mig_devices) if gpu.mig_mode else ()
    return slices or (Device(gpu),)


def refusal(device: Device, rules: Rules) -> str | None:
    """Why this device cannot be used, None when it can. The first reason that applies, the weightiest first."""
    return next((reason for check in _CHECKS if (reason := check(device, rules)) is not None), None)


def busy(device: Device, rules: Rules) -> str | None:
    """Which others are on this device, or have claimed it; None when nobody is or the driver does not report.

    A program that draws and computes, such as a browser, counts by its memory alone. Memory is reported for whole
    GPUs; a MIG slice has the processes of its GPU instance, and those without a reported instance.
    """
    others = [process for process in _compute_processes(device) if process.pid not in rules.own_pids]
    if others:
        first = others[0]
        size = "" if first.used_memory is None else f" with {first.used_memory / GIB:.1f} GiB"
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return f"in use by process {first.pid}{size}{more}"
    gpu = device.gpu
    if claim := rules.claims.get(device.uuid):
        return claim
    if device.mig or not gpu.memory_total or gpu.memory_used is None:
        return None
    own = sum(process.used_memory or 0 for process in gpu.processes or () if process.pid in rules.own_pids)
    used = gpu.memory_used - own
    if used <= max(BUSY_FRACTION * gpu.memory_total, BUSY_FLOOR_BYTES):
        return None
    return f"{used / gpu.memory_total:.0%} of its memory is in use"


def _compute_processes(device: Device) -> list[GpuProcess]:
    gpu, mig = device.gpu, device.mig
    if mig:
        here = (None, mig.gpu_instance)
        return [one for one in gpu.processes or () if mig.gpu_instance is None or one.gpu_instance in here]
    drawing = {process.pid for process in gpu.graphics_processes or ()}
    return [process for process in gpu.processes or () if process.pid not in drawing]


def _cut_off(topology: Topology) -> frozenset[int]:
    """The few GPUs with NVLinks to several others and peer access over none, while those others have it among them.

    With such a GPU in the run, NCCL has to be kept from all peer access; of a pair it would not be known which is bad.
    """
    sliced = {gpu.index for gpu in topology.gpus if gpu.mig_mode}
    nvlinks = [link for link in topology.links if link.level is LinkLevel.NV and not sliced & {link.a, link.b}]
    working = {end for link in nvlinks if link.p2p in (None, "ok") for end in (link.a, link.b)}
    beside: dict[int, set[int]] = {}
    for link in nvlinks:
        beside.setdefault(link.a, set()).add(link.b)
        beside.setdefault(link.b, set()).add(link.a)
    found = frozenset(gpu for gpu, others in beside.items() if gpu not in working and len(others & working) > 1)
    return found if len(found) < len(working) else frozenset()


def _together(gpu: Gpu, reasons: list[str]) -> str:
    """One reason for a GPU none of whose slices can be used."""
    different = list(dict.fromkeys(reasons))
    if not gpu.mig_mode or len(reasons) == len(different) == 1:
        return different[0]
    if len(different) == 1 and not different[0].startswith("busy"):
        return different[0]
    return f"none of its {len(reasons)} MIG slices can be used: {'; '.join(different)}"


def _broken(device: Device, rules: Rules) -> str | None:
    return device.gpu.error


def _hidden(device: Device, rules: Rules) -> str | None:
    if rules.visible is None or rules.visible.position(device) is not None:
        return None
    return f"outside CUDA_VISIBLE_DEVICES={rules.visible_value}"


def _excluded(device: Device, rules: Rules) -> str | None:
    return "excluded by request" if _among(device, rules.excluded) else None


def _not_asked(device: Device, rules: Rules) -> str | None:
    return "not among the GPUs asked for" if rules.asked and not _among(device, rules.asked) else None


def _prohibited(device: Device, rules: Rules) -> str | None:
    prohibited = device.gpu.compute_mode == "prohibited"
    return "its compute mode is Prohibited (nvidia-smi -c 0 allows compute)" if prohibited else None


def _no_slices(device: Device, rules: Rules) -> str | None:
    if not device.gpu.mig_mode or device.mig:
        return None
    return "MIG is on and it has no slice (compute instance) that could be used"


def _erring(device: Device, rules: Rules) -> str | None:
    gpu = device.gpu
    if _among(device, rules.asked):
        return None
    if "row-remap-failed" in (gpu.memory_faults or ()):
        return f"its memory is defective: a bad row could not be replaced {_ALL_THE_SAME}"
    if gpu.ecc_uncorrected:
        errors = f"{gpu.ecc_uncorrected} uncorrectable memory error{'s' * (gpu.ecc_uncorrected > 1)}"
        return f"{errors} since the driver was loaded: a reset is due {_ALL_THE_SAME}"
    if rules.fabric_up and gpu.fabric_state is not None and gpu.fabric_state not in _FABRIC_UP:
        return f"its NVSwitch fabric is {gpu.fabric_state}, that of other GPUs is up {_ALL_THE_SAME}"
    if gpu.index in rules.cut_off:
        return f"none of its NVLinks gives peer access, those of other GPUs do {_ALL_THE_SAME}"
    return None


def _small(device: Device, rules: Rules) -> str | None:
    if not rules.min_memory:
        return None
    total = device.memory_total
    wanted = f"{rules.min_memory / GIB:.1f} GiB are asked for"
    if total is None:
        return f"its memory is unknown, {wanted}"
    return f"has {total / GIB:.1f} GiB, {wanted}" if total < rules.min_memory else None


def _busy(device: Device, rules: Rules) -> str | None:
    if rules.allow_busy or _among(device, rules.asked):
        return None
    reason = busy(device, rules)
    return f"busy: {reason}" if reason else None


def _among(device: Device, named: tuple[Device, ...]) -> bool:
    return any(device.is_part_of(one) for one in named)


_CHECKS: tuple[Callable[[Device, Rules], str | None], ...] = (
    _broken,
    _hidden,
    _excluded,
    _not_asked,
    _prohibited,
    _no_slices,
    _erring,
    _small,
    _busy,
)
