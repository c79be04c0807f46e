"""The words for a failed run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from launcher.failures import Failure, Outcome, exit_status, in_words, last_lines, show


def shown(outcome: Outcome) -> str:
    text = io.StringIO()
    show(Console(file=text, width=100), outcome)
    return text.getvalue()


@pytest.mark.parametrize(("code", "status"), [(0, 0), (7, 7), (-9, 137), (-11, 139), (-15, 143), (255, 255)])
def test_status_for_the_shell(code: int, status: int) -> None:
    assert exit_status(code) == status


def test_in_words() -> None:
    assert in_words(7) == "exit code 7"
    assert in_words(-9).startswith("SIGKILL (signal 9): killed from outside")
    assert in_words(-12) == "SIGUSR2 (signal 12)"
    assert in_words(-63) == "signal 63"


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == []
    log.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % i for i in range(50_000)) + b"\n\n")
    assert last_lines(log, 2) == ["line 49998", "line 49999"]


def test_summary_of_a_failure(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("step 1\n")
    err.write_text("Traceback ...\nValueError: [bold]no[/bold]\n")
    text = shown(Outcome(7, Failure(3, "node7", 7, (out, err)), also=(0, 1), attempts=2))
    for words in (
        "rank 3 failed",
        "3 on node7",
        "exit code 7",
        "ValueError: [bold]no[/bold]",
        "ranks 0, 1",
        "attempts",
    ):
        assert words in text
    assert str(err) in text
    assert "step 1" not in text, "the error output comes first"


def test_standard_output_where_there_is_no_error_output(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("last words\n")
    err.touch()
    assert "last words" in shown(Outcome(7, Failure(1, "h", 7, (out, err))))


def test_rank_on_the_screen() -> None:
    assert "its output stands above" in shown(Outcome(7, Failure(0, "h", 7)))


def test_users_mistake_is_not_explained_twice(tmp_path: Path) -> None:
    err = tmp_path / "err"
    err.write_text("noise\nprogram: error: no such file\n")
    assert shown(Outcome(2, Failure(0, "h", 2))) == ""
    assert shown(Outcome(2, Failure(1, "h", 2, (err,)))) == "program: error: no such file\n"
    err.write_text("")
    assert shown(Outcome(2, Failure(1, "h", 2, (err,)))) == "rank 1 on h: exit code 2, without a word\n"
    err.write_text("noise\n")
    assert "rank 1 failed" in shown(Outcome(2, Failure(1, "h", 2, (err,))))


def test_nothing_after_a_success_and_one_line_from_the_engine() -> None:
    assert shown(Outcome(0)) == ""
    assert shown(Outcome(1, message="store [lost]")) == "error: store [lost]\n"
