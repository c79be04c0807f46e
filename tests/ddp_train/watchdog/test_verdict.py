"""Which rank is found to hold a run up, from what is seen of the ranks: no process, no clock."""

from __future__ import annotations

import pytest

from ddp_train.watchdog.verdict import Limits, Sight, judge

T = Limits(3.0)


def sight(rank: int, step: int, phase: str, silent_s: float, **more: object) -> Sight:
    return Sight(rank=rank, epoch=0, step=step, phase=phase, silent_s=silent_s, **more)  # type: ignore[arg-type]


def kind(*sights: Sight, limits: Limits = T, first_step: int = 0) -> tuple[str, int] | None:
    verdict = judge(sights, limits, first_step)
    return None if verdict is None else (verdict.kind, verdict.rank)


@pytest.mark.parametrize(
    ("sights", "expected"),
    [
        # The others wait in the backward pass, and have been silent for longer.
        ([sight(0, 9, "backward", 3.9, waits=True), sight(1, 9, "forward", 3.1)], ("hung", 1)),
        ([sight(0, 9, "forward", 3.1), sight(1, 9, "communication", 3.9)], ("hung", 0)),
        ([sight(0, 9, "backward", 3.9, waits=True), sight(1, 9, "forward", 2.9)], None),
        # Both do something of their own: the one that is behind holds the other up.
        ([sight(0, 10, "forward", 3.5), sight(1, 9, "step", 3.1)], ("hung", 1)),
        ([sight(0, 9, "data", 0.5), sight(1, 9, "step", 3.1)], ("hung", 1)),
        ([sight(0, 8, "checkpoint", 60.0), sight(1, 9, "backward", 60.0, waits=True)], None),
        ([sight(0, 8, "checkpoint", 601.0), sight(1, 9, "backward", 600.0, waits=True)], ("hung", 0)),
        # A stopped process is one in any phase, and whatever the others do.
        ([sight(0, 8, "checkpoint", 3.2, stopped_s=3.1), sight(1, 9, "forward", 9.0)], ("stopped", 0)),
        ([sight(0, -1, "data preparation", 3.2, stopped_s=2.9), sight(1, -1, "communication", 9.0)], None),
        # Where it was slow before that, its silence is over the limit first; stopped at the end is not why it hangs.
        ([sight(0, 9, "forward", 3.1, stopped_s=2.9), sight(1, 9, "communication", 3.9)], ("stopped", 0)),
        ([sight(0, 9, "forward", 3.1, stopped_s=0.2), sight(1, 9, "communication", 3.9)], ("hung", 0)),
        # All wait: for one another, once it is sure that none is only seen late.
        ([sight(0, 9, "communication", 3.9), sight(1, 9, "communication", 3.5)], None),
        ([sight(0, 9, "communication", 4.9), sight(1, 8, "communication", 4.1)], ("locked", 1)),
        # One has left.
        ([sight(0, 9, "backward", 2.5, waits=True), sight(1, 9, "forward", 0, left_s=3.5)], ("left", 1)),
        ([sight(0, 9, "backward", 1.5, waits=True), sight(1, 9, "forward", 0, left_s=1.5)], None),
        ([sight(0, 9, "forward", 0, left_s=3.5)], None),
        ([sight(0, 9, "done", 9.0), sight(1, 9, "communication", 9.0)], None),
        ([sight(0, 9, "done", 9.0), sight(1, 9, "closing", 1801.0)], ("hung", 1)),
        ([sight(0, 9, "forward", 3.1)], ("hung", 0)),
        ([], None),
    ],
)
def test_the_culprit(sights: list[Sight], expected: tuple[str, int] | None) -> None:
    assert kind(*sights) == expected
    assert kind(*reversed(sights)) == expected


def test_the_first_step_has_more_time() -> None:
    late = sight(0, 5, "forward", 59.0)
    assert kind(late, first_step=5) is None
    assert kind(late, first_step=4) == ("hung", 0)
    assert kind(sight(0, 5, "forward", 61.0), first_step=5) == ("hung", 0)


def test_the_automatic_limit_follows_the_run() -> None:
    quick, slow = Limits(None, longest_s=0.2), Limits(None, longest_s=30.0)
    assert (quick.ordinary_s, slow.ordinary_s) == (300.0, 600.0)
    assert kind(sight(0, 9, "forward", 301.0), limits=quick) == ("hung", 0)
    assert kind(sight(0, 9, "forward", 301.0), limits=slow) is None


def test_data_may_be_prepared_for_any_time() -> None:
    assert kind(sight(0, -1, "data preparation", 1e6), sight(1, -1, "communication", 1e6)) is None
