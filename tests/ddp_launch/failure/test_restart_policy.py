"""When a failed program is started again, and that the next attempt begins afresh."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddp_launch.failure.failures import Attempt, Failure
from ddp_launch.failure.restart_policy import why_not

TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n'
TWICE = "the same failure twice"


def attempt(folder: Path, number: int, words: str, code: int = 1, seconds: float = 5.0, rank: int = 0) -> Attempt:
    log = folder / f"{number}.log"
    log.write_text(words)
    return Attempt(number, (Failure(rank, "host", code, (log,), 1.0),), seconds)


def decide(folder: Path, *attempts: dict[str, Any]) -> str | None:
    return why_not([attempt(folder, number, **one) for number, one in enumerate(attempts)])


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ("  File \"a.py\", line 1\n    (\n    ^\nSyntaxError: '(' was never closed", 1, "cannot read"),
        (TRACEBACK + "ModuleNotFoundError: No module named 'nope'", 1, "missing"),
        (TRACEBACK + "FileNotFoundError: [Errno 2] No such file or directory: 'data'", 1, "missing"),
        ("python: can't open file '/x/a.py': [Errno 2] No such file or directory", 2, "missing"),
        ("/usr/bin/python: No module named nope", 1, "missing"),
        ("error: nope: No such file or directory", 127, "missing"),
        (TRACEBACK + "ValueError: not yet", 1, None),
        ("", 7, None),
        ("", -9, None),
    ],
)
def test_a_first_failure(tmp_path: Path, words: str, code: int, why: str | None) -> None:
    found = decide(tmp_path, {"words": words, "code": code})
    assert found is None if why is None else found is not None and why in found


def test_missing_files_may_come_back_in_a_run_that_has_worked(tmp_path: Path) -> None:
    words = TRACEBACK + "FileNotFoundError: [Errno 2] No such file or directory: 'data'"
    assert decide(tmp_path, {"words": words, "seconds": 3600}) is None


def test_a_syntax_error_of_data_read_in_a_run_that_has_worked(tmp_path: Path) -> None:
    words = TRACEBACK + "SyntaxError: invalid syntax"  # of ast.literal_eval
    assert decide(tmp_path, {"words": words, "seconds": 3600}) is None
    assert "cannot read" in (decide(tmp_path, {"words": words, "seconds": 5}) or "")


def test_twice_in_the_same_way(tmp_path: Path) -> None:
    first = {"words": TRACEBACK + "ValueError: object at 0x7f01 in process 12345"}
    again = {"words": TRACEBACK + "ValueError: object at 0x8a02 in process 23456", "rank": 1}
    assert TWICE in (decide(tmp_path, first, again) or "")
    assert TWICE in (decide(tmp_path, {"words": "", "code": -11}, {"words": "", "code": -11}) or "")
    assert decide(tmp_path, first, again | {"seconds": 61}) is None
    assert decide(tmp_path, first | {"seconds": 61}, again) is None
    assert decide(tmp_path, first, again | {"code": 3}) is None
    assert decide(tmp_path, first, {"words": TRACEBACK + "ValueError: layer 2"}) is None
    late = {"words": first["words"] + "\nterminate called without an active exception", "code": -6}
    assert decide(tmp_path, first, late), "whether it aborts in leaving is chance"
    assert decide(tmp_path, {"words": "", "code": -9}, {"words": "", "code": -9}) is None, "killed from outside"
    lost = {"words": TRACEBACK + "RuntimeError: Connection closed by peer [10.0.0.2]:4242"}
    assert decide(tmp_path, lost, lost) is None, "another node may come back"


COUNT = """
import os
with open(f"attempts-{os.environ['RANK']}", "a") as file:
    file.write("x")
"""


@pytest.mark.parametrize(
    ("program", "attempts", "why"),
    [
        (COUNT + "raise ValueError('no good')", 2, TWICE),
        (COUNT + "open('nothing/here')", 1, "missing"),
        (COUNT + "import mistake", 1, "cannot read"),
    ],
)
def test_what_cannot_help_is_not_tried(launcher: Any, program: str, attempts: int, why: str) -> None:
    launcher.script("(", "mistake.py")
    done = launcher.run("--cpu", "--max-restarts", "5", str(launcher.script(program)))
    assert done.returncode == 1
    assert (launcher.folder / "attempts-0").read_text() == "x" * attempts
    assert why in " ".join(done.stderr.split())


SUMS = """
import os, pathlib, time, torch
import torch.distributed as dist
pid = pathlib.Path(f"pid-{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['RANK']}")
pid.with_suffix(".new").write_text(str(os.getpid()))
pid.with_suffix(".new").rename(pid)
dist.init_process_group("gloo")
total = torch.zeros(1)
for step in range(60):
    one = torch.ones(1)
    dist.all_reduce(one)
    total += one
    time.sleep(0.01)
print("total", int(total), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("after_s", [0.0, random.Random().uniform(0.0, 3.0)], ids=["at the start", "some time"])
def test_recovery_from_a_killed_rank(launcher: Any, after_s: float) -> None:
    """At any moment, from the start of Python to the last collective; benchmarks/restart_recovery.py does it often."""
    process = launcher.start("--cpu", "--max-restarts", "1", "--log-dir", "logs", str(launcher.script(SUMS)))
    launcher.wait_for("pid-0-1")
    time.sleep(after_s)
    ended = (launcher.folder / "logs/attempt-0/rank-1.stdout.log").read_text()
    if not ended:
        psutil.Process(int((launcher.folder / "pid-0-1").read_text())).send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (after_s, err)
    assert out.splitlines()[-1] == "total 120"
    if not ended:
        assert (launcher.folder / "logs/attempt-1/rank-1.stdout.log").read_text() == "total 120\n"
