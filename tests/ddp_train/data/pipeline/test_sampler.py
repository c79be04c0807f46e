"""The order of samples: the same global batches on any number of ranks, from any step."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from ddp_train.data.pipeline.sampler import GlobalBatchSampler


def samplers(length: int, batch: int, ranks: int, **options: object) -> list[GlobalBatchSampler]:
    return [
        GlobalBatchSampler(range(length), global_batch=batch, world_size=ranks, rank=rank, **options)  # type: ignore[arg-type]
        for rank in range(ranks)
    ]


def global_batches(parts: list[GlobalBatchSampler], epoch: int, start: int = 0) -> list[list[int]]:
    """Each global batch, put together from the ranks' parts in order of rank."""
    for part in parts:
        part.set_epoch(epoch)
    steps = zip(*(part.windows(start) for part in parts), strict=True)
    batches = []
    for windows in steps:
        batches.append([i for _, indices in windows for i in indices.tolist()])
        assert {part.global_size for part, _ in windows} == {len(batches[-1])}
    return batches


@pytest.mark.parametrize("length", [64, 65, 101])
@pytest.mark.parametrize("drop_last", [False, True])
def test_global_batches_do_not_depend_on_the_ranks(length: int, drop_last: bool) -> None:
    alone = global_batches(samplers(length, 16, 1, seed=3, drop_last=drop_last), epoch=2)
    for ranks, shares in itertools.product((2, 3, 5), (None, (5, 1, 0, 2.5, 3))):
        weights = shares[:ranks] if shares is not None else None
        parts = samplers(length, 16, ranks, seed=3, drop_last=drop_last, shares=weights)
        assert global_batches(parts, epoch=2) == alone


def test_an_epoch_holds_each_sample_once() -> None:
    batches = global_batches(samplers(65, 16, 2), epoch=0)
    assert [len(batch) for batch in batches] == [16, 16, 16, 16, 1]
    assert sorted(itertools.chain(*batches)) == list(range(65))


def test_drop_last_leaves_out_the_partial_batch() -> None:
    parts = samplers(65, 16, 2, drop_last=True)
    assert [len(batch) for batch in global_batches(parts, 0)] == [16] * 4
    assert sum(len(part) for part in parts) == 64
    assert samplers(15, 16, 1, drop_last=True)[0].steps_per_epoch == 0


def test_a_rank_may_get_no_sample_of_the_last_batch() -> None:
    sizes = [[len(indices) for _, indices in part.windows()] for part in samplers(17, 8, 3)]
    assert sizes == [[3, 3, 1], [3, 3, 0], [2, 2, 0]]


def test_shares_decide_how_much_a_rank_gets() -> None:
    sizes = [[len(indices) for _, indices in part.windows()] for part in samplers(20, 8, 3, shares=(5, 1, 2))]
    assert sizes == [[5, 5, 3], [1, 1, 0], [2, 2, 1]]


def test_resuming_at_a_step_continues_the_epoch() -> None:
    whole = global_batches(samplers(101, 8, 1), epoch=4)
    for step in (0, 1, 7, 12, 13, 20):
        assert global_batches(samplers(101, 8, 3), epoch=4, start=step) == whole[step:]


def test_order_depends_on_seed_and_epoch() -> None:
    seen = {tuple(global_batches(samplers(50, 50, 1, seed=s), epoch=e)[0]) for s in (0, 1) for e in (0, 1)}
    assert len(seen) == 4  # seed + epoch, as the base class has it, would make (0, 1) and (1, 0) equal


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    assert global_batches(samplers(7, 3, 2, shuffle=False), 5) == [[0, 1, 2], [3, 4, 5], [6]]


def test_it_serves_a_dataloader_as_a_distributed_sampler() -> None:
    part = samplers(21, 6, 2)[1]
    assert isinstance(part, DistributedSampler)
    loaded = torch.cat(list(DataLoader(torch.arange(21), batch_size=3, sampler=part)))  # type: ignore[arg-type]
    assert loaded.tolist() == list(part) == [i for _, indices in part.windows() for i in indices.tolist()]
    assert len(part) == len(loaded) == 10  # 3 + 3 + 3 + 1


@pytest.mark.parametrize("wrong", [{"global_batch": 0}, {"global_batch": 4, "shares": (1.0, 1.0)}])
def test_refuses_what_cannot_be_cut(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"global_batch|shares"):
        GlobalBatchSampler(range(5), **wrong)  # type: ignore[arg-type]
