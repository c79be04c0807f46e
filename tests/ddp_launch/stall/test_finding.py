"""Which rank holds the others up, from what is seen of them: no process, no clock."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from ddp_launch.stall.finding import RankView, judge
from ddp_launch.stall.record import Collective, Record, parse
from ddp_launch.stall.stacks import is_loading, place_of, spawned, thread_of, waits_in
from ddp_launch.stall.stacks import parse as parse_stacks
from ddp_train.watchdog.python_stacks import Frame

WORLD, PAIR = ("gloo", "0"), ("gloo", "1")
LIBRARY = "/x/lib/python3.11/site-packages/torch"
ASLEEP = f"""Thread 0x0000000000000007 (most recent call first):
  File "/opt/tool/ddp_launch/stall/in_rank/torch_internals.py", line 68 in serve

Thread 0x0000000000000009 (most recent call first):
  File "/home/me/load.py", line 3 in load
  File "/x/lib/python3.11/threading.py", line 975 in run

Current thread 0x0000000000000008 (most recent call first):
  File "{LIBRARY}/nn/functional.py", line 5 in linear
  File "/home/me/train.py", line 30 in evaluate
  File "/home/me/train.py", line 50 in <module>
"""
RECEIVING = f"""Thread 0x0000000000000008 (most recent call first):
  File "{LIBRARY}/distributed/distributed_c10d.py", line 9 in recv
  File "{LIBRARY}/distributed/c10d_logger.py", line 8 in wrapper
  File "/home/me/train.py", line 7 in <module>
"""


def call(
    seq: int, name: str = "all_reduce", *, group: tuple[str, str] = WORLD, done: bool = True, size: int = 4
) -> Collective:
    return Collective(
        group, seq, name, ((size,),), ("Float",), done, at_ns=seq, words="default_pg" if group == WORLD else ""
    )


def view(rank: int, *calls: Collective, **facts: Any) -> RankView:
    groups: dict[tuple[str, str], list[Collective]] = {}
    for one in calls:
        groups.setdefault(one.group, []).append(one)
    record = Record({group: tuple(those) for group, those in groups.items()}, {"0": (0, 1, 2, 3), "1": (0, 1)})
    return RankView(rank, record=record, **facts)


def test_the_rank_that_has_not_come() -> None:
    waiting = [view(rank, call(1), call(2, done=False)) for rank in (0, 1, 3)]
    found = judge([*waiting, view(2, call(1), stacks=parse_stacks(ASLEEP))])
    assert found is not None
    assert (found.kind, found.ranks) == ("missing", (2,))
    assert found.title == "rank 2 has not come to all_reduce number 2, in which ranks 0, 1, 3 wait"
    assert {ranks[0]: doing for ranks, doing in found.rows}[2] == "at /home/me/train.py:30 in evaluate"


def test_ranks_that_wait_for_one_another_in_two_groups() -> None:
    barrier: Any = {"name": "barrier", "group": PAIR}
    first = view(0, call(1, done=False), call(1, **barrier))
    second = view(1, call(1, done=False, **barrier))
    found = judge([first, second, *(view(rank, call(1, done=False)) for rank in (2, 3))])
    # Rank 1 waits for nobody who is missing: rank 0 has been there, and is now in the collective of all.
    assert found is not None
    assert (found.kind, found.ranks) == ("locked", (0, 1, 2, 3))


def test_a_collective_that_another_rank_has_long_left_is_over() -> None:
    """Rank 1 got no CPU time: it has not noted the end of number 1, but rank 0 came out of number 2."""
    late = view(1, call(1, done=False), stacks=parse_stacks(ASLEEP))
    found = judge([view(0, call(1), call(2), call(3, done=False)), late])
    assert found is not None
    assert (found.kind, found.ranks) == ("missing", (1,))
    assert found.title.startswith("rank 1 has not come to all_reduce number 3")
    # The root of a broadcast comes out of it alone.
    pair: Any = {"group": PAIR}
    root = view(0, call(1, **pair), call(2, "broadcast", **pair), call(3, done=False, **pair))
    found = judge([root, view(1, call(1, **pair), call(2, "broadcast", done=False, **pair))])
    assert found is not None
    assert (found.kind, found.ranks) == ("locked", (0, 1))


def test_a_rank_waits_only_for_its_own_group() -> None:
    """Rank 3 sleeps, and is no member of the pair: rank 1 holds rank 0 up."""
    views = [view(0, call(1, group=PAIR, done=False)), view(1), view(2), view(3)]
    found = judge(views)
    assert found is not None
    assert (found.kind, found.ranks) == ("missing", (1,))


@pytest.mark.parametrize(
    ("calls", "kind", "ranks"),
    [
        ((call(2, done=False), call(2, done=False), call(2, "barrier", done=False)), "collectives", (2,)),
        ((call(2, done=False), call(2, "barrier", done=False)), "collectives", (0, 1)),
        ((call(2, done=False), call(2, size=5)), "shapes", (0, 1)),
        ((call(2, size=5, done=False), call(2), call(2, done=False)), "shapes", (0,)),
    ],
)
def test_different_calls_of_the_same_number(calls: tuple[Collective, ...], kind: str, ranks: tuple[int, ...]) -> None:
    found = judge([view(rank, call(1), one) for rank, one in enumerate(calls)])
    assert found is not None
    assert (found.kind, found.ranks) == (kind, ranks)
    assert found.advice


def test_shapes_that_may_differ() -> None:
    found = judge([view(rank, call(1, "all_to_all", group=PAIR, size=3 + rank, done=False)) for rank in (0, 1)])
    assert found is not None
    assert (found.kind, found.title) == (
        "locked",
        "all ranks are in all_to_all number 1 of group 1, and it does not end",
    )


def test_stopped_ended_and_nobody() -> None:
    waiting = view(0, call(1, done=False))
    stopped = judge([waiting, view(1, state="stopped", pid=77)])
    assert stopped is not None
    assert (stopped.kind, stopped.ranks, stopped.advice) == ("stopped", (1,), "kill -CONT 77 lets it continue")
    left = judge([waiting, view(1, state="ended", code=0)])
    assert left is not None
    assert left.title == "rank 1 left early, with exit code 0, and rank 0 waits for it in all_reduce number 1"
    assert judge([view(0, call(1)), view(1, call(1))]) is None
    assert judge([view(0, call(1), stacks=parse_stacks(ASLEEP)), view(1, call(1))]) is None


def test_a_rank_that_moves_does_not_wait() -> None:
    receiving: Any = {"stacks": parse_stacks(RECEIVING)}
    found = judge([view(0, call(1), **receiving), view(1, call(1), stacks=parse_stacks(ASLEEP))])
    assert found is not None
    assert found.title == "rank 1 has not come to recv, in which rank 0 waits"
    assert judge([view(0, call(1), moving=True, **receiving), view(1, call(1))]) is None


def test_what_a_rank_told_earlier_is_no_wait_of_now() -> None:
    """It was in number 1 when it was asked last, and now holds Python's lock."""
    views = [view(0, call(1), call(2, done=False)), view(1, call(1, done=False), answered=False)]
    found = judge([views[0], replace(views[1], stacks=parse_stacks(ASLEEP))])
    assert found is not None
    assert (found.kind, found.ranks) == ("missing", (1,))
    assert found.rows[1][1].endswith("in native code that holds Python's lock")
    asleep = replace(views[1], stacks=parse_stacks(ASLEEP))
    calls = tuple(Frame("/lib/libc.so.6", 0, name) for name in ("ffi_call", "sleep", "nanosleep", "clock_nanosleep"))
    assert replace(asleep, native=calls).doing.endswith("lock: sleep, nanosleep, clock_nanosleep (libc.so.6)")
    assert replace(asleep, starved=True).doing.endswith(
        "train.py:30 in evaluate, and the machine is too busy for it to answer"
    )


def test_ranks_that_look_for_a_store_of_their_own() -> None:
    """MASTER_PORT or init_method set by the program: no rank listens there."""
    text = RECEIVING.replace("distributed_c10d.py", "rendezvous.py").replace("in recv", "in _create_c10d_store")
    found = judge([RankView(rank, stacks=parse_stacks(text)) for rank in (0, 1)])
    assert found is not None
    assert (found.kind, found.ranks) == ("locked", (0, 1))
    assert found.title == "ranks 0, 1 cannot reach the store where the ranks meet"
    assert "MASTER_PORT" in found.advice
    found = judge([view(rank, call(1, done=False)) for rank in (0, 1)])
    assert found is not None and "cannot reach the store" not in found.title


def test_a_culprit_on_another_node() -> None:
    found = judge([view(0, call(1, done=False)), view(1, call(1, done=False))], world_size=4)
    assert found is not None
    assert (found.kind, found.ranks) == ("elsewhere", ())


def frames_of(text: str, thread: int = 0) -> tuple[Frame, ...]:
    stacks = parse_stacks(text)
    return stacks[thread_of(stacks, thread)]


def test_the_stack_that_counts() -> None:
    assert list(parse_stacks(ASLEEP)) == [9, 8]
    assert place_of(frames_of(ASLEEP)) == "/home/me/train.py:30 in evaluate"
    assert place_of(frames_of(ASLEEP, 9)) == "/home/me/load.py:3 in load"
    assert waits_in(frames_of(RECEIVING)) == "recv"
    assert parse_stacks("") == {}
    loading = 'Current thread 0x1 (most recent call first):\n  File "<frozen importlib._bootstrap>", line 1 in _load\n'
    assert is_loading(frames_of(loading))
    spawn = (
        f'Current thread 0x1 (most recent call first):\n  File "{LIBRARY}/multiprocessing/spawn.py", line 1 in join\n'
    )
    assert spawned(frames_of(spawn)) == "torch.multiprocessing.spawn"


def test_a_program_that_has_come_to_its_end() -> None:
    shutdown = """Current thread 0x0000000000000008 (most recent call first):
  File "/x/lib/python3.11/threading.py", line 1583 in _shutdown
"""
    loader = ASLEEP.partition("Current thread")[0] + shutdown
    waits = "its program has come to its end, and waits for a thread of its own"
    assert view(0, stacks=parse_stacks(loader)).doing == f"{waits}: /home/me/load.py:3 in load"
    assert view(0, stacks=parse_stacks(shutdown)).doing == waits
    assert view(0, leaving=True).doing == "its program has come to its end, and Python is closing"


def test_a_dump_that_is_none_or_wants_to_run_something() -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("ran",))

    entry = {"process_group": ("0", "default_pg"), "collective_seq_id": 3, "profiling_name": "gloo:all_reduce"}
    entry |= {
        "time_created_ns": 5,
        "input_sizes": [[2]],
        "input_dtypes": ["Float"],
        "retired": False,
        "state": "scheduled",
    }
    message = {**entry, "is_p2p": True}
    good = pickle.dumps({"entries": [entry, message, {}, {"process_group": 3}]})
    one = Collective(WORLD, 3, "all_reduce", ((2,),), ("Float",), at_ns=5, words="default_pg")
    assert parse((good, b""), b'{"groups": {"0": [0, 1]}}').waiting == one
    for bad in (b"", b"\x80", good[:-9], pickle.dumps({"entries": [Runs()]}), pickle.dumps(3)):
        assert parse((bad, b""), b"{") == Record()
