"""Logs of bounded size: head and tail stay, in whole lines, also where the disk is full."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_launch.run.bounded_log import BoundedLog
from tests.faults.test_files import small_disk

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("piece", [7, 1000, 40_000])
def test_head_and_tail_of_whole_lines(tmp_path: Path, piece: int) -> None:
    text = b"".join(b"line %d\n" % number for number in range(100_000))
    log = BoundedLog(tmp_path / "log", limit=64_000)
    for at in range(0, len(text), piece):
        log.write(text[at : at + piece])
        assert (tmp_path / "log").stat().st_size <= 64_000
    log.close()
    kept = (tmp_path / "log").read_bytes()
    head, number, tail = re.split(rb"\[\.\.\. (\d+) bytes are left out here \.\.\.\]\n", kept)
    assert text.startswith(head) and head.endswith(b"\n") and len(head) > 15_000
    assert text.endswith(tail) and tail.startswith(b"line ") and len(tail) > 15_000
    assert len(head) + int(number) + len(tail) == len(text)
    assert (log.lost, log.why) == (0, "")


def test_short_logs_and_logs_without_a_limit_are_whole(tmp_path: Path) -> None:
    for limit in (0, 1000):
        log = BoundedLog(tmp_path / "log", limit)
        log.write(b"x" * 999)
        assert (tmp_path / "log").read_bytes() == b"x" * 999
    BoundedLog(tmp_path / "log", 4096).write(b"y" * 50_000)
    assert 2048 < (tmp_path / "log").stat().st_size <= 4096, "a line longer than the log"


def test_a_folder_that_cannot_be_made_loses_all(tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    log = BoundedLog(tmp_path / "none" / "log")
    log.write(b"words")
    assert (log.lost, log.why) == (5, "File exists")
    (tmp_path / "none").unlink()
    log.write(b"again")
    assert (tmp_path / "none/log").read_bytes() == b"again"


FULL = """
import sys
from pathlib import Path
from ddp_launch.run.bounded_log import BoundedLog
log = BoundedLog(Path(sys.argv[1], "log"))
for number in range(20_000):
    log.write(b"line %d\\n" % number)
print(log.lost, log.why)
print(*Path(sys.argv[1], "log").read_text().splitlines()[:1], *Path(sys.argv[1], "log").read_text().splitlines()[-1:])
"""


def test_a_tiny_disk_keeps_head_and_tail(tmp_path: Path) -> None:
    command = [*small_disk(tmp_path, "64k"), sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=60
    )
    lost, ends = done.stdout.splitlines()
    assert lost.endswith("No space left on device") and int(lost.split()[0]) > 100_000
    assert ends == "line 0 line 19999"


LAST = """
import sys
from contextlib import suppress
from pathlib import Path
from ddp_launch.run.bounded_log import BoundedLog

folder = Path(sys.argv[1])
quiet = BoundedLog(folder / "quiet.log")
with suppress(OSError), open(folder / "others", "wb", buffering=0) as others:
    while True:
        others.write(bytes(4096))
quiet.write(b"the cause\\n")
print(quiet.lost, (folder / "quiet.log").read_text(), end="")
"""


def test_the_last_words_have_room_on_a_disk_that_others_have_filled(tmp_path: Path) -> None:
    command = [*small_disk(tmp_path, "64k"), sys.executable, "-c", LAST, str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "0 the cause\n"
