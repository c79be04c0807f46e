"""How much memory a step takes, and how much there is: the GPU's by torch's allocator, the host's by the kernel."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Protocol

import psutil
import torch

from ddp_core.host_memory import available_memory
from ddp_train.diagnostics.memory_report import read_peak, reset_peak
from ddp_train.tune.preserve import release_memory


class Memory(Protocol):
    """Memory of one device as one process sees it, in bytes."""

    @property
    def limit(self) -> int | None:
        """The most that `peak` may come to; None where nobody tells."""
        ...

    def reset(self) -> None:
        """Forget the peak so far; give back what nothing refers to."""
        ...

    def peak(self) -> int | None:
        """The most that was in use since `reset`; None where nobody tells."""
        ...


class GpuMemory:
    """What torch's allocator has reserved: that, not what tensors fill of it, is taken from the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def limit(self) -> int:
        """What is free, what this process has reserved, and no more than its share of the device (see
        torch.cuda.set_per_process_memory_fraction)."""
        free, total = torch.cuda.mem_get_info(self._device)
        share = torch.cuda.get_per_process_memory_fraction(self._device)
        return int(min(free + torch.cuda.memory_reserved(self._device), share * total))

    def reset(self) -> None:
        """See Memory."""
        release_memory()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """See Memory."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device)


class HostMemory:
    """Resident memory of this process. `sharers`: processes like this one among which the free memory is shared."""

    def __init__(self, sharers: int = 1) -> None:
        # Once: what the steps themselves free and take must not move the limit.
        own = psutil.Process().memory_info()
        self.limit: int | None = own.rss + available_memory() // sharers
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                used = own.vms if kind == resource.RLIMIT_AS else _data()
                self.limit = min(self.limit, own.rss + max(0, soft - used))

    def reset(self) -> None:
        """See Memory."""
        release_memory()
        self._known = reset_peak(torch.device("cpu"))

    def peak(self) -> int | None:
        """See Memory; None where the kernel does not let a process reset its peak."""
        return read_peak(torch.device("cpu")) if self._known else None


def memory_of(device: torch.device, sharers: int = 1) -> Memory:
    """The memory that a step on `device` uses."""
    return GpuMemory(device) if device.type == "cuda" else HostMemory(sharers)


def _data() -> int:
    """Bytes that count against RLIMIT_DATA: proc(5), VmData."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "VmData:"), 0)
