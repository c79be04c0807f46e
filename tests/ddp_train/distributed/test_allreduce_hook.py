"""DistributedDataParallel: a rank that leaves a step completes its all-reduces with zeros, and both continue."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.distributed.allreduce_hook import AllreduceHook
from tests.ranks import run_ranks


def rank_main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.25)
    hook = AllreduceHook(ddp)
    images = torch.ones(2, 300) * (rank + 1)

    def step(*, leave: bool) -> list[float]:
        hook.begin_step()
        if leave:
            hook.complete_step()
        else:
            ddp(images).square().sum().backward()
        found = [hook.issued, *(0.0 if p.grad is None else float(p.grad.double().sum()) for p in model.parameters())]
        ddp.zero_grad(set_to_none=True)
        return found

    step(leave=False)  # the wrapper finds its buckets
    found = {"whole": step(leave=False), "left": step(leave=rank == 1)}
    hook.reset()
    found["after"] = [step(leave=False), step(leave=False)][1]
    model(images).square().sum().backward()
    found["alone"] = [float(p.grad.double().sum()) for p in model.parameters() if p.grad is not None]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


def test_a_rank_that_leaves_a_step_completes_its_all_reduces(tmp_path: Path) -> None:
    run_ranks(2, __file__, str(tmp_path), folder=tmp_path, timeout_s=100)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["whole"] == second["whole"] and first["whole"][0] > 1, "several buckets"
    torch.testing.assert_close(first["left"][1:], [value / 2 for value in first["alone"]])
    assert first["after"] == second["after"] == first["whole"]


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
