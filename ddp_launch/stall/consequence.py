"""What the ranks' stacks say about a failure: a rank that raised because it waited in vain is not the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ddp_launch.failure.failures import Failure
from ddp_launch.stall.finding import RankView, judge


def explain(failures: Sequence[Failure], views: Sequence[RankView], world_size: int) -> tuple[Failure, ...]:
    """The failures with the place of each rank; first the rank that the others waited for.

    `views`: the ranks when the first one failed, before any other was ended.
    """
    where = {view.rank: view.doing for view in views if view.state != "ended"}
    # A rank that was killed for a hang had ended by then; its report has the place that was seen before.
    seen = {failure.rank: failure.hang.at for failure in failures if failure.hang}
    failures = [replace(failure, at=seen.get(failure.rank) or where.get(failure.rank, "")) for failure in failures]
    alone = [failure for failure in failures if not failure.stopped]
    gave_up = {failure.rank for failure in alone if failure.log_tail.timed_out or failure.victim}
    if not any(failure.log_tail.timed_out for failure in alone) or any(f.rank not in gave_up for f in alone):
        return tuple(failures)
    found = judge([replace(view, gave_up=view.rank in gave_up) for view in views], world_size)
    if found is None:
        return tuple(failures)
    culprit = next((failure for failure in failures if failure.rank in found.ranks and failure.stopped), None)
    if culprit is None or found.kind not in ("missing", "stopped"):
        return (replace(failures[0], found=found.title), *failures[1:])
    others = (failure for failure in failures if failure is not culprit)
    return (replace(culprit, found=found.title, held_up=True), *others)
