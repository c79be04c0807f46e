"""The process group, rank facts, and exact reductions.

Every function works at world size 1 without a process group, so that the same trainer runs as a plain
Python program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from ddp_core.errors import SharedError, UserError
from ddp_train.distributed.heartbeat import heartbeat

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank and the world size. `local_*` count the processes of this node."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints for the user."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """From the variables that torchrun sets; a single process where they are missing."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        try:
            values = [int(os.environ.get(name, default)) for name, default in zip(names, (0, 0, 1, 1), strict=True)]
        except ValueError:
            raise UserError(f"{', '.join(names)} must be whole numbers, as torchrun sets them") from None
        return cls(*values)


def choose_device(wanted: str, ranks: Ranks) -> torch.device:
    """The device of this rank for `--device auto|cpu|cuda`. UserError when a GPU is asked for and missing."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ranks.local_rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = f"CUDA_VISIBLE_DEVICES={visible}" if visible is not None else "CUDA_VISIBLE_DEVICES is not set"
        option = "--nproc" if "DDP_LAUNCH" in os.environ else "--nproc_per_node"
        raise SharedError(
            f"--device {wanted}: {ranks.local_world_size} local ranks need as many GPUs, torch sees {count} ({shown}); "
            f"lower {option}, or use --device cpu",
            speaks=ranks.local_rank == count,
        )
    return torch.device("cuda", ranks.local_rank)


def device_name(device: torch.device) -> str:
    """The model of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def wait_for_device(device: torch.device) -> None:
    """Return once a GPU has finished all the work queued on it: for measurements."""
    if device.type == "cuda":
        with heartbeat.during("device"):
            torch.cuda.synchronize(device)


def gpu_uuid(device: torch.device) -> str:
    """NVML's name of a GPU, or of a MIG slice."""
    kind = "MIG" if os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-") else "GPU"
    return f"{kind}-{torch.cuda.get_device_properties(device).uuid}"


def gpu_uuids(ranks: Ranks, device: torch.device) -> tuple[str, ...]:
    """NVML's names of the GPUs of this node's ranks. A collective on GPUs: with torchrun's --virtual-local-rank a rank
    does not see the GPUs of the others."""
    if device.type != "cuda":
        return ()
    first = ranks.rank - ranks.rank % ranks.local_world_size
    return tuple(gather(gpu_uuid(device), ranks)[first : first + ranks.local_world_size])


def start(ranks: Ranks, device: torch.device, timeout_s: float = 1800.0) -> None:
    """Join the process group: NCCL for GPUs, gloo for the CPU. Nothing to do at world size 1."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1:
        return
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    with heartbeat.during("communication"):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=device_id)


def stop() -> None:
    """Leave the process group, if there is one. Call it only where all ranks do: NCCL waits for every rank."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_first_rank(action: Callable[[], T], ranks: Ranks) -> T:
    """Run `action` on rank 0 alone and return its (small) result on every rank. A UserError there is raised on all."""
    results: list[T | None] = [together(action if ranks.is_first else lambda: None, ranks)]
    if ranks.world_size > 1:
        with heartbeat.during("communication"):
            dist.broadcast_object_list(results, src=0)
    return cast(T, results[0])


def on_one_rank_per_node(action: Callable[[], None], ranks: Ranks, meanwhile: Callable[[], None] | None = None) -> None:
    """Run `action` on one rank of each node, `meanwhile` on the others; all wait. A UserError of any is raised on all.

    A node's ranks are consecutive, so its first rank is a multiple of their number. LOCAL_RANK cannot be used:
    with torchrun --virtual-local-rank it is 0 on every rank.
    """
    together(action if ranks.rank % ranks.local_world_size == 0 else meanwhile or (lambda: None), ranks)


def together(action: Callable[[], T], ranks: Ranks) -> T:
    """Run `action` on this rank; then raise any rank's UserError on all ranks, so that none waits for a failed one."""
    refusal: str | None = None
    try:
        result = action()
    except UserError as error:
        refusal = str(error)
    for text in gather(refusal, ranks):
        if text is not None:
            raise SharedError(text, speaks=ranks.is_first)
    return result


def gather(mine: T, ranks: Ranks, group: Any = None) -> list[T]:
    """Every rank's `mine`, in rank order, on every rank. A collective, over `group` if one is given."""
    everyone = [mine] * ranks.world_size
    if ranks.world_size > 1:
        with heartbeat.during("communication"):
            dist.all_gather_object(everyone, mine, group=group)
    return everyone


def wait_for_all() -> None:
    """Return once every rank has called this: a barrier."""
    if dist.is_initialized():
        with heartbeat.during("communication"):
            dist.barrier()


def leave(status: int) -> NoReturn:
    """End the process with `status`, after a success together with all ranks. Call it last, once all files are written.

    After a success, and while there is a process group, Python's and C++'s own tear-down is skipped: there a torch
    thread can abort the process and change its status ("terminate called without an active exception").
    """
    if status and not dist.is_initialized():
        sys.exit(status)
    if status == 0:
        wait_for_all()
        stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all ranks, in place."""
    if dist.is_initialized():
        with heartbeat.during("communication"):
            dist.all_reduce(values)
    return values


def to_host(values: torch.Tensor) -> list[float]:
    """The numbers of a tensor [n]. On a GPU the host waits for them here, and so also for a rank that hangs."""
    if values.device.type != "cuda":
        return values.tolist()
    with heartbeat.during("device"):
        return values.tolist()


@torch.no_grad()
def take_first_ranks(model: nn.Module, ranks: Ranks) -> None:
    """Give all ranks rank 0's parameters and buffers."""
    if ranks.world_size > 1:
        _take_first([*model.parameters(), *model.buffers()])


@torch.no_grad()
def average_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give all ranks the same batch statistics: the mean of each floating-point buffer over the ranks.

    Each rank's batch norm sees its own share of every global batch; before evaluation and checkpoints
    the running estimates are joined. Whole-number buffers (num_batches_tracked) take rank 0's value.
    """
    if ranks.world_size == 1:
        return

    def mean(flat: torch.Tensor) -> None:
        """Replace the values by their mean over the ranks."""
        dist.all_reduce(flat)
        flat /= ranks.world_size

    _as_one([b for b in model.buffers() if b.is_floating_point()], torch.float64, mean)
    _take_first([b for b in model.buffers() if not b.is_floating_point()])


@torch.no_grad()
def average(tensors: list[torch.Tensor], ranks: Ranks) -> None:
    """Replace the tensors by their means over the ranks."""

    def mean(flat: torch.Tensor) -> None:
        """Replace the values by their mean over the ranks."""
        flat /= ranks.world_size
        sum_over_ranks(flat)

    for dtype in {tensor.dtype: None for tensor in tensors}:  # in order of appearance: the same on all ranks
        _as_one([t for t in tensors if t.dtype == dtype], dtype, mean)


def _take_first(tensors: list[torch.Tensor]) -> None:
    """Overwrite the tensors with rank 0's."""
    for dtype in {tensor.dtype: None for tensor in tensors}:  # in order of appearance: the same on all ranks
        _as_one([t for t in tensors if t.dtype == dtype], dtype, lambda flat: dist.broadcast(flat, src=0))


def _as_one(tensors: list[torch.Tensor], dtype: torch.dtype, collective: Callable[[torch.Tensor], object]) -> None:
    """Run `collective` on the values of all tensors, joined into one of `dtype`, and copy the results back."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten().to(dtype) for tensor in tensors])
    with heartbeat.during("communication"):
        collective(flat)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))
