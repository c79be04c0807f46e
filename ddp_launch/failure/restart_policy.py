"""Whether another attempt can help, judged by the failed ones. Pure, but for reading their logs."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from ddp_launch.failure.failures import Attempt, Failure

FIRST_STEP_S = 60.0
"""A program that fails sooner counts as failed before its first step: a user's program does not report steps."""
UNREADABLE = re.compile(r"^(SyntaxError|IndentationError|TabError)\b")
MISSING = re.compile(
    r"^(ModuleNotFoundError|FileNotFoundError)\b|: can't (open file|find '__main__' module)|: No module named "
)
CANNOT_START = (126, 127)
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Addresses, process ids and ports differ from attempt to attempt; numbers of steps and layers matter.
CHANGING = re.compile(r"0x[0-9a-fA-F]+|\d{4,}")


def why_not(attempts: Sequence[Attempt], *, on_other_devices: bool = False) -> str | None:
    """Why the program should not be started again after these attempts, oldest first; None where it may help.

    on_other_devices: it would run on different devices, where the same failure may not happen again.
    """
    last = attempts[-1]
    if (failure := last.first) is None:
        return None
    if not _early(last):
        return None
    if UNREADABLE.search(failure.log_tail.error):
        return "Python cannot read the program, and a restart does not change that"
    if MISSING.search(failure.log_tail.error) or failure.code in CANNOT_START:
        return "something that the program needs is missing, and a restart does not change that"
    if on_other_devices:
        return None
    if len(attempts) > 1 and _early(attempts[-2]) and _same(failure, attempts[-2].first):
        return f"the same failure twice within {FIRST_STEP_S:.0f} seconds of the start: it would happen again"
    return None


def _early(attempt: Attempt) -> bool:
    """Whether the attempt failed within FIRST_STEP_S of its start."""
    return attempt.seconds is not None and attempt.seconds < FIRST_STEP_S


def _same(failure: Failure, earlier: Failure | None) -> bool:
    """Whether a program failed twice by itself and in the same way, on any rank."""
    if earlier is None or failure.victim or earlier.victim or -failure.code in FROM_OUTSIDE:
        return False
    return _signature(failure) == _signature(earlier)


def _signature(failure: Failure) -> tuple[int, str]:
    """What two failures have in common if they are the same: exit code and error without changing numbers."""
    # The same error may or may not be followed by an abort at exit.
    code = 1 if failure.aborted_late else failure.code
    return code, CHANGING.sub("#", failure.log_tail.error)
