"""The connections of a run: what reaches the screen, what a login shell says instead of a Python, what is noted."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_launch.cli.host_list import Host
from ddp_launch.cli.options import parse
from ddp_launch.hosts import bring_up, sync
from ddp_launch.hosts.checks import HostFacts
from ddp_launch.hosts.connection import Connection

ROOT = Path(__file__).parents[3]
FLEET = """
import sys
from ddp_launch.cli.host_list import Host
from ddp_launch.hosts.fleet import Fleet
how = {"environment": {}, "variable": "SEAT", "seat": '{"fd": "FD"}', "terminals": [False, False], "one_place": False}
with Fleet([Host("localhost")]) as fleet:
    fleet.gather("hello", 60)
    (host,) = fleet.hosts
    host.channel.send("start", argv=["-c", sys.argv[1]], rows_columns=[24, 80], **how)
    while host.is_open:
        fleet.pump()
    print("ended:", host.lost or host.code, file=sys.stderr)
"""
TALKS = "import sys\nfor _ in range(300): sys.stdout.write('x' * 9999 + chr(10)); sys.stdout.flush()"


def start(stdout: int) -> subprocess.Popen[str]:
    """A program on one host that prints 3,000,000 bytes to `stdout`."""
    command = [sys.executable, "-c", FLEET, TALKS]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env)


def test_a_full_disk_under_the_screen_does_not_end_the_ranks() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    _, err = start(full).communicate(timeout=120)
    os.close(full)
    assert err.splitlines() == [
        "ended: 0",
        "note: the launcher's output: 3,000,000 bytes of the ranks' output are not in it (No space left on device)",
    ]


def test_a_screen_that_does_not_block_gets_every_byte() -> None:
    # A pipe that its reader, such as a CI server, has made non-blocking.
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = start(write)
    os.close(write)
    taken: list[int] = []

    def take() -> None:
        """A thread's work: read all, but late."""
        select.select([read], [], [])
        time.sleep(0.5)
        while chunk := os.read(read, 1 << 16):
            taken.append(len(chunk))

    reader = threading.Thread(target=take, daemon=True)
    reader.start()
    _, err = process.communicate(timeout=120)
    reader.join(60)
    os.close(read)
    assert err == "ended: 0\n"
    assert sum(taken) == 3_000_000


def test_what_a_login_shell_prints_in_place_of_an_error_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho; echo This account is currently not available.\nexit 1\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    host = Connection(Host("box"), 0, b"")
    deadline = time.monotonic() + 30
    while not host.channel.closed and time.monotonic() < deadline:
        select.select([host.channel.source], [], [], 0.2)
        assert list(host.receive()) == []
    assert host.why_closed().endswith("ended with status 1: This account is currently not available.")
    host.hang_up()
    host.close(1.0)


def test_variables_that_another_host_lacks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(bring_up.ALIKE)]:
        monkeypatch.delenv(name)
    for name in ("PYTHONPATH", "NCCL_DEBUG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0")
    there = [["PYTHONPATH", "NCCL_DEBUG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"], ["PATH", "LD_LIBRARY_PATH"]]
    facts = [
        HostFacts(name, {"torch": "2.9", "addresses": [], "variables": variables}, 0.0)
        for name, variables in zip("ab", there, strict=True)
    ]
    plans = {name: {"models": "1 x A100", "address": "10.0.0.1"} for name in "ab"}
    options = parse(["--hosts", "a,b", "train.py"])
    (line,) = bring_up._notes(options, {"CUDA_VISIBLE_DEVICES": "0"}, facts, plans)
    assert line == "set here and not on the other hosts: NCCL_DEBUG, PYTHONPATH (--export NCCL_DEBUG,PYTHONPATH)"


def test_files_that_vanish_while_they_are_copied_are_no_failure() -> None:
    # rsync(1): 24, partial transfer due to vanished source files; 23, partial transfer due to error.
    said = {24: 'file has vanished: "/w/x.tmp"', 23: "rsync: [sender] opendir failed: Permission denied (13)"}
    found = {}
    for status, line in said.items():
        command = ["sh", "-c", f"echo '{line}' >&2; exit {status}"]
        found[status] = sync._problem(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    assert found == {24: None, 23: said[23]}


def test_folders_that_are_not_there_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--sync '~no-such-user/x': no such folder"):
        sync.folder("~no-such-user/x")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UserError, match=r"--sync '\.': no such folder"):
        sync.folder(".")
    with pytest.raises(UserError, match="the current folder cannot be read"):
        bring_up._current_folder()
