"""Which GPUs may be used, and for each other one the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gpu_topology.grouping import best_slice
from gpu_topology.topology import Gpu, MigDevice
from gpu_topology.visible import Visible

# A desktop's few hundred MiB do not make a GPU busy; a tenth of its memory does, as does any compute process.
BUSY_FRACTION = 0.10
BUSY_FLOOR_BYTES = 512 * 2**20

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Rules:
    """What a request asks of a GPU. `asked` and `excluded` are NVML indices, `slices` the MIG slices
    asked for by UUID; `min_memory` is bytes."""

    visible: Visible | None = None
    visible_value: str | None = None
    asked: tuple[int, ...] = ()
    slices: Mapping[int, MigDevice] = field(default_factory=dict)
    excluded: tuple[int, ...] = ()
    allow_busy: bool = False
    min_memory: int = 0


def refusal(gpu: Gpu, rules: Rules) -> str | None:
    """Why this GPU cannot be used, None when it can. The first reason that applies, the weightiest first."""
    return next((reason for check in _CHECKS if (reason := check(gpu, rules)) is not None), None)


def busy(gpu: Gpu) -> str | None:
    """Who is on this GPU, None when nobody is (or the driver does not tell).

    A MIG GPU is busy when each of its slices has a process.
    """
    if gpu.mig_mode:
        return None if best_slice(gpu, allow_busy=False) else "each of its MIG slices is in use"
    if gpu.processes:
        first = gpu.processes[0]
        size = "" if first.used_memory is None else f" with {first.used_memory / GIB:.1f} GiB"
        more = f" and {len(gpu.processes) - 1} more" if len(gpu.processes) > 1 else ""
        return f"in use by process {first.pid}{size}{more}"
    if not gpu.memory_total or gpu.memory_used is None:
        return None
    if gpu.memory_used <= max(BUSY_FRACTION * gpu.memory_total, BUSY_FLOOR_BYTES):
        return None
    return f"{gpu.memory_used / gpu.memory_total:.0%} of its memory is in use"


def _broken(gpu: Gpu, rules: Rules) -> str | None:
    return gpu.error


def _hidden(gpu: Gpu, rules: Rules) -> str | None:
    if rules.visible is None or rules.visible.find(gpu.index) is not None:
        return None
    return f"outside CUDA_VISIBLE_DEVICES={rules.visible_value}"


def _excluded(gpu: Gpu, rules: Rules) -> str | None:
    return "excluded by request" if gpu.index in rules.excluded else None


def _not_asked(gpu: Gpu, rules: Rules) -> str | None:
    return "not among the GPUs asked for" if rules.asked and gpu.index not in rules.asked else None


def _prohibited(gpu: Gpu, rules: Rules) -> str | None:
    return (
        "its compute mode is Prohibited (nvidia-smi -c 0 allows compute)" if gpu.compute_mode == "prohibited" else None
    )


def _no_slices(gpu: Gpu, rules: Rules) -> str | None:
    return "MIG is on and it has no slice (compute instance)" if gpu.mig_mode and not gpu.mig_devices else None


def _small(gpu: Gpu, rules: Rules) -> str | None:
    if not rules.min_memory:
        return None
    one = best_slice(gpu) if gpu.mig_mode else None
    total = one.memory_total if one else gpu.memory_total
    wanted = f"{rules.min_memory / GIB:.1f} GiB are asked for"
    if total is None:
        return f"its memory is unknown, {wanted}"
    return f"has {total / GIB:.1f} GiB, {wanted}" if total < rules.min_memory else None


def _busy(gpu: Gpu, rules: Rules) -> str | None:
    if rules.allow_busy or gpu.index in rules.asked:
        return None
    reason = busy(gpu)
    return f"busy: {reason}" if reason else None


_CHECKS: tuple[Callable[[Gpu, Rules], str | None], ...] = (
    _broken,
    _hidden,
    _excluded,
    _not_asked,
    _prohibited,
    _no_slices,
    _small,
    _busy,
)
