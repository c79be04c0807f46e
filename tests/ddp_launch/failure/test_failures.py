"""Which rank failed first, and how it ended in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_launch.failure.failures import Attempt, Failure, Outcome, exit_status, first_failure, in_words, status_of

OWN = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nValueError: no\n'
GLOO = OWN.replace("ValueError: no", "RuntimeError: [pair.cc:561] Connection closed by peer [127.0.0.1]:4")
KILLED_AT_WORK = OWN.replace("ValueError: no", "KeyboardInterrupt")


@pytest.mark.parametrize(("code", "status"), [(0, 0), (7, 7), (-9, 137), (-11, 139), (-15, 143), (255, 255)])
def test_status_for_the_shell(code: int, status: int) -> None:
    assert exit_status(code) == status


def test_in_words() -> None:
    assert in_words(7) == "exit code 7"
    assert in_words(-9).startswith("SIGKILL (signal 9): killed from outside")
    assert in_words(-12) == "SIGUSR2 (signal 12)"
    assert in_words(-63) == "signal 63"


@pytest.fixture
def rank(tmp_path: Path):  # type: ignore[no-untyped-def]
    """`rank(number, code, words, stopped=...)`: a failure with these words in its log."""

    def make(number: int, code: int, words: str = "", *, stopped: bool = False) -> Failure:
        log = tmp_path / f"rank-{number}.stderr.log"
        log.write_text(words)
        return Failure(number, "host", code, (log,), ended_ms=1000.0 * number, stopped=stopped)

    return make


def test_the_first_to_end_is_the_first_to_fail(rank) -> None:  # type: ignore[no-untyped-def]
    assert first_failure([rank(2, 7), rank(0, 1, OWN)]).rank == 2
    assert first_failure([]) is None


def test_a_victim_that_ends_sooner_is_not_the_cause(rank) -> None:  # type: ignore[no-untyped-def]
    assert first_failure([rank(0, 1, GLOO), rank(2, 1, GLOO), rank(1, 1, OWN)]).rank == 1


def test_a_rank_that_was_stopped_in_its_own_error_is_the_cause(rank) -> None:  # type: ignore[no-untyped-def]
    """The interpreter of rank 1 was still ending, its connections closed, when the launcher stopped all."""
    failures = [rank(0, 1, GLOO), rank(2, -15, KILLED_AT_WORK, stopped=True), rank(1, -15, OWN, stopped=True)]
    assert first_failure(failures).rank == 1
    assert status_of(first_failure(failures)) == 1, "not 143: it would have ended with 1 by itself"


def test_a_progress_bar_before_the_traceback_hides_no_cause(rank) -> None:  # type: ignore[no-untyped-def]
    bar = "  0%|          | 0/100 [00:00<?, ?it/s]"
    assert first_failure([rank(0, 1, GLOO), rank(1, -15, bar + OWN, stopped=True)]).rank == 1
    assert first_failure([rank(0, 1, bar + GLOO), rank(1, -15, bar + "[rank1]: " + OWN, stopped=True)]).rank == 1


def test_what_python_prints_after_the_error_changes_no_blame(rank) -> None:  # type: ignore[no-untyped-def]
    deleted = "Exception ignored in: <function _MultiProcessingDataLoaderIter.__del__ at 0x7f>\n"
    deleted += OWN.replace("ValueError: no", "AttributeError: no attribute '_workers_status'")
    assert first_failure([rank(0, 1, GLOO + deleted), rank(1, 1, OWN)]).rank == 1
    thread = "Exception in thread Thread-2 (_pin_memory_loop):\n"
    thread += OWN.replace("ValueError: no", "ConnectionResetError: [Errno 104] Connection reset by peer")
    assert first_failure([rank(0, 1, GLOO), rank(1, 1, OWN + thread)]).rank == 1


def test_a_crash_counts_whatever_was_said_before(rank) -> None:  # type: ignore[no-untyped-def]
    assert first_failure([rank(0, -11, GLOO), rank(1, 1, OWN)]).rank == 0


def test_an_abort_in_leaving_stands_behind_the_error(rank) -> None:  # type: ignore[no-untyped-def]
    late = rank(1, -6, OWN + "terminate called without an active exception\n")
    assert first_failure([rank(0, 1, GLOO), late]) is late
    assert late.ending() == "SIGABRT (signal 6): aborted in native code after its error, while it was ending"
    assert rank(1, -6, OWN).ending() == "SIGABRT (signal 6): aborted in native code"
    assert rank(1, 1, OWN + "terminate called without an active exception\n").ending() == "exit code 1"


def test_all_victims_on_this_machine(rank) -> None:  # type: ignore[no-untyped-def]
    """The cause is on another node: the first one here speaks for all."""
    assert first_failure([rank(3, 1, GLOO), rank(2, 1, GLOO)]).rank == 3


def test_a_run_that_recovered_has_no_first_failure(rank) -> None:  # type: ignore[no-untyped-def]
    attempts = (Attempt(0, (rank(1, 7),)),)
    assert Outcome(0, attempts).first is None
    assert Outcome(7, attempts).first.rank == 1  # type: ignore[union-attr]
