"""GPUs, what is allocated on them, and the mark that every storage carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

CPU = torch.device("cpu")
BLOCK = 512
"""Bytes to which torch's allocator rounds each request up."""
MARK = "_ghost"


@dataclass(eq=False)
class Gpu:
    """One GPU. total: bytes; used_by_others: bytes that other processes hold."""

    name: str = "NVIDIA Ghost"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    total: int = 16 * 2**30
    capability: tuple[int, int] = (9, 0)
    used_by_others: int = 0
    fraction: float = 1.0
    allocated: int = 0
    peak: int = 0
    reserved: int = 0
    peak_reserved: int = 0
    queued: int = 0
    """Operations that were given to it so far."""
    done: int = 0
    """How many of them the host knows to be done."""
    words: list[Callable[[str], Exception | None]] = field(default_factory=list)
    """How libraries say that memory is short; each is asked with the operation's name, torch's own words come last."""

    @property
    def limit(self) -> int:
        """Bytes that this process may have."""
        return min(self.total - self.used_by_others, int(self.fraction * self.total))

    def take(self, size: int, operation: str) -> None:
        """Allocate. Errors: torch.OutOfMemoryError, or what a library says in its place."""
        if self.allocated + size > self.limit:
            raise self._out_of_memory(size, operation)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        # What is freed stays reserved until empty_cache.
        self.reserved = max(self.reserved, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def give_back(self, size: int) -> None:
        self.allocated -= size

    def _out_of_memory(self, size: int, operation: str) -> Exception:
        for say in self.words:
            if (error := say(operation)) is not None:
                return error
        return torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity of "
            f"{self.total / 2**30:.2f} GiB of which {(self.limit - self.allocated) / 2**20:.2f} MiB is free."
        )


class Allocation:
    """The mark of a storage: where it is, and on a GPU its bytes, which end with it.

    ready: of pinned memory that a GPU writes to, the operation that does; 0: it can be read.
    """

    __slots__ = ("device", "gpu", "pinned", "ready", "size", "writer")

    def __init__(self, device: torch.device, gpu: Gpu | None = None, size: int = 0, *, pinned: bool = False) -> None:
        self.device, self.gpu, self.size, self.pinned = device, gpu, size, pinned
        self.ready, self.writer = 0, gpu

    def __del__(self) -> None:
        if self.gpu is not None:
            self.gpu.give_back(self.size)


HOST = Allocation(CPU)


def allocation_of(tensor: Tensor) -> Allocation | None:
    """The mark of the tensor's storage; None where nobody has said where it is, as of what C++ has made."""
    try:
        storage = torch._C.TensorBase.untyped_storage(tensor)
    except (NotImplementedError, RuntimeError):  # sparse, functorch's wrappers
        return None
    return getattr(storage, MARK, None)


def mark(tensor: Tensor, allocation: Allocation) -> None:
    setattr(torch._C.TensorBase.untyped_storage(tensor), MARK, allocation)


def allocate(tensor: Tensor, device: torch.device, gpus: list[Gpu], operation: str = "") -> Tensor:
    """Say that the tensor's storage is on `device`. Errors: those of Gpu.take."""
    held = allocation_of(tensor)
    if held is not None and held.device == device and not held.pinned:
        return tensor
    if device.type != "cuda":
        mark(tensor, HOST)
        return tensor
    gpu, size = gpus[device.index], -(-tensor.untyped_storage().nbytes() // BLOCK) * BLOCK
    gpu.take(size, operation)
    mark(tensor, Allocation(device, gpu, size))
    return tensor
