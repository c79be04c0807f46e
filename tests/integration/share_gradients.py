"""The program of the ranks of test_shared_gradients.py: averages gradients through shared memory as each case says.

python tests/integration/share_gradients.py RESULT.json
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ddp_train.distributed import process_group, shm_allreduce
from ddp_train.distributed.allreduce_hook import AllreduceHook

CPU = torch.device("cpu")
PASSES, SIZES = 6, ((300,), (7, 11), (1,), (40, 3, 3, 3))
KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float32)


def gradients_of(rank: int, step: int) -> list[torch.Tensor]:
    """Numbers of very different size: each order of adding them up rounds in another way."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    return [
        (torch.randn(size, generator=draw) * 10.0 ** (rank % 3)).to(kind)
        for size, kind in zip(SIZES, KINDS, strict=True)
    ]


def passes(ranks: process_group.Ranks) -> dict[str, Any]:
    """Several backward passes, with a rank that dawdles: another one each time."""
    shapes = nn.ParameterList([torch.zeros(size, dtype=kind) for size, kind in zip(SIZES, KINDS, strict=True)])
    shared = shm_allreduce.share(shapes, ranks, CPU, dist.barrier)
    assert shared is not None
    wrong, early = 0, 0
    for step in range(PASSES):
        if step % ranks.world_size == ranks.rank:
            time.sleep(0.05)
        mine = gradients_of(ranks.rank, step)
        futures = [shared.average(gradient, last=False) for gradient in mine[:-1]]
        early += sum(future.done() for future in futures)
        futures.append(shared.average(mine[-1], last=True))
        everyone = [gradients_of(rank, step) for rank in range(ranks.world_size)]
        for index, (future, gradient) in enumerate(zip(futures, mine, strict=True)):
            expected = everyone[0][index] / ranks.world_size
            for others in everyone[1:]:
                expected += others[index] / ranks.world_size
            wrong += not (future.wait() is gradient and torch.equal(gradient, expected))
    return {"wrong": wrong, "early": early}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 600), nn.Linear(600, 10))


def weights(ranks: process_group.Ranks, how: str) -> str:
    """The weights of four steps by the wrapper itself, by our hook over gloo, or by our hook and shared memory."""
    model = network()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1)
    if how != "wrapper":
        memory = shm_allreduce.share(model, ranks, CPU, dist.barrier) if how == "shared" else None
        assert (memory is not None) == (how == "shared")
        allreduce_hook = AllreduceHook(ddp, memory)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    draw = torch.Generator().manual_seed(ranks.rank)
    for _ in range(4):
        ddp(torch.randn(8, 3, 8, 8, generator=draw)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert how == "wrapper" or allreduce_hook.issued > 4, "several buckets a step"
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


@contextmanager
def nothing_opens(path: str) -> Iterator[None]:
    """As where a rank is in another container: the path is not there, or is a stranger's file."""
    genuine = os.open

    def other(name: Any, *words: Any, **more: Any) -> int:
        if str(name).startswith("/proc/"):
            if path:
                return genuine(path, os.O_RDWR)
            raise FileNotFoundError(name)
        return genuine(name, *words, **more)

    with mock.patch.object(os, "open", other):
        yield


def refused(ranks: process_group.Ranks, folder: Path) -> dict[str, bool]:
    """Whether each case has all ranks send their gradients."""
    model, (first, last) = network(), (ranks.is_first, ranks.rank == ranks.world_size - 1)

    def without() -> bool:
        mine = shm_allreduce.share(model, ranks, CPU, dist.barrier) is None
        count = process_group.sum_over_ranks(torch.tensor(int(mine)))
        assert int(count) in (0, ranks.world_size), "the ranks must agree"
        return mine

    strange = folder / f"strange-{ranks.rank}"
    strange.write_bytes(bytes(10_000_000))
    found = {"nothing is wrong": without()}
    with mock.patch.object(shm_allreduce, "available_memory", lambda: 1000 if first else 10**12):
        found["too little memory"] = without()
    with nothing_opens("") if last else mock.MagicMock():
        found["another container"] = without()
    with nothing_opens(str(strange)) if last else mock.MagicMock():
        found["a stranger's file"] = without()
    with mock.patch.object(os, "memfd_create", mock.Mock(side_effect=OSError(24, "Too many open files"))):
        found["no more files"] = without()
    found["several hosts"] = (
        shm_allreduce.share(model, process_group.Ranks(ranks.rank, 0, ranks.world_size, 1), CPU, dist.barrier) is None
    )
    found["the stranger's file is untouched"] = strange.read_bytes() == bytes(10_000_000)
    return found


def main() -> None:
    result = Path(sys.argv[1])
    torch.set_num_threads(1)
    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, CPU, timeout_s=60)
    files = len([*Path("/proc/self/fd").iterdir()])
    mine = {
        "passes": passes(ranks),
        "weights": {how: weights(ranks, how) for how in ("wrapper", "hook", "shared")},
        "refused": refused(ranks, result.parent),
    }
    mine["files"] = len([*Path("/proc/self/fd").iterdir()]) - files
    everyone: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(everyone, mine)
    if ranks.is_first:
        result.write_text(json.dumps(everyone))
    process_group.leave(0)


if __name__ == "__main__":
    main()
