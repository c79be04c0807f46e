"""One rank of 8, 64 or 512, on a ghost GPU with torch's fake process group: what a rank does by itself at that size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.batch_split import split
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.load_balance import Speed, divide
from ddp_train.distributed.process_group import Ranks, choose_device, gpu_uuids
from tests.ghost import Gpu, cuda
from tests.ghost.runs import make

EACH = 3
"""Samples of a rank in a step."""
LOCAL = 8
"""Ranks of a node."""
World = Callable[[int, int], Ranks]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """`world(size, rank)`: this process is that rank. What the others would say is what this one says."""
    with cuda(*(Gpu(uuid=f"GPU-00000000-0000-0000-0000-{number:012x}") for number in range(LOCAL))):

        def begin(size: int, rank: int) -> Ranks:
            torch.distributed.distributed_c10d.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
            new_group = dist.new_group
            monkeypatch.setattr(dist, "new_group", lambda *args, **options: new_group(backend="fake"))
            return Ranks(rank, rank % LOCAL, size, LOCAL)

        def all_gather_object(found: list[Any], mine: object, group: object = None) -> None:
            found[:] = [mine] * len(found)

        def reduce(hook: AllreduceHook, bucket: Any) -> torch.futures.Future[torch.Tensor]:
            hook._issued += 1
            mean: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            mean.set_result(bucket.buffer())
            return mean

        def gather_object(mine: object, found: list[Any] | None = None, **options: object) -> None:
            if found is not None:
                found[:] = [mine] * len(found)

        def broadcast_object_list(found: list[Any], **options: object) -> None:
            found[:] = [{} if value is None else value for value in found]  # rank 0's fingerprints: all leaves differ

        monkeypatch.setattr(dist, "gather_object", gather_object)
        monkeypatch.setattr(dist, "broadcast_object_list", broadcast_object_list)
        monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
        monkeypatch.setattr(AllreduceHook, "_reduce", reduce)  # the fake group's work has no value
        for module in [*sys.modules.values()]:  # rank 0 answers nobody here: each rank asks itself
            if getattr(module, "__name__", "").startswith("ddp_train") and hasattr(module, "on_first_rank"):
                monkeypatch.setattr(module, "on_first_rank", lambda action, ranks: action())
        yield begin
        dist.destroy_process_group()


@pytest.mark.parametrize(("size", "rank"), [(8, 3), (64, 63), (512, 0), (512, 511)])
def test_a_rank_takes_its_steps(size: int, rank: int, world: World, tmp_path: Path) -> None:
    ranks = world(size, rank)
    device = choose_device("cuda", ranks)
    assert device == torch.device("cuda", rank % LOCAL)
    torch.cuda.set_device(device)
    options = f"--synthetic-samples {EACH * size + size // 2} --batch-size {EACH * size} --save-every 1"
    run = make(options, tmp_path / "run", "tests.ddp_train.techniques.tiny:plain", ranks, device)
    components = run.trainer.components
    hook = components.allreduce_hook
    assert hook is not None
    windows = [(window.samples, window.size) for window in components.pipeline.train(0)]
    last = rank < size // 2  # every other sample of the last global batch is no rank's
    assert windows == [(EACH, EACH * size), (int(last), size // 2)]
    buckets = []
    step = run.trainer.train_step

    def counted(window: Any) -> None:
        hook.begin_step()
        step(window)
        buckets.append(hook.issued)

    run.trainer.train_step = counted  # type: ignore[method-assign]
    run.trainer.fit()
    assert run.trainer.progress.step == 2
    assert buckets == [1, 1], "a rank without a sample takes part too"
    assert run.facts.world_size == size and len(gpu_uuids(ranks, device)) == LOCAL
    if ranks.is_first:
        state: Any = checkpoint_format.load(tmp_path / "run" / "checkpoint-latest.pt")
        assert len(state["ranks"]) == size and state["progress"]["step"] == 2


@pytest.mark.parametrize("size", [8, 64, 512])
def test_the_ranks_parts_are_the_whole(size: int) -> None:
    samples, batch = 5 * size * EACH + 7, EACH * size + 1
    shares = [1.0 + (rank % 5) for rank in range(size)]
    for how in ({}, {"shares": shares}, {"shards": size + 3}):
        parts = [
            [*GlobalBatchSampler(range(samples), global_batch=batch, world_size=size, rank=rank, **how).plan()]
            for rank in range(size)
        ]
        for step in zip(*parts, strict=True):
            assert all(one.stop == other.start for one, other in pairwise(step))
            assert step[-1].stop - step[0].start == step[0].global_size
        assert (parts[0][0].start, parts[-1][-1].stop) == (0, samples)


@pytest.mark.parametrize("size", [8, 64, 512])
def test_shares_follow_the_speeds(size: int) -> None:
    speeds = [Speed(0.001, 0.001 * (1 + rank % 2)) for rank in range(size)]
    found = divide(64 * size, speeds)
    assert sum(found.samples) == 64 * size and found.seconds == pytest.approx(0.001 + 0.001 * 64 * 4 / 3, rel=0.06)
    assert split(64 * size, [1.0] * size) == [64] * size
