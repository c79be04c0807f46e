"""What --scaling concludes, from times that are made up: the cause is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ddp_launch.scaling.command import numbers_of_ranks
from ddp_launch.scaling.judge import Verdict, judge
from ddp_launch.scaling.show import notes_of, recommendation, sentence
from ddp_launch.scaling.trial import Observed, Trial


def seen(step_ms: float, *, sleeping: float = 0.0, waited: float | None = None, **given: Any) -> Observed:
    """A rank with 100 steps of so many ms, so many for each kind; the rest is backward, `sleeping` of it blocked."""
    kinds = {kind: given.pop(kind, 0.0) for kind in ("input", "communication", "optimizer", "other")}
    spent = {kind: (ms / 10, 0.0, 0.0) for kind, ms in kinds.items()}
    spent["backward"] = ((step_ms - sum(kinds.values())) / 10, sleeping / 10, 0.0)
    return Observed(100, step_ms / 10, spent, waited=waited, **given)


def verdict(*trials: list[Observed], cores: int = 64, global_batch: bool | None = None) -> Verdict:
    return judge([Trial(len(ranks), tuple(ranks)) for ranks in trials], global_batch=global_batch, cores=cores)


def test_sending_is_what_ranks_are_blocked_for_and_do_not_wait() -> None:
    ranks = [seen(200, sleeping=100, waited=0.05), seen(200, sleeping=100, waited=0.05)]
    found = verdict([seen(100)], ranks)
    row = found.rows[1]
    assert (found.cause, row.slow) == ("communication", None)
    assert row.shares["communication"] == pytest.approx(0.45)
    assert row.shares["waiting"] == pytest.approx(0.05)
    assert row.shares["computing"] == pytest.approx(0.5)
    assert (row.speed_up, row.efficiency) == (pytest.approx(1.0), pytest.approx(0.5))
    assert found.recommended == 1
    assert recommendation(found) == "recommended: 1 rank; more have at most 1.00 x its throughput"


def test_what_a_slow_rank_does_more_is_the_waiting_of_the_others() -> None:
    places = {"other": (("train.py:7 (main)", 3.0),)}
    ranks = [seen(150, communication=55, waited=0.33), seen(150, other=50, places=places, waited=0.0)]
    found = verdict([seen(100)], ranks)
    row = found.rows[1]
    assert (found.cause, row.slow) == ("waiting", 1)
    assert row.shares["waiting"] == pytest.approx(0.33)
    assert row.shares["other"] == 0
    assert "rank 1, which spends 33% more of its time in other code, most at train.py:7 (main)" in sentence(found)


def test_a_rank_that_is_slow_for_want_of_a_core_is_reported_as_such() -> None:
    late = seen(150, waited=0.0)
    late = replace(late, spent={"backward": (15.0, 0.0, 5.0)})
    found = verdict([seen(100)], [seen(150, communication=50, waited=0.33), late])
    assert found.rows[1].slow == 1
    assert "rank 1, which spends 33% more of its time in wait of a free CPU core" in sentence(found)


def test_without_times_of_arrival_the_rank_that_is_blocked_least_is_the_slow_one() -> None:
    found = verdict([seen(100)], [seen(150, sleeping=60), seen(150, sleeping=10), seen(150, sleeping=60)])
    row = found.rows[1]
    assert (found.cause, row.slow) == ("waiting", 1)
    assert row.shares["communication"] == pytest.approx(10 / 150)
    assert row.shares["waiting"] == pytest.approx(50 / 150)


def test_on_gpus_the_devices_own_times_count() -> None:
    ranks = [seen(100, other=90, cuda=True, exposed=0.03, waited=0.9), seen(100, other=90, cuda=True, exposed=0.02)]
    found = verdict([seen(75, other=60, cuda=True)], ranks)
    row = found.rows[1]
    assert (found.cause, row.slow) == ("communication", 1)
    assert row.shares["communication"] == pytest.approx(0.2)
    assert row.shares["waiting"] == pytest.approx(0.1)
    assert row.shares["other"] == 0, "where the host waits for its GPU"
    assert (row.possible, row.speed_up) == (2.0, pytest.approx(1.5))
    assert any("at most" in note for note in notes_of(found, gpus=True))


def test_what_more_ranks_do_not_make_shorter_is_fixed_cost() -> None:
    found = verdict([seen(100)], [seen(80), seen(80)], global_batch=True)
    assert (found.kind, found.cause) == ("strong", "fixed")
    assert found.rows[1].shares["fixed"] == pytest.approx(30 / 80)
    weak = verdict([seen(100)], [seen(100), seen(100)], global_batch=False)
    assert (weak.kind, weak.cause, weak.recommended) == ("weak", None, 2)
    assert weak.rows[1].efficiency == pytest.approx(1.0)


def test_ranks_that_share_the_cores_cannot_be_faster() -> None:
    found = verdict([seen(100, threads=2)], [seen(210), seen(210)], cores=2)
    row = found.rows[1]
    assert (row.possible, row.speed_up) == (1.0, pytest.approx(0.952, abs=1e-3))
    assert row.shares["fixed"] == pytest.approx(10 / 210), "twice the work on the same cores takes twice the time"
    assert "share the CPU's cores" in notes_of(found, gpus=False)[0]


def test_what_blocks_a_backward_pass_on_one_rank_is_no_communication() -> None:
    found = verdict([seen(100, sleeping=50)], [seen(100, sleeping=50), seen(100, sleeping=50)])
    assert found.cause is None
    assert found.rows[1].shares["communication"] == 0


def test_weak_or_strong_by_the_batches_of_the_loaders() -> None:
    for one, two, kind in (((64,), (64,), "weak"), ((64,), (32,), "strong"), ((), (), "weak"), ((64,), (16,), "weak")):
        found = verdict([seen(100, batches=one)], [seen(100, batches=two), seen(100, batches=two)])
        assert found.kind == kind, (one, two)


def test_the_fewest_ranks_with_nearly_the_best_throughput() -> None:
    found = verdict([seen(100)], [seen(100)] * 2, [seen(198)] * 4, global_batch=False)
    assert found.recommended == 2
    assert "2.00 x the throughput of one; the best of those tried is 2.02 x" in recommendation(found)
    assert [numbers_of_ranks(most) for most in (2, 3, 8, 6)] == [(1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 6)]
