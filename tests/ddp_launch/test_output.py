"""What becomes of the ranks' output: its order, its files, their size, and a disk that is full. Real runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_files import small_disk

ROOT = Path(__file__).parents[2]
ALTERNATING = """
import os, sys
for number in range(2000):
    os.write(1 + number % 2, f"{os.environ['RANK']} {number}\\n".encode())
"""


def test_streams_that_go_to_one_place_keep_their_order(launcher: Any) -> None:
    """launch.py ... 2>&1 | less"""
    script = launcher.script(ALTERNATING)
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--cpu", "--tee", "--log-dir", "logs", str(script)],
        cwd=launcher.folder,
        env=launcher.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    for rank, prefix in ((0, ""), (1, "[rank 1] ")):
        begin = f"{prefix}{rank} "
        lines = [line for line in done.stdout.splitlines() if line.startswith(begin)]
        assert lines == [f"{begin}{number}" for number in range(2000)]
        for stream in ("stdout", "stderr"):
            log = launcher.folder / f"logs/attempt-0/rank-{rank}.{stream}.log"
            assert log.read_text() == "".join(f"{rank} {number}\n" for number in range(2000))


def test_streams_that_go_to_two_places_stay_apart(launcher: Any) -> None:
    done = launcher.run("--cpu", "--log-dir", "logs", str(launcher.script(ALTERNATING)))
    assert done.stdout == "".join(f"0 {number}\n" for number in range(0, 2000, 2))
    assert done.stderr.endswith("".join(f"0 {number}\n" for number in range(1, 2000, 2)))
    assert (launcher.folder / "logs/attempt-0/rank-1.stderr.log").read_text().startswith("1 1\n1 3\n")


def test_a_success_leaves_no_folder_and_a_failure_one_for_a_week(launcher: Any) -> None:
    temporary = launcher.folder / "tmp"
    script = launcher.script("import sys\nprint('words of every rank')\nsys.exit(int(sys.argv[1]))")
    assert launcher.run("--cpu", str(script), "0").returncode == 0
    assert list(temporary.glob("ddp-launch-*")) == []
    assert launcher.run("--cpu", str(script), "3").returncode == 3
    (left,) = temporary.glob("ddp-launch-*")
    recent = temporary / "ddp-launch-abcd1234"
    (recent / "attempt-0").mkdir(parents=True)
    week = time.time() - 8 * 24 * 3600
    for path in (recent, left, *left.rglob("*")):
        os.utime(path, (week, week))
    assert launcher.run("--cpu", str(script), "0").returncode == 0
    assert list(temporary.glob("ddp-launch-*")) == [recent], "something in it is younger"


def test_logs_keep_head_and_tail(launcher: Any) -> None:
    script = launcher.script("for number in range(300_000): print('line', number)")
    done = launcher.run("--cpu", "--log-dir", "logs", "--log-size", "1MB", str(script))
    assert (done.returncode, done.stdout.count("\n")) == (0, 300_000), "the screen gets all"
    for rank in (0, 1):
        log = launcher.folder / f"logs/attempt-0/rank-{rank}.stdout.log"
        assert log.stat().st_size <= 10**6
        text = log.read_text()
        assert text.startswith("line 0\n") and text.endswith("line 299999\n")
        assert "bytes are left out here" in text


@pytest.mark.parametrize("status", [0, 7])
def test_a_full_log_disk_ends_no_run(launcher: Any, status: int) -> None:
    script = launcher.script(
        "import os, pathlib, sys, time\nfor number in range(100_000): print('line', number)\n"
        "sys.stdout.flush()\npathlib.Path('ended-' + os.environ['RANK']).touch()\n"
        "while len(list(pathlib.Path().glob('ended-*'))) < 2: time.sleep(0.01)\n"
        "print('the cause', file=sys.stderr)\nsys.exit(os.environ['RANK'] == '1' and int(sys.argv[1]))"
    )
    (launcher.folder / "disk").mkdir()
    disk = small_disk(launcher.folder / "disk", "128k")
    command = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--log-dir", "disk/logs", str(script), str(status)]
    done = subprocess.run(
        [*disk, *command], cwd=launcher.folder, env=launcher.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("line 99999\n")
    assert all((launcher.folder / f"ended-{rank}").exists() for rank in (0, 1))
    assert "rank-1.stdout.log: " in done.stderr and "are not in it (No space left on device)" in done.stderr
    if status:
        assert "│ the cause" in done.stderr.partition("rank 1 failed first")[2]


def test_tuning_for_the_trainer_is_for_the_trainer_alone(launcher: Any) -> None:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GOMP_SPINCOUNT")
    script = launcher.script(f"import os\nprint([name for name in {names} if name in os.environ])")
    assert launcher.run("--cpu", "--nproc", "1", str(script)).stdout == "[]\n"
    plan = launcher.run("--cpu", "--dry-run").stdout
    assert all(name in plan for name in names)
