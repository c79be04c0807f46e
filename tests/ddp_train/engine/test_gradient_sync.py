"""The gradient of a global batch from its micro-batches, with one all-reduce; and the seeds of its shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.distributed.process_group import Ranks
from ddp_train.engine.gradient_sync import Averaged, seed_shard
from ddp_train.technique import Moment

CPU = torch.device("cpu")
MOMENT = Moment(0, 5, 7, 0)
IMAGES, TARGETS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 2


@pytest.fixture
def ddp() -> Iterator[DistributedDataParallel]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield DistributedDataParallel(nn.Linear(3, 2))
    dist.destroy_process_group()


def window(*lengths: int, size: int = 7) -> Window:
    parts = zip(*(t[: sum(lengths)].split(lengths) for t in (IMAGES, TARGETS, torch.arange(7))), strict=True)
    return Window(iter([Batch(*part) for part in parts]), len(lengths), sum(lengths), size)


def compute(model: nn.Module, seen: list[float]) -> object:
    def one(batch: Batch, moment: Moment, weight: float) -> None:
        seen.append(weight)
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="sum")
        (loss * weight).backward()

    return one


def expected(model: nn.Module) -> list[Tensor]:
    loss = nn.functional.cross_entropy(model(IMAGES), TARGETS)
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("lengths", [(7,), (3, 4), (1, 1, 5)])
def test_unequal_micro_batches_give_the_gradient_of_the_mean_with_one_all_reduce(
    ddp: DistributedDataParallel, lengths: tuple[int, ...]
) -> None:
    hook = AllreduceHook(ddp)
    sync = Averaged(Ranks(), CPU, ddp, pytest.fail)
    whole = window(*lengths)
    sync.gradients(whole, whole.batches, MOMENT, compute(ddp, []), communicate=True)  # type: ignore[arg-type]
    assert hook.issued == 1
    for parameter, gradient in zip(ddp.module.parameters(), expected(ddp.module), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    whole = window(*lengths)
    sync.gradients(whole, whole.batches, MOMENT, compute(ddp, []), communicate=False)  # type: ignore[arg-type]
    assert hook.issued == 1, "nothing was sent"


def test_a_backward_pass_is_weighted_by_ranks_and_global_batch() -> None:
    weights: list[float] = []
    sync = Averaged(Ranks(rank=1, world_size=3), CPU, None, pytest.fail)
    part = window(4, size=12)
    sync.gradients(part, part.batches, MOMENT, compute(nn.Linear(3, 2), weights), communicate=True)  # type: ignore[arg-type]
    assert weights == [3 / 12]


def test_a_rank_without_samples_takes_part() -> None:
    calls: list[str] = []
    sync = Averaged(Ranks(), CPU, None, lambda: calls.append("joined"))
    nothing = Window(iter(()), 0, 0, 7)
    sync.gradients(nothing, nothing.batches, MOMENT, pytest.fail, communicate=True)
    assert calls == ["joined"]
    sync.gradients(nothing, nothing.batches, MOMENT, pytest.fail, communicate=False)
    assert calls == ["joined"], "nothing is sent"


def test_a_shards_draws_depend_on_seed_step_and_shard() -> None:
    def draws(moment: Moment) -> tuple[float, ...]:
        seed_shard(CPU, moment)
        return tuple(torch.rand(4).tolist())

    moments = [MOMENT, Moment(0, 6, 7, 0), Moment(0, 5, 8, 0), Moment(0, 5, 7, 1)]
    assert len({draws(moment) for moment in moments}) == 4
    assert draws(MOMENT) == draws(Moment(3, 5, 7, 0)), "the epoch follows from the step"
