"""The lock on a run folder: who is refused, who is let in, and what becomes of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.run_folder.lock import NAME, RunLock

_ROOT = Path(__file__).parents[3]

_HOLD = """
import os, sys, time
from pathlib import Path
from ddp_train.run_folder.lock import RunLock
from ddp_core.errors import UserError
lock = RunLock()
try:
    lock.take(Path(sys.argv[1]))
except UserError as error:
    sys.exit(f"error: {error}")
print(os.getpid(), flush=True)
"""

Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start a process that locks the folder, then does what it is told; it lives until its input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(then: str = "sys.stdin.read()") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _HOLD + then, str(tmp_path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=_ROOT, text=True, **pipes))  # type: ignore[call-overload]
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def test_the_other_is_told_who_holds_it_and_a_crash_leaves_it_free(tmp_path: Path, hold: Hold) -> None:
    holder = hold()
    with pytest.raises(UserError) as caught:
        RunLock().take(tmp_path)
    words = str(caught.value)
    assert words.startswith(f"--out-dir {tmp_path}: another run is using this folder: pid {holder.pid} (-c) on ")
    assert words.endswith("; wait for its end, or give another --out-dir")
    assert "\n" not in words
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=10)
    lock = RunLock()
    lock.take(tmp_path)
    lock.take(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_forked_does_not_keep_it(tmp_path: Path, hold: Hold) -> None:
    holder = hold("child = os.fork()\nif child == 0: time.sleep(60)\nprint(child, flush=True); sys.stdin.read()")
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait(timeout=10)
        RunLock().take(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_rank_finds_its_launchers_lock_and_a_stranger_is_refused(tmp_path: Path, hold: Hold) -> None:
    rank = "import subprocess; print(subprocess.run([sys.executable, '-c', {!r}, sys.argv[1]]).returncode, flush=True)"
    launcher = hold(rank.format(_HOLD))
    assert launcher.stdout is not None
    assert launcher.stdout.read().split()[-1] == "0"
    launcher = hold()
    stranger = subprocess.run(
        [sys.executable, "-c", _HOLD, str(tmp_path)], cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert stranger.returncode == 1
    assert f"pid {launcher.pid}" in stranger.stderr


def test_one_that_is_started_again_waits_for_the_one_before(tmp_path: Path, hold: Hold) -> None:
    holder = hold()
    threading.Timer(0.3, holder.kill).start()
    started = time.monotonic()
    RunLock().take(tmp_path, patient=True)
    assert 0.2 < time.monotonic() - started < 8


def test_of_many_at_once_each_gets_it_in_turn_though_the_file_is_removed(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from ddp_train.run_folder.lock import RunLock
for _ in range(30):
    lock = RunLock()
    lock.take(Path(sys.argv[1]), patient=True)
    with open(Path(sys.argv[1]) / "held", "x"): pass
    (Path(sys.argv[1]) / "held").unlink()
    lock.release()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=_ROOT) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        RunLock().take(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_stands_in_the_file_cannot_write_to_the_terminal(tmp_path: Path, hold: Hold) -> None:
    holder = hold()
    (tmp_path / NAME).write_text(f'{{"pid": {holder.pid}, "command": "\\u001b[2Jrm", "host": ["x"]}}')
    with pytest.raises(UserError) as caught:
        RunLock().take(tmp_path)
    assert f"pid {holder.pid} (?[2Jrm) on ['x']; wait" in str(caught.value)
