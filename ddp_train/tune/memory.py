"""How much memory a step takes, and how much there is: the GPU's by torch's allocator, the host's by the kernel."""

from __future__ import annotations

import resource
from typing import Protocol

import psutil
import torch

from ddp_core.host_memory import available_memory
from ddp_train.diagnostics.memory_report import read_peak, reset_peak
from ddp_train.tune.preserve import release_memory


class Memory(Protocol):
    """Memory of one device as one process sees it, in bytes; None is not known.

    `limit`: the most that `peak` may reach. `reset` forgets the peak and frees what nothing refers to.
    """

    @property
    def limit(self) -> int | None: ...

    def reset(self) -> None: ...

    def peak(self) -> int | None: ...


class GpuMemory:
    """The memory that torch's allocator has reserved from the device, not only the part that tensors fill."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def limit(self) -> int:
        """Free memory plus what this process has reserved, at most its share of the device (see
        torch.cuda.set_per_process_memory_fraction)."""
        free, total = torch.cuda.mem_get_info(self._device)
        share = torch.cuda.get_per_process_memory_fraction(self._device)
        return int(min(free + torch.cuda.memory_reserved(self._device), share * total))

    def reset(self) -> None:
        """Forget the peak."""
        release_memory()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Peak of the reserved bytes since `reset`."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device)


class HostMemory:
    """Resident memory of this process. `sharers`: processes like this one among which the free memory is shared."""

    def __init__(self, sharers: int = 1) -> None:
        # Read once: what the steps themselves free and take must not move the limit.
        own = psutil.Process().memory_info()
        self.limit: int | None = own.rss + available_memory() // sharers
        # psutil's `data` counts the stack too, which RLIMIT_DATA does not; it is small.
        for kind, used in ((resource.RLIMIT_AS, own.vms), (resource.RLIMIT_DATA, own.data)):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                self.limit = min(self.limit, own.rss + max(0, soft - used))

    def reset(self) -> None:
        """Forget the peak, where the kernel allows that."""
        release_memory()
        self._known = reset_peak(torch.device("cpu"))

    def peak(self) -> int | None:
        """Peak resident bytes since `reset`; None where the kernel does not let a process reset its peak."""
        return read_peak(torch.device("cpu")) if self._known else None


def memory_of(device: torch.device, sharers: int = 1) -> Memory:
    """The memory that a step on `device` uses."""
    return GpuMemory(device) if device.type == "cuda" else HostMemory(sharers)
