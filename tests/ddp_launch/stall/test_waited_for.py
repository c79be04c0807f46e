"""Who was waited for, from arrival times that are made up: the delays are known."""

from __future__ import annotations

import random
from dataclasses import replace

from ddp_launch.stall.record import Collective, Record
from ddp_launch.stall.waited_for import Arrivals, period

MS = 1_000_000
STEP_MS = 40
GROUP = ("gloo", "0")


def records(
    steps: int, delays_ms: dict[int, float], *, ranks: int = 3, jitter_ms: float = 0.0, buckets: int = 3
) -> dict[int, Record]:
    """Steps of so many buckets, which a rank starts one after the other; it waits for the others at their end."""
    draw = random.Random(0)
    calls: dict[int, list[Collective]] = {rank: [] for rank in range(ranks)}
    now = 0.0
    for step in range(steps):
        came = {rank: now + STEP_MS + delays_ms.get(rank, 0.0) + draw.uniform(0, jitter_ms) for rank in calls}
        for bucket in range(buckets):
            for rank, those in calls.items():
                at = int((came[rank] + bucket / 10) * MS)
                those.append(Collective(GROUP, 1 + step * buckets + bucket, "all_reduce", ((bucket + 1,),), at_ns=at))
        now = max(came.values())
    return {rank: Record({GROUP: tuple(those)}) for rank, those in calls.items()}


def test_the_late_rank_its_delay_and_its_share() -> None:
    arrivals = Arrivals()
    arrivals.add(records(200, {1: 30}))
    found = arrivals.found()
    assert found is not None
    assert found.rank == 1
    assert abs(found.ms - 30) < 1
    assert abs(found.share - 30 / 70) < 0.02
    assert 190 <= found.steps <= 200


def test_what_is_read_twice_counts_once() -> None:
    arrivals = Arrivals()
    whole = records(200, {2: 10})
    for end in (100, 300, 300, 600):
        part = {rank: Record({GROUP: r.collectives[GROUP][max(0, end - 250) : end]}) for rank, r in whole.items()}
        arrivals.add(part)
    found = arrivals.found()
    assert found is not None
    assert found.rank == 2
    assert abs(found.ms - 10) < 1


def test_chance_and_little_are_nobodys_fault() -> None:
    for delays, jitter in (({}, 10.0), ({1: 1.0}, 0.0), ({}, 0.0)):
        arrivals = Arrivals()
        arrivals.add(records(300, delays, jitter_ms=jitter))
        assert arrivals.found() is None


def test_once_is_no_habit() -> None:
    """Rank 0 alone evaluates for nine seconds: a report says so then, no average afterwards."""
    pause, arrivals = 9_000 * MS, Arrivals()
    one = {}
    for rank, record in records(100, {}).items():
        calls = record.collectives[GROUP]
        since = 149 if rank == 0 else 150
        one[rank] = Record({GROUP: tuple(replace(c, at_ns=c.at_ns + pause * (c.seq >= since)) for c in calls)})
    arrivals.add(one)
    assert arrivals.found() is None


def test_the_length_of_a_step() -> None:
    assert period("abcabcabc") == 3
    assert period("aaaa") == 1
    assert period("abacabacabac") == 4
    assert period("abcdefgh") == 1
