"""What a failure means, and how to fix it.

`find_remedy` takes the first row of the table (known_failures.py) whose pattern matches the first message of the rank's
traceback, then the messages that followed it, or the last lines where there is no traceback. No log shows that the
kernel killed a rank because memory ran out: that comes from the evidence.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ddp_core.rank_report import RankReport
from ddp_launch.failure.failures import Failure
from ddp_launch.failure.known_failures import HANG, LESS_MEMORY, MIB, TABLE, Evidence, Words, more_shm, shm_state
from ddp_launch.failure.log_tail import LogTail
from ddp_launch.failure.shadowing import hidden_module

BLOCK = 4096


@dataclass(frozen=True)
class Remedy:
    """What a failure means and how to fix it, each a sentence without a full stop. `name`: one word for programs."""

    name: str
    meaning: str
    advice: str


LEFT_EARLY = Remedy(
    "left-early",
    "it ended as if all were done, while the others waited for it in a collective",
    "look for an exit that only one rank takes, or for a rank with fewer batches than the others",
)


HELD_UP = Remedy(
    "held-up",
    "it did not enter the collective that the others were in, until their time limit ended them",
    "look at the line above; if it only needs longer, use a longer timeout in init_process_group",
)


def find_remedy(failure: Failure, evidence: Evidence) -> Remedy | None:
    """The first remedy that fits, None where none is known."""
    if failure.left:
        return LEFT_EARLY
    if failure.held_up:
        return HELD_UP
    if failure.hang:
        return _hung(failure.hang)
    if by_signal := _killed(failure, evidence) or _full_shm(failure, evidence):
        return by_signal
    if (hides := hidden_module(failure.log_tail.cause, failure.log_tail.traceback, evidence.script)) is not None:
        file, module = hides
        whose, advice = "the installed package", f"rename {file} if you meant that package"
        if module in sys.stdlib_module_names:
            whose, advice = "Python's own module", f"rename {file}"
        return Remedy("hidden-module", f"{file} has the name of {whose} {module}, and hides it", advice)
    for text in _texts(failure.log_tail):
        for known in TABLE:
            if found := re.search(known.pattern, text, re.IGNORECASE | re.MULTILINE):
                return Remedy(known.name, _words(known.meaning, found, evidence), _words(known.advice, found, evidence))
    return _full_logs(failure, evidence)


def _texts(tail: LogTail) -> Iterator[str]:
    """The texts to match, in order: the first error's message, all messages, an abort; else the last lines."""
    if tail.messages:
        yield from (tail.cause, "\n".join(tail.messages), tail.abort)
    else:
        yield "\n".join(tail.complaints)


def _words(words: Words, found: re.Match[str], evidence: Evidence) -> str:
    """A text of the table with the groups of the match filled in."""
    if callable(words):
        return words(found, evidence)
    return re.sub(r"\{(\d)\}", lambda place: found[int(place[1])] or "", words)


def _hung(hang: RankReport) -> Remedy:
    """What a rank that hung was waiting for, and how to fix it."""
    # With `found` the launcher has ended the rank (--stall-kill), without it the bundled trainer's watchdog.
    option = "--stall-kill" if hang.found else "--step-timeout"
    longer = f"if it only needs longer: {option} SECONDS, 0 for no limit"
    if hang.verdict == "stopped":
        meaning = "its process was stopped, by SIGSTOP or a job manager that suspends"
        return Remedy("hang", meaning, f"find out what stopped it; to suspend a run, use {option} 0")
    if hang.found:
        return Remedy("hang", hang.found, hang.advice or longer)
    if hang.verdict == "locked":
        return Remedy("hang", "the ranks waited for one another", HANG)
    if hang.verdict == "device":
        meaning = "the ranks waited for their GPUs, of which one, or a link between them, did not answer"
        return Remedy(
            "hang", meaning, f"`dmesg | grep Xid` and `python -m gpu_topology report` show a bad GPU; {longer}"
        )
    if hang.phase == "data":
        return Remedy("hang", "no batch came: the disk, or a loader worker, did not answer", longer)
    return Remedy("hang", "it stopped at the line above, and the others waited for it", longer)


def _killed(failure: Failure, evidence: Evidence) -> Remedy | None:
    """For SIGKILL: whether the kernel killed it for memory; None for another failure, or where that is unknown."""
    if failure.code != -signal.SIGKILL or failure.stopped:
        return None
    if evidence.memory_kills:
        many = f"{evidence.memory_kills} process{'es' if evidence.memory_kills > 1 else ''}"
        return Remedy(
            "host-memory", f"the kernel killed {many} {evidence.kills_where} because memory ran out", LESS_MEMORY
        )
    if evidence.memory_kills == 0:
        meaning = f"not killed by the kernel for memory: it killed no process {evidence.kills_where} meanwhile"
        return Remedy(
            "killed", meaning, "ask the job manager (sacct, kubectl describe pod) and other users of this machine"
        )
    return None


def _full_shm(failure: Failure, evidence: Evidence) -> Remedy | None:
    """SIGBUS while /dev/shm is nearly full; None otherwise."""
    if failure.code != -signal.SIGBUS or evidence.shm_free is None or evidence.shm_total is None:
        return None
    if evidence.shm_free > max(evidence.shm_total // 20, 16 * MIB):
        return None
    return Remedy("shared-memory", shm_state(evidence), more_shm(evidence))


def _full_logs(failure: Failure, evidence: Evidence) -> Remedy | None:
    """For a full disk under the logs, where the rank could not write its error; None where there is space."""
    if evidence.logs_free is None or evidence.logs_free >= BLOCK or failure.code < 0:
        return None
    meaning = "the disk with the ranks' logs is full: this rank's last output may be lost"
    options = "--out-dir DIR" if evidence.trainer else "--log-dir DIR, or TMPDIR"
    return Remedy("disk-full", meaning, f"free space there, or use {options} on another disk")
