"""Under --reproducible the number of ranks, and what becomes of it on the way, leave no trace in a single bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from ddp_train.checkpoint import format as checkpoint_format
from tests.faults.runs import Runs

STEPS = 40
OPTIONS = (
    "--reproducible --reproducible-shards 4 --epochs 4 --synthetic-samples 152 "
    "--optimizer muon --lookahead 5 --ema 0.8 --mixup 0.5"
)
"""On a network with batch norm and dropout; the last global batch of an epoch is a partial one, of 8 images."""
NOTHING = [{"rank": 0, "step": -1, "what": "kill"}]
Result = tuple[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Result]:
    """`uninterrupted(ranks)`: the result of a run that nothing happens to; each is trained once."""
    from tests.ddp_launch.conftest import Launcher

    known: dict[int, Result] = {}

    def result(ranks: int) -> Result:
        if ranks not in known:
            runs = Runs(Launcher(tmp_path_factory.mktemp("whole")))
            status, text = runs.finish("run", OPTIONS, ranks=ranks, accidents=NOTHING)
            assert status == 0, text
            assert "--reproducible: 4 logical shards" in text and "without --reproducible (" in text, "the cost is told"
            assert checkpoint_format.newest(runs.folder / "run").state["progress"]["step"] == STEPS
            known[ranks] = runs.result("run")
        return known[ranks]

    return result


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_gives_the_same_bits(
    ranks: int, uninterrupted: Callable[[int], Result], times: Callable[[int, int], int]
) -> None:
    if times(0, 1) == 0:
        pytest.skip("what follows compares 2 and 1 ranks with 4 as well")
    assert uninterrupted(ranks) == uninterrupted(4)


@pytest.mark.parametrize("chain", [(2, 1), (2, 1, 2), (4, 1, 2, 4), (3, 4, 1)], ids=str)
def test_kills_and_changes_of_the_number_of_ranks_leave_no_trace(
    chain: Sequence[int], uninterrupted: Callable[[int], Result], runs: Runs, times: Callable[[int, int], int]
) -> None:
    if chain != (2, 1) and times(0, 1) == 0:
        pytest.skip("a short run has the shortest chain, beside a whole run on 4 ranks")
    expected = uninterrupted(4)
    draw = random.Random(f"ranks {chain}")
    for again in range(times(1, 3)):
        steps = sorted(draw.sample(range(2, STEPS), len(chain) - 1))
        print(f"killed before steps {steps}")
        for ranks, step in zip(chain, steps, strict=False):
            accident = [{"rank": draw.randrange(ranks), "step": step, "what": "all", "after": False}]
            status, text = runs.finish(f"run-{again}", f"{OPTIONS} --resume auto", ranks=ranks, accidents=accident)
            assert status == -9, text
            runs.until_gone()
        status, text = runs.finish(f"run-{again}", f"{OPTIONS} --resume auto", ranks=chain[-1], accidents=NOTHING)
        assert status == 0, text
        assert "bits may differ" not in text
        assert runs.result(f"run-{again}") == expected
