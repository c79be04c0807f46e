"""Who was waited for, from arrival times that are made up: the delays are known."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from ddp_launch.stall.record import Collective, Record
from ddp_launch.stall.waited_for import Arrivals, WaitedFor, by_its_own_steps, period, shares

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
    assert period("abc" * 30) == 3
    assert period("a" * 30) == 1
    assert period("abac" * 30) == 4
    assert period("abcdefgh") == 1
    assert period(("ab" * 20 + "xyz") * 12) == 2, "an evaluation after each 20 steps"
    assert period(("a" * 9 + "b") * 12) == 10, "equal layers"


def test_the_shares_of_a_rank_of_the_trainer() -> None:
    record = Record(
        spent_ns={"data": 10, "forward": 20, "backward": 50, "communication": 10, "step": 10, "evaluation": 99}
    )
    assert shares(record, 0.3) == pytest.approx(
        {"input": 0.1, "forward": 0.2, "backward": 0.3, "communication wait": 0.3}
    )
    assert shares(record, 0.0)["communication wait"] == 0.1
    assert shares(Record(), 0.3) == {}
    found = WaitedFor(1, 900.0, 0.5, 12)
    steps = by_its_own_steps(found, replace(record, spent_ns={"forward": 40_000_000_000}, steps=1000))
    assert (steps.ms, steps.steps) == (20.0, 1000)
    assert by_its_own_steps(found, Record()) == found


SLOW = """
import atexit, os, time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
rank = dist.get_rank()

class Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if rank == 1:
            time.sleep(0.03)
        return gradient

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)

    def forward(self, x):
        return self.last(Late.apply(self.first(x)))

net = DistributedDataParallel(Net(), bucket_cap_mb=0.001)
for _ in range(120):
    net(torch.ones(4, 64)).sum().backward()
dist.destroy_process_group()
# DDP still holds the group: a thread of gloo's that frees what is Python's would abort the end of Python. The exit
# handlers leave the last collectives for the launcher.
atexit._run_exitfuncs()
os._exit(0)
"""


def test_a_delay_hidden_inside_backward_is_found(launcher: Any) -> None:
    launcher.script(SLOW)
    done = launcher.run("--cpu", "--json-events", "events.jsonl", "program.py")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("note: the others waited for rank 1: ")]
    assert len(lines) == 1, done.stderr
    event = next(e for e in map(json.loads, (launcher.folder / "events.jsonl").open()) if e["event"] == "waited-for")
    assert event["rank"] == 1
    assert 25 < event["ms_a_step"] < 60  # a busy machine adds to it
    assert event["share"] > 0.3
    assert event["ranks"] is None
    waits = next(e for e in map(json.loads, (launcher.folder / "events.jsonl").open()) if e["event"] == "waits")
    assert waits["seconds"] >= 1 and waits["ranks"]["0"] > event["share"] / 2 > waits["ranks"].get("1", 0.0) / 2
