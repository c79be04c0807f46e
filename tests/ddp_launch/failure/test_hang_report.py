"""What the launcher makes of the report of a rank that hung, that left, or that raised."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ddp_core import rank_report
from ddp_core.rank_report import Place, RankReport
from ddp_launch.failure.failures import Failure, blame, first_failure, status_of
from ddp_launch.failure.known_failures import Evidence
from ddp_launch.failure.log_tail import LogTail
from ddp_launch.failure.remedies import find_remedy
from ddp_launch.rendezvous.remote_failures import RemoteFailures
from ddp_train.watchdog.process import report_of, text_of
from ddp_train.watchdog.python_stacks import Frame
from ddp_train.watchdog.verdict import Sight, Verdict

LOST = """\
Traceback (most recent call last):
  File "/env/torch/distributed/distributed_c10d.py", line 3170, in all_reduce
    work.wait()
RuntimeError: [gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:4487: Connection reset by peer
"""
SIGHTS = [Sight(0, 1, 12, "backward", 3.0, waits=True), Sight(1, 1, 12, "forward", 3.1)]


WHERE = RankReport(kind="error", rank=0, messages=(LOST.splitlines()[-1],), step=13, epoch=2, phase="backward")


def failure(rank: int, code: int, text: str, report: RankReport | None = None) -> Failure:
    tail = LogTail(tuple(text.strip("\n").splitlines()), Path("log"), report.messages if report else ())
    if report is not None:
        report = rank_report.from_json(json.loads(json.dumps(report.to_json())))
    return Failure(rank, "here", code, remote=(tail, report))


@pytest.mark.parametrize(
    ("kind", "stopped", "advice"),
    [("hung", False, "needs longer"), ("stopped", True, "what stopped it"), ("locked", False, "gpu_topology verify")],
)
def test_a_hang(kind: str, stopped: bool, advice: str) -> None:
    facts = (Verdict(kind, 1, 3.1, 3.0), SIGHTS, [Frame(__file__, 1, "forward")])  # type: ignore[arg-type]
    hung, victim = failure(1, -9, "earlier\n" + text_of(*facts), report_of(*facts)), failure(0, -9, "")
    assert hung.hang is not None
    assert (hung.hang.seconds, hung.hang.verdict == "stopped", hung.place) == (3.1, stopped, Place("forward", 13, 2))
    assert hung.hang.stack[0] == "Traceback (most recent call last):"
    assert hung.hang.stack[1] == f'  File "{__file__}", line 1, in forward'
    assert "rank 0 meanwhile: step 13 (epoch 2), backward" in hung.log_tail.lines[-1]
    assert hung.log_tail.error.startswith(
        "HungRank: rank 1 has made no progress for 3.1 s (--step-timeout, 3 s): step 13"
    )
    assert "it was stopped" in hung.ending() if stopped else "it hung" in hung.ending()
    remedy = find_remedy(hung, Evidence(memory_kills=0))
    assert remedy is not None
    assert remedy.name == "hang"
    assert advice in remedy.advice
    blamed = blame([hung, victim], [])
    assert first_failure(blamed) == hung
    assert blamed[1].stopped, "killed since rank 1 hung"


def test_a_hang_without_a_stack() -> None:
    facts = (Verdict("hung", 1, 3.1, 3.0), SIGHTS, [])
    hung = failure(1, -9, text_of(*facts), report_of(*facts))
    assert hung.hang is not None
    assert (hung.hang.stack, hung.hang.phase) == ((), "forward")
    assert failure(1, 137, "", report_of(*facts)).hang == hung.hang, "through a shell"


def test_a_hang_while_it_waited_for_data() -> None:
    waits = [Sight(0, 1, 12, "backward", 3.0, waits=True), Sight(1, 1, 12, "data", 3.1)]
    remedy = find_remedy(failure(1, -9, "", report_of(Verdict("hung", 1, 3.1, 3.0), waits, [])), Evidence())
    assert remedy is not None
    assert (remedy.name, remedy.meaning.partition(":")[0]) == ("hang", "no batch came")


def test_who_left_early_is_to_blame() -> None:
    victim, early = failure(0, 1, LOST, WHERE), failure(1, 0, "all done\n")
    left, other = blame([victim], [early])
    assert (left.rank, left.left, other) == (1, True, victim)
    assert first_failure([left, other]) == left
    assert status_of(left) == 1
    assert left.ending().startswith("exit code 0: it left early")
    assert other.place == Place("backward", 13, 2)
    remedy = find_remedy(left, Evidence())
    assert remedy is not None
    assert remedy.name == "left-early"


def test_the_watchdogs_word_of_one_that_left() -> None:
    """To ranks that wait for it without noticing, and are ended in the end."""
    victim = failure(0, -signal.SIGKILL, "", report_of(Verdict("left", 1, 3.1, 3.0), SIGHTS, []))
    assert victim.victim
    assert victim.place is None, "the report tells where rank 1 was"
    assert blame([victim], [failure(1, 0, "")])[0].left


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):\nValueError: its own",
        'Traceback (most recent call last):\n  File "upload.py"\nConnectionError: connection refused',
        "",
    ],
)
def test_a_rank_that_was_done_first_is_not_to_blame(text: str) -> None:
    own = failure(0, 1, text)
    assert blame([own], [failure(1, 0, "")]) == (own,)


def test_a_rank_that_speaks_of_a_hang_and_fails_otherwise() -> None:
    assert failure(0, 1, "HungRank: rank 1 has made no progress for 3.1 s (x): step 1 (epoch 1), data").hang is None


class Memory:
    """A store that launchers share, in this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        return self.values.setdefault(key, value).encode()


def test_who_left_early_is_told_to_other_nodes() -> None:
    store, victim = Memory(), failure(0, 1, LOST, WHERE)
    here, there = RemoteFailures(store, 0, 2), RemoteFailures(store, 0, 2)
    here.tell(blame([victim], [failure(1, 0, "")])[0])
    cause = there.compare(victim)
    assert cause is not None
    assert (cause.rank, cause.left, status_of(cause)) == (1, True, 1)
