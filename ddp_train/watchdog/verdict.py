"""Which rank hangs: a pure function from what is seen of the ranks of a node to a verdict.

When one rank hangs, all others soon wait for it, in a collective or through their GPU, and are silent as well. The
culprit is the rank that is stopped, has left, or waits for no other; of several, the one with the lowest step. If all
wait, and some of them for their GPU, no rank is to blame: a GPU or a link between GPUs does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEFT_S = 3.0
"""Seconds for which a rank may be gone with status 0 before the verdict is that it left the others."""
ROUND_S = 1.0
"""If all ranks wait, seconds to wait beyond the limit: one may be seen late to be doing something else."""
AUTOMATIC_S = 300.0
AUTOMATIC_TIMES = 20
FIRST_STEP_S = 60.0
"""Least limit in the first step, which loads libraries and chooses kernels."""
# Least limits of phases that may take long without a beat. Data preparation has no limit here: the process group's
# own timeout applies to the ranks that wait for it.
PATIENCE_S = {
    "start": 1800.0,
    "setup": 1800.0,
    "data preparation": math.inf,
    "compilation": 1800.0,
    "checkpoint": 600.0,
    "closing": 1800.0,
    "failed": 60.0,
    "done": math.inf,
}


@dataclass(frozen=True)
class Sight:
    """What is seen of a rank.

    epoch, step  from 0; -1 before the first
    silent_s     seconds since its last beat
    stopped_s    seconds for which it has been stopped (SIGSTOP)
    waits        its stack shows that it waits for other ranks; a rank in communication waits anyway
    left_s       seconds since it ended with status 0 before the end of the run; None: it has not
    """

    rank: int
    epoch: int = -1
    step: int = -1
    phase: str = "start"
    silent_s: float = 0.0
    stopped_s: float = 0.0
    waits: bool = False
    left_s: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether it waits for another rank, or for a GPU that may do so."""
        return self.waits or self.phase in ("communication", "device")


@dataclass(frozen=True)
class Limits:
    """How long a rank may be silent. `timeout_s`: the user's; None: by the longest gap so far."""

    timeout_s: float | None = None
    longest_s: float = 0.0

    @property
    def ordinary_s(self) -> float:
        """The limit for phases of every step."""
        if self.timeout_s is not None:
            return self.timeout_s
        return max(AUTOMATIC_S, AUTOMATIC_TIMES * self.longest_s)

    def of(self, sight: Sight, first_step: int) -> float:
        """The limit for the phase of this rank. `first_step`: the first step of the ranks' processes."""
        least = PATIENCE_S.get(sight.phase, FIRST_STEP_S if sight.step <= first_step else 0.0)
        return max(self.ordinary_s, least)


@dataclass(frozen=True)
class Verdict:
    """`rank` is why the run does not continue. kind: it is stopped; it hangs; it has left; all wait for one another; or
    all wait and a GPU does not answer, that of `rank` or another."""

    kind: Literal["stopped", "hung", "left", "locked", "device"]
    rank: int
    seconds: float
    limit_s: float


def judge(sights: Sequence[Sight], limits: Limits, first_step: int) -> Verdict | None:
    """The rank of this node that holds the run up; None while there is none, or it is on another node.

    `sights`: of all ranks of the node. "locked" and "device" may also mean that the culprit is elsewhere.
    """
    if not sights:
        return None
    limit = limits.ordinary_s
    stopped = max(sights, key=lambda sight: sight.stopped_s)
    if stopped.stopped_s > limit:
        return Verdict("stopped", stopped.rank, stopped.stopped_s, limit)
    gone = [sight for sight in sights if sight.left_s is not None]
    here = [sight for sight in sights if sight.left_s is None and sight.phase != "done"]
    if gone and here and (seconds := gone[0].left_s or 0.0) > LEFT_S:
        return Verdict("left", gone[0].rank, seconds, LEFT_S)
    if gone or not here:
        return None
    suspects = [sight for sight in here if not sight.waiting] or here
    behind = min(suspects, key=lambda sight: (sight.step, -sight.silent_s))
    limit = limits.of(behind, first_step)
    if not behind.waiting:
        # It may have been slow before it was stopped: then it has been silent for longer than stopped.
        kind: Literal["stopped", "hung"] = "stopped" if behind.stopped_s > behind.silent_s / 2 else "hung"
        return Verdict(kind, behind.rank, behind.silent_s, limit) if behind.silent_s > limit else None
    silent = min(sight.silent_s for sight in here)
    # A rank that has come to its end waits for no rank that is still running.
    if silent <= limit + ROUND_S or here != [*sights]:
        return None
    for_gpus = [sight.rank for sight in here if sight.phase == "device"]
    return Verdict("device", for_gpus[0], silent, limit) if for_gpus else Verdict("locked", behind.rank, silent, limit)
