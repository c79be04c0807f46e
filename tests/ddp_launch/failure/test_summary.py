"""The words for a failed run, as they stand on the screen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ddp_core import rank_report
from ddp_core.errors import UserError
from ddp_launch.failure.failures import Attempt, Failure, Outcome
from ddp_launch.failure.known_failures import Evidence
from ddp_launch.failure.log_tail import LogTail
from ddp_launch.failure.remedies import find_remedy
from ddp_launch.failure.summary import names, show

TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n'


def shown(outcome: Outcome, width: int = 100) -> str:
    text = io.StringIO()
    show(Console(file=text, width=width), outcome, find_remedy(outcome.first, Evidence()) if outcome.first else None)
    return text.getvalue()


def failed(*failures: Failure, earlier: tuple[Attempt, ...] = (), status: int = 7) -> Outcome:
    return Outcome(status, (*earlier, Attempt(len(earlier), failures)))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_summary_of_a_failure(tmp_path: Path) -> None:
    out, err = write(tmp_path / "out", "step 1\n"), write(tmp_path / "err", TRACEBACK + "ValueError: [bold]no[/bold]\n")
    lost = write(tmp_path / "lost", TRACEBACK + "RuntimeError: Connection closed by peer\n")
    old = Failure(2, "node7", 1, (write(tmp_path / "old", TRACEBACK + "KeyError: 'old'\n"),))
    text = shown(
        failed(
            Failure(3, "node7", 7, (out, err), ended_ms=1000.0),
            Failure(0, "node7", 1, (lost,), ended_ms=1151.0),
            Failure(1, "node7", -15, (), ended_ms=1200.0, stopped=True),
            Failure(4, "node7", 9, (), ended_ms=1020.0),
            earlier=(Attempt(0, (old,)),),
        )
    )
    for words in (
        "rank 3 failed first",
        "3 on node7, attempt 2 of 2",
        "exit code 7",
        "ValueError: [bold]no[/bold]",
        "rank 0: lost the connection to it, 151 ms later",
        "rank 1: by the launcher",
        "rank 4: failed of themselves, 20 ms later",
        "attempt 1  rank 2: KeyError: 'old'",
    ):
        assert words in text
    assert f"{err}, out" in text
    assert "step 1" not in text, "the error output comes first"
    assert "stopped" not in shown(failed(Failure(3, "node7", 7, (out, err))))


def test_a_hang_points_at_the_rank_that_did_not_come(tmp_path: Path) -> None:
    waited = write(
        tmp_path / "waited", "RuntimeError: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
    )
    idle = write(tmp_path / "idle", "step 7\n")
    text = shown(
        failed(
            Failure(0, "h", -6, (waited,)),
            Failure(1, "h", -15, (idle,), stopped=True),
            Failure(2, "h", -15, (waited,), stopped=True),
        )
    )
    assert "look at    rank 1: the others waited for it" in text
    assert "python -m gpu_topology verify" in text


def test_a_signal_with_a_known_reason_stays_short() -> None:
    killed = Failure(1, "h", -9)
    text = io.StringIO()
    show(Console(file=text, width=100), failed(killed), find_remedy(killed, Evidence(1, "of this job's cgroup")))
    assert "ended by   SIGKILL (signal 9)\n" in "\n".join(line.rstrip() for line in text.getvalue().splitlines())
    assert "the kernel killed 1 process" in text.getvalue()


def test_what_was_on_the_screen_already_is_short(tmp_path: Path) -> None:
    text = TRACEBACK + "".join(f'  File "b.py", line {n}\n' for n in range(30)) + "ValueError: no\n"
    log = write(tmp_path / "err", text)
    assert shown(failed(Failure(0, "h", 7, (log,), on_screen=True))).count("│") == 6
    assert shown(failed(Failure(0, "h", 7, (log,)))).count("│") == 20


def test_a_remedy_stands_behind_the_words(tmp_path: Path) -> None:
    log = write(tmp_path / "err", TRACEBACK + "ModuleNotFoundError: No module named 'cv2'\n")
    text = shown(failed(Failure(1, "h", 1, (log,))))
    assert text.index("No module named") < text.index("pip install opencv-python-headless") < text.index(str(log))


def test_users_mistake_is_not_explained_twice(tmp_path: Path) -> None:
    """Of the bundled trainer, whose report says that it has explained itself."""
    words = "error: no such file"
    report, err = tmp_path / "error.json", write(tmp_path / "err", f"noise\n{words}\n")
    rank_report.write(
        rank_report.of_error(UserError("no such file"), rank=0, status=2, place=None, message=words), str(report)
    )
    assert shown(failed(Failure(0, "h", 2, (err,), on_screen=True, error_file=report))) == ""
    assert shown(failed(Failure(1, "h", 2, (err,), error_file=report))) == f"{words}\n"
    silent = Failure(1, "h", 2, error_file=report)
    assert shown(failed(silent, Failure(0, "h", 2, (err,), on_screen=True, error_file=report))) == ""
    assert shown(failed(silent)) == f"{words}\n", "rank 0 is on another node"


@pytest.mark.parametrize("status", [1, 2, 3, 70, 255])
def test_a_programs_own_status_is_like_any_other(tmp_path: Path, status: int) -> None:
    out = write(tmp_path / "out", "validation error: 0.25\nFATAL: the table has no rows\n")
    for rank, on_screen in ((0, True), (1, False)):
        text = shown(failed(Failure(rank, "node7", status, (out,), on_screen=on_screen), status=status))
        for words in (
            f"rank {rank} failed first",
            "on node7",
            f"exit code {status}",
            "│ FATAL: the table has",
            str(out),
        ):
            assert words in text
    err = write(tmp_path / "err", "UserWarning: an old driver\n")
    both = shown(failed(Failure(1, "node7", status, (out, err)), status=status))
    assert both.index("FATAL: the table") < both.index("an old driver"), "whichever stream it went to"
    silent = shown(failed(Failure(1, "h", status, (tmp_path / "none",)), status=status), width=400)
    assert f"exit code {status}" in silent
    assert f"it printed nothing in {tmp_path}" in silent


def test_rank_0_speaks_for_all(tmp_path: Path) -> None:
    err = write(tmp_path / "err", "usage: a.py [-h] FILE\na.py: error: the following arguments are required: FILE\n")
    text = shown(failed(Failure(1, "h", 2, (tmp_path / "none",)), Failure(0, "h", 2, (err,), on_screen=True)))
    for words in ("rank 1 failed first", "those of rank 0", "│ a.py: error: the following", str(err)):
        assert words in text


def test_a_rank_that_left_early_says_why(tmp_path: Path) -> None:
    caught = write(tmp_path / "err", TRACEBACK + "ValueError: no data\n")
    lost = Failure(0, "h", 1, (write(tmp_path / "lost", TRACEBACK + "RuntimeError: Connection closed by peer\n"),))
    text = shown(failed(Failure(1, "h", 0, (caught,), left=True), lost))
    assert "rank 1 left early" in text
    assert "│ ValueError: no data" in text


def test_nothing_after_a_success_and_one_line_from_the_engine() -> None:
    assert shown(Outcome(0)) == ""
    assert shown(Outcome(0, (Attempt(0, (Failure(1, "h", 7),)),))) == "", "it recovered"
    assert shown(Outcome(1, message="store [lost]")) == "error: store [lost]\n"


@pytest.mark.parametrize(
    ("ranks", "words"),
    [((3,), "rank 3"), ((0, 1), "ranks 0, 1"), ((4, 0, 2, 3, 9, 5), "ranks 0, 2 to 5, 9")],
)
def test_names(ranks: tuple[int, ...], words: str) -> None:
    assert names(ranks) == words


def test_failures_on_other_nodes(tmp_path: Path) -> None:
    lost = Failure(0, "node7", 1, (write(tmp_path / "lost", TRACEBACK + "RuntimeError: Connection closed by peer\n"),))
    silent = shown(Outcome(1, (Attempt(0, (lost,), nodes=2),)))
    assert "rank 0 lost its connection" in silent
    assert "the other nodes" in silent
    assert "rank 0 failed first" in shown(Outcome(1, (Attempt(0, (lost,)),))), "one node has no others"
    words = LogTail(("ValueError: there",), Path("/logs/rank-9"))
    told = shown(Outcome(3, (Attempt(0, (Failure(9, "node8", 3, remote=(words, None)), lost), nodes=2),)))
    for line in ("rank 9 failed first", "9 on node8", "ValueError: there", "node8: /logs/rank-9", "rank 0: lost the"):
        assert line in told
