"""Gradients through memory that the ranks share: the sums of gloo, and gloo where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddp_train.distributed import shm_allreduce
from ddp_train.distributed.process_group import Ranks
from tests.ranks import run_ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_average_through_shared_memory(tmp_path: Path, ranks: int) -> None:
    result = tmp_path / "result.json"
    run_ranks(ranks, Path(__file__).with_name("share_gradients.py"), str(result), folder=tmp_path)
    everyone = json.loads(result.read_text())
    assert len(everyone) == ranks
    for found in everyone:
        assert found == everyone[0], "all ranks find the same, the weights too"
        assert found["passes"] == {"wrong": 0, "early": 0}
        # Two numbers have one sum, whatever the order, and a half is exact; a third is not.
        assert len(set(found["weights"].values())) == 1 or ranks > 2
        assert [name for name, refused in found["refused"].items() if not refused] == ["nothing is wrong"]
        assert found["files"] == 0, "no file stays open"


@pytest.mark.parametrize(
    ("world_size", "device"), [(1, "cpu"), (shm_allreduce.MOST_RANKS + 1, "cpu"), (2, "cuda"), (2, "meta")]
)
def test_nothing_is_shared_on_one_rank_on_many_or_on_a_gpu(world_size: int, device: str) -> None:
    ranks = Ranks(0, 0, world_size, world_size)
    assert shm_allreduce.share(torch.nn.Linear(2, 2), ranks, torch.device(device), pytest.fail) is None
