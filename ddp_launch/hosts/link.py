"""The ranks' program that measures the network between hosts: one rank on each, an all-reduce with exact sums.

Rank 0 prints one JSON object: seconds of an all-reduce and its bytes, or what went wrong. This file runs as a script.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KIND = "ddp-launch-link"
MODULUS = 31
"""Values are whole numbers below this, so that sums are exact in float32."""
SMALL, LARGE = 1 << 20, 1 << 26
ENOUGH_S, TURNS = 0.3, 4
JOIN_S = 20


def main(*, cpu: bool) -> None:
    """Measure, and print the result or the problem. `cpu`: use gloo even where there are GPUs."""
    facts: dict[str, object] = {"kind": KIND, "backend": None}
    try:
        facts |= _measure(cpu=cpu)
    except Exception as error:
        facts["problem"] = " ".join(str(error).split())[:500]
    if os.environ["RANK"] == "0" or "problem" in facts:
        print(json.dumps({**facts, "rank": int(os.environ["RANK"])}), flush=True)
    # NCCL and gloo may hang while they leave a group that was never complete.
    os._exit(int("problem" in facts))


def _numbers(places: torch.Tensor, rank: int) -> torch.Tensor:
    """Whole numbers as float32, different on each rank."""
    return ((places * 7 + rank * 13) % MODULUS).float()


def _measure(*, cpu: bool) -> dict[str, object]:
    """Join the process group and time all-reduces of growing size; what rank 0 prints."""
    import torch
    import torch.distributed as dist

    on_gpu = not cpu and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=JOIN_S))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    wrong, size, seconds = False, SMALL, 0.0
    while True:
        places = torch.arange(size // 4, dtype=torch.int32, device=device)
        mine = _numbers(places, rank)
        expected = torch.zeros_like(mine)
        for other in range(world_size):
            expected += _numbers(places, other)
        taken = []
        for _ in range(1 + TURNS):
            values = mine.clone()
            # All ranks begin together; the first turn of a size is a warm-up.
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(values)
            if on_gpu:
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begin)
            wrong = wrong or not torch.equal(values, expected)
        slowest = torch.tensor([sum(taken[1:]) / TURNS, float(wrong)], device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        seconds, wrong = float(slowest[0]), bool(slowest[1])
        if seconds * TURNS > ENOUGH_S or size >= LARGE:
            break
        size *= 4
    facts: dict[str, object] = {"backend": backend, "ranks": world_size, "bytes": size, "seconds": seconds}
    return {**facts, "problem": "the sums of an all-reduce are wrong"} if wrong else facts


if __name__ == "__main__":
    # Do not search this file's folder, where modules have the names of other modules.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main(cpu="--cpu" in sys.argv)
