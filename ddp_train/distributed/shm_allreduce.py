"""Averages gradients through memory that the ranks of one host share, where gloo would send them over loopback.

Each rank copies its gradients into its own part. The exchange of flags (flag_exchange.py) returns once all ranks have
done so; then each rank adds up all parts in rank order: the same bits everywhere. Two sets of parts alternate, so that
no rank overwrites what a slower one still reads: a rank begins a pass only after every rank has begun the one before.

The memory has no name in any file system, is not limited by /dev/shm, and is freed with the last process that maps it.
Cost: `python -m benchmarks.ddp_scaling`. Sources: memfd_create(2), proc_pid_fd(5).
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from ddp_core.host_memory import available_memory
from ddp_train.distributed.process_group import Ranks, on_first_rank, sum_over_ranks

MOST_RANKS = 4
"""Each rank reads all ranks' parts; with more ranks gloo's ring moves fewer bytes: each rank reads about two parts."""
_PART_OF_MEMORY = 8
"""The parts of all ranks together may take 1 / _PART_OF_MEMORY of the available memory."""
_ALIGNED = 64
_TOKEN = 16


class SharedGradients:
    """`parts`: uint8, (2, ranks, bytes). `wait`: see `wait_with`."""

    def __init__(self, parts: Tensor, rank: int, wait: Callable[[], object]) -> None:
        self._parts, self._rank = parts, rank
        self._wait = wait
        self._passes = 0
        self._filled = 0
        self._views: dict[tuple[int, int, int, torch.dtype, torch.Size], Tensor] = {}
        self._open: list[tuple[torch.futures.Future[Tensor], Tensor, int]] = []

    def wait_with(self, wait: Callable[[], object]) -> None:
        """Use `wait`, which returns once every rank has called it, and in which the ranks may exchange data too."""
        self._wait = wait

    def average(self, gradients: Tensor, *, last: bool) -> torch.futures.Future[Tensor]:
        """Replace `gradients` by their mean over the ranks, once the `last` ones of a backward pass are given.

        All ranks give tensors of the same sizes in the same order.
        """
        torch.div(gradients, self._parts.shape[1], out=self._part(self._rank, gradients, self._filled))
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        self._open.append((future, gradients, self._filled))
        self._filled += _aligned(gradients.nbytes)
        if last:
            self._wait()
            self._add_up()
        return future

    def _add_up(self) -> None:
        """Add the ranks' parts of each bucket in rank order, and finish its future."""
        for future, gradients, place in self._open:
            first, second, *others = (self._part(r, gradients, place) for r in range(self._parts.shape[1]))
            torch.add(first, second, out=gradients)
            for other in others:
                gradients.add_(other)
            future.set_result(gradients)
        self._open, self._filled, self._passes = [], 0, self._passes + 1

    def _part(self, rank: int, like: Tensor, place: int) -> Tensor:
        """The memory of `rank` for gradients of the type and shape of `like`, at the byte `place` of a pass."""
        key = self._passes % 2, rank, place, like.dtype, like.shape
        if (part := self._views.get(key)) is None:
            bytes_of_it = self._parts[self._passes % 2, rank, place : place + like.nbytes]
            part = self._views[key] = bytes_of_it.view(like.dtype).view(like.shape)
        return part


def share(network: nn.Module, ranks: Ranks, device: torch.device, wait: Callable[[], object]) -> SharedGradients | None:
    """Memory for the gradients of `network`, on all ranks alike; None where it cannot be shared.

    That is on GPUs, with one rank or more than MOST_RANKS, on several hosts, where the ranks cannot see each other's
    memory (each in its own container), or where too little memory is left. `wait`: see SharedGradients.
    """
    one_host = ranks.local_world_size == ranks.world_size
    if device.type != "cpu" or not one_host or not 2 <= ranks.world_size <= MOST_RANKS:
        return None
    # Enough room however the gradients are divided into buckets.
    size = sum(_aligned(p.nbytes) for p in network.parameters() if p.requires_grad)
    memory = _map_together(2 * ranks.world_size * size, ranks)
    if memory is None:
        return None
    parts = torch.frombuffer(memory, dtype=torch.uint8).view(2, ranks.world_size, size)
    return SharedGradients(parts, ranks.rank, wait)


def _aligned(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // _ALIGNED) * _ALIGNED


def _map_together(size: int, ranks: Ranks) -> mmap.mmap | None:
    """`size` bytes that all ranks map; None on all ranks where one of them cannot map them."""
    made: list[int] = []

    def make() -> tuple[str, bytes] | None:
        """Create the memory: its path and a token that begins it; None where that is impossible."""
        token = secrets.token_bytes(_TOKEN)
        with suppress(AttributeError, OSError):  # not Linux; no more files
            if size <= available_memory() // _PART_OF_MEMORY:
                made.append(os.memfd_create("gradients"))
                os.truncate(made[0], size)
                os.pwrite(made[0], token, 0)
                return f"/proc/{os.getpid()}/fd/{made[0]}", token
        return None

    def take(path: str, token: bytes) -> mmap.mmap | None:
        """Map the memory at `path`; None where it cannot be opened or begins with another token."""
        with suppress(OSError, ValueError):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                # In another container the same path may name a file of an unrelated process.
                if os.pread(handle, _TOKEN, 0) == token:
                    return mmap.mmap(handle, size)
            finally:
                os.close(handle)
        return None

    found = on_first_rank(make, ranks)
    memory = take(*found) if found is not None else None
    all_have_it = int(sum_over_ranks(torch.tensor(int(memory is not None)))) == ranks.world_size
    for handle in made:
        os.close(handle)
    return memory if all_have_it else None
