"""Who does what among the ranks, where no process group is needed."""

from __future__ import annotations

import pytest

from ddp_train.distributed import Ranks, on_one_rank_per_node


@pytest.mark.parametrize("virtual", [False, True])
def test_one_rank_per_node_also_where_each_is_local_rank_0(virtual: bool) -> None:
    """Nodes of 2 and 3 ranks; world_size 1 keeps the process group out of it."""
    acted = []
    for first, count in ((0, 2), (2, 3)):
        for local in range(count):
            ranks = Ranks(first + local, 0 if virtual else local, 1, count)
            on_one_rank_per_node(lambda first=first: acted.append(first), ranks)
    assert acted == [0, 2]
