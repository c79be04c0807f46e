"""Which GPUs and MIG slices may be used, and why the others may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpu_topology.driver.gpu import DOUBTFUL_UTILIZATION, MPS_SERVER
from gpu_topology.host.torch_build import TorchBuild
from gpu_topology.select.nvlinks import without_any
from gpu_topology.select.visible import Device, Visible
from gpu_topology.topology import Gpu, GpuProcess, LinkLevel, Topology

MIB, GIB = 2**20, 2**30

# A GPU is busy when other processes compute on it, or hold more of its memory, a desktop's aside, than both of these.
BUSY_FRACTION = 0.10
BUSY_FLOOR_BYTES = 512 * MIB

# Memory that a desktop may hold where its processes are not listed (a screen is attached; Windows around WSL).
_DESKTOP_BYTES = 2 * GIB

# Utilization in percent from which a process that draws counts as a game or a renderer, not as a desktop.
_DRAWING_UTILIZATION = 60

_FABRIC_UP = ("completed", "degraded")
_NOT_BEFORE = ("reset", "bus-reset", "drain-and-reset", "reboot")
_ALL_THE_SAME = "(name it with --gpus to use it anyway)"
ALLOW_BUSY = " (--allow-busy uses it anyway)"


@dataclass(frozen=True, slots=True)
class Rules:
    """The demands of a request on a device.

    asked, excluded  a GPU includes each of its MIG slices
    min_memory       bytes
    own_pids         processes that count as the user's own
    owners           process -> its user ("alice"), as far as known
    claims           UUID -> who has claimed that device but does not use it yet
    hidden_desktop   whether a desktop may use the GPUs without a visible process (WSL)
    torch            the installed torch, None where it does not matter
    runnable         whether that torch has code for any GPU that may be used (set by `usable`)
    silent           GPUs that do not report what others do, with the reason (set by `usable`)
    fabric_up        whether the NVSwitch fabric works for any GPU here (set by `usable`)
    cut_off          GPUs without a working NVLink among others with one, with the reason (set by `usable`)
    """

    visible: Visible | None = None
    visible_value: str | None = None
    asked: tuple[Device, ...] = ()
    excluded: tuple[Device, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0
    own_pids: frozenset[int] = frozenset()
    owners: Mapping[int, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)
    hidden_desktop: bool = False
    torch: TorchBuild | None = None
    runnable: bool = False
    silent: Mapping[int, str] = field(default_factory=dict)
    fabric_up: bool = False
    cut_off: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usable:
    """The devices that may be used, in NVML's order; `refused`: NVML index -> why not, for the other GPUs.

    A GPU in MIG mode is replaced by its slices, some of which may be missing without a reason.
    """

    devices: tuple[Device, ...]
    refused: Mapping[int, str]

    def of(self, device: Device) -> tuple[Device, ...]:
        """This device or, for a GPU in MIG mode, its slices, as far as they may be used."""
        return tuple(one for one in self.devices if one.is_part_of(device))


def usable(topology: Topology, rules: Rules) -> Usable:
    """Check every GPU and slice."""
    fabric_up = any(gpu.fabric_state in _FABRIC_UP for gpu in topology.gpus)
    rules = replace(rules, fabric_up=fabric_up, cut_off=_cut_off(topology), silent=silent(topology))
    judged = [(gpu, [(device, refusal(device, rules)) for device in devices_of(gpu)]) for gpu in topology.gpus]
    if rules.torch is not None and any(
        reason is None and rules.torch.runs_on(device.gpu.compute_capability)
        for _, devices in judged
        for device, reason in devices
    ):
        rules = replace(rules, runnable=True)
        judged = [(gpu, [(device, reason or no_code(device, rules)) for device, reason in of]) for gpu, of in judged]
    refused = {
        gpu.index: _together(gpu, [reason for _, reason in of if reason is not None])
        for gpu, of in judged
        if all(reason is not None for _, reason in of)
    }
    fit = tuple(device for _, of in judged for device, reason in of if reason is None)
    return Usable(fit, refused)


def devices_of(gpu: Gpu) -> tuple[Device, ...]:
    """The GPU, or its slices where MIG is on and there are any."""
    slices = tuple(Device(gpu, mig) for mig in gpu.mig_devices) if gpu.mig_mode else ()
    return slices or (Device(gpu),)


def refusal(device: Device, rules: Rules) -> str | None:
    """Why this device cannot be used: the most important reason; None when it can."""
    return next((reason for check in _CHECKS if (reason := check(device, rules)) is not None), None)


def silent(topology: Topology) -> dict[int, str]:
    """The GPUs that do not report name, memory or compute capability although others do, with the reason.

    A value that no GPU reports is missing because of the driver or of the topology file, not because of the GPUs.
    """
    # A GPU in MIG mode is judged by its slices instead.
    gpus = [gpu for gpu in topology.gpus if gpu.error is None and not gpu.mig_mode]
    found: dict[int, list[str]] = {}
    for attribute, words in _NEEDED.items():
        lacking = [gpu for gpu in gpus if getattr(gpu, attribute) is None]
        for gpu in lacking if len(lacking) < len(gpus) else ():
            found.setdefault(gpu.index, []).append(words)
    return {index: f"its {' and '.join(missing)} cannot be read" for index, missing in found.items()}


_NEEDED = {"name": "name", "memory_total": "memory", "compute_capability": "compute capability"}


def busy(device: Device, rules: Rules) -> str | None:
    """Evidence that others use this device or have claimed it; None without any.

    A program that draws, such as a desktop or a browser, and an MPS server without clients do not count. Utilization is
    reported for whole GPUs; a MIG slice has the processes of its GPU instance, and those without a reported instance.
    """
    others = [process for process in _compute_processes(device) if process.pid not in rules.own_pids]
    if others:
        first = max(others, key=lambda process: process.used_memory or 0) if len(others) > 1 else others[0]
        size = "" if first.used_memory is None else f" with {size_words(first.used_memory)}"
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return f"in use by {'MPS client ' * first.mps_client}process {_who(first, rules)}{size}{more}"
    if claim := rules.claims.get(device.uuid):
        return claim
    work = None if device.mig else _at_work(device.gpu, rules)
    return " and ".join(words for words in (_memory_in_use(device, rules), work) if words) or None


def _who(process: GpuProcess, rules: Rules) -> str:
    """`4711 (python, alice)`, as far as known."""
    about = [words for words in (process.name, rules.owners.get(process.pid)) if words]
    return f"{process.pid} ({', '.join(about)})" if about else str(process.pid)


def size_words(size: int) -> str:
    """ "3.1 GiB", "26 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.0f} MiB"


def drawn(gpu: Gpu) -> int:
    """Bytes that the processes of a desktop hold on a GPU."""
    return sum(process.used_memory or 0 for process in gpu.graphics_processes or ())


def _memory_in_use(device: Device, rules: Rules) -> str | None:
    """Memory that other processes hold beyond a desktop's, in words; None below the limits. A slice has no desktop."""
    gpu, total, used = device.gpu, device.memory_total, device.memory_used
    if not total or used is None:
        return None
    used -= sum(process.used_memory or 0 for process in _listed(device) if process.pid in rules.own_pids)
    desktop = 0 if device.mig else max(drawn(gpu), _DESKTOP_BYTES if _desktop_may_hide(gpu, rules) else 0)
    if used - desktop <= max(BUSY_FRACTION * total, BUSY_FLOOR_BYTES):
        return None
    return f"{used / total:.0%} of its memory is in use"


def _desktop_may_hide(gpu: Gpu, rules: Rules) -> bool:
    """Whether a desktop with hidden processes may hold memory; the Windows around WSL always hides its own."""
    unlisted = gpu.processes is None and gpu.graphics_processes is None
    return bool(gpu.display_active) or rules.hidden_desktop or unlisted


def _at_work(gpu: Gpu, rules: Rules) -> str | None:
    """Utilization by processes that a container or the kernel hides, in words; None without any."""
    if any(process.pid in rules.own_pids for process in gpu.processes or ()):
        return None
    drawing = gpu.graphics_processes or gpu.display_active or rules.hidden_desktop
    if (gpu.utilization or 0) < (_DRAWING_UTILIZATION if drawing else DOUBTFUL_UTILIZATION):
        return None
    if not drawing:
        return f"{gpu.utilization}% utilization with the processes hidden"
    largest = max(gpu.graphics_processes or (), key=lambda process: process.used_memory or 0, default=None)
    if largest is None:
        return f"{gpu.utilization}% utilization"
    size = f" with {size_words(largest.used_memory)}" if largest.used_memory else ""
    return f"{gpu.utilization}% utilization while process {_who(largest, rules)} draws{size}"


def _compute_processes(device: Device) -> list[GpuProcess]:
    """The compute processes on a device: no desktop, no MPS server."""
    drawing = set() if device.mig else {process.pid for process in device.gpu.graphics_processes or ()}
    return [process for process in _listed(device) if process.pid not in drawing and process.name != MPS_SERVER]


def _listed(device: Device) -> list[GpuProcess]:
    """The processes that the driver lists as computing on a device; on a slice also those without an instance."""
    mig = device.mig
    every = device.gpu.processes or ()
    if mig is None or mig.gpu_instance is None:
        return list(every)
    return [process for process in every if process.gpu_instance in (None, mig.gpu_instance)]


def _cut_off(topology: Topology) -> dict[int, str]:
    """The few GPUs without a working NVLink among others with working ones, with the reason.

    Such a GPU would make NCCL give up all peer access in the run. In a pair it is unknown which of the two is faulty.
    """
    sliced = {gpu.index for gpu in topology.gpus if gpu.mig_mode}
    nvlinks = [link for link in topology.links if link.level is LinkLevel.NV and not sliced & {link.a, link.b}]
    working = {end for link in nvlinks if link.p2p in (None, "ok") for end in (link.a, link.b)}
    beside: dict[int, set[int]] = {}
    for link in nvlinks:
        beside.setdefault(link.a, set()).add(link.b)
        beside.setdefault(link.b, set()).add(link.a)
    found = [gpu for gpu, others in beside.items() if gpu not in working and len(others & working) > 1]
    refused = dict.fromkeys(found, "none of its NVLinks gives peer access, but those of other GPUs do")
    bare = dict.fromkeys(without_any(topology), "it has no active NVLink, but the other GPUs of its board do")
    return (refused if len(found) < len(working) else {}) | bare


def _together(gpu: Gpu, reasons: list[str]) -> str:
    """The combined reason for a GPU that has no usable slice."""
    different = list(dict.fromkeys(reasons))
    if not gpu.mig_mode or len(reasons) == len(different) == 1:
        return different[0]
    if len(different) == 1 and not different[0].startswith("busy"):
        return different[0]
    return f"none of its {len(reasons)} MIG slices can be used: {'; '.join(different)}"


def _broken(device: Device, rules: Rules) -> str | None:
    """Why a GPU cannot be read."""
    return device.gpu.error or rules.silent.get(device.index)


def _hidden(device: Device, rules: Rules) -> str | None:
    """Whether CUDA_VISIBLE_DEVICES hides the device."""
    if rules.visible is None or rules.visible.position(device) is not None:
        return None
    return f"outside CUDA_VISIBLE_DEVICES={rules.visible_value}"


def _excluded(device: Device, rules: Rules) -> str | None:
    """Whether the request excludes the device."""
    return "excluded by request" if _among(device, rules.excluded) else None


def _not_asked(device: Device, rules: Rules) -> str | None:
    """Whether the request names other devices."""
    return "not among the requested GPUs" if rules.asked and not _among(device, rules.asked) else None


def _prohibited(device: Device, rules: Rules) -> str | None:
    """Whether the compute mode forbids its use."""
    prohibited = device.gpu.compute_mode == "prohibited"
    return "its compute mode is Prohibited (nvidia-smi -c 0 allows compute)" if prohibited else None


def _no_slices(device: Device, rules: Rules) -> str | None:
    """Whether MIG is on without a slice."""
    if not device.gpu.mig_mode or device.mig:
        return None
    return "MIG is on and it has no usable slice (compute instance)"


def _erring(device: Device, rules: Rules) -> str | None:
    """Why a GPU with errors is left out; None where it has none, or the request names it."""
    gpu = device.gpu
    if _among(device, rules.asked):
        return None
    if "row-remap-failed" in (gpu.memory_faults or ()):
        return f"its memory is defective: a bad row could not be replaced {_ALL_THE_SAME}"
    if gpu.ecc_uncorrected:
        errors = f"{gpu.ecc_uncorrected} uncorrectable memory error{'s' * (gpu.ecc_uncorrected > 1)}"
        return f"{errors} since the driver was loaded: it needs a reset {_ALL_THE_SAME}"
    if gpu.recovery in _NOT_BEFORE:
        return f"the driver asks for a {gpu.recovery.replace('-', ' ')} first {_ALL_THE_SAME}"
    if rules.fabric_up and gpu.fabric_state is not None and gpu.fabric_state not in _FABRIC_UP:
        return f"its NVSwitch fabric is {gpu.fabric_state}, while that of other GPUs is up {_ALL_THE_SAME}"
    if gpu.index in rules.cut_off:
        return f"{rules.cut_off[gpu.index]} {_ALL_THE_SAME}"
    return None


def no_code(device: Device, rules: Rules) -> str | None:
    """Why the installed torch cannot compute on this device; None where it can, or where that is unknown."""
    torch, capability = rules.torch, device.gpu.compute_capability
    if torch is None or capability is None or torch.runs_on(capability) is not False:
        return None
    if rules.runnable and _among(device, rules.asked):
        return None
    return torch.no_code_for(capability)


def _small(device: Device, rules: Rules) -> str | None:
    """Whether the device has less memory than the request asks for."""
    if not rules.min_memory:
        return None
    total = device.memory_total
    typed = getattr(rules.min_memory, "typed", f"{rules.min_memory / GIB:.1f} GiB")
    if total is None:
        return f"its memory is unknown, {typed} required"
    has = f"{total / GIB:.1f} GiB" + ("" if "i" in typed else f" ({total / 10**9:.1f} GB)")
    return f"has {has}, {typed} required" if total < rules.min_memory else None


def _busy(device: Device, rules: Rules) -> str | None:
    """Whether others use the device, unless the request names it or allows that."""
    if rules.allow_busy or _among(device, rules.asked):
        return None
    reason = busy(device, rules)
    return f"busy: {reason}{ALLOW_BUSY}" if reason else None


def _among(device: Device, named: tuple[Device, ...]) -> bool:
    """Whether a device is one of those named, or a slice of one."""
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
