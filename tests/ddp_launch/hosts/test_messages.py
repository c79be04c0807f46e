"""Messages about a run over ssh come from the host where it was started, and from no other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ddp_launch.hosts.ssh_pair import Pair, pair_with

URL = "http://127.0.0.1:8901"
RECEIVER = """
import http.server, os, pathlib, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open(sys.argv[1], "ab") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])) + b"\\n")
        self.send_response(200)
        self.end_headers()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8901), Handler)
pathlib.Path(sys.argv[1]).touch()
server.serve_forever()
"""
PROGRAM = """
import os, torch, torch.distributed as dist
assert "DDP_NOTIFY" not in os.environ
dist.init_process_group("gloo")
if os.environ["RANK"] == "1":
    raise KeyError("the cause")
dist.all_reduce(torch.ones(1))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_with(PROGRAM, tmp_path_factory.mktemp("pair")) as made:
        yield made


@contextmanager
def receiver(pair: Pair, file: Path) -> Iterator[list[dict[str, Any]]]:
    """A server on the loopback of the first node; what it has taken, filled in at the end."""
    taken: list[dict[str, Any]] = []
    command = pair.a.command(sys.executable, "-c", RECEIVER, str(file))
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield taken
    finally:
        server.communicate(timeout=30)
        taken += map(json.loads, file.read_text().splitlines())


def test_the_host_where_it_was_started_tells_the_cause_on_another(pair: Pair, tmp_path: Path) -> None:
    with receiver(pair, tmp_path / "taken") as taken:
        words = ("--hosts", "node-a,node-b", "--cpu", "--nproc", "1", "--notify-on", "start,end,fail", "program.py")
        done = pair.run(*words, DDP_NOTIFY=f"{URL}/s3cret")
    assert done.returncode == 1, done.stderr
    assert [one["event"] for one in taken] == ["start", "fail"]
    last = taken[-1]
    assert (last["hosts"], last["world_size"], last["program"]) == (["node-a", "node-b"], 2, "program.py")
    assert (last["cause"]["rank"], last["cause"]["host"]) == (1, "node-b")
    assert last["cause"]["error"] == "KeyError: 'the cause'"
    assert "note: --notify" not in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_a_host_that_cannot_take_part_is_told(pair: Pair, tmp_path: Path) -> None:
    with receiver(pair, tmp_path / "taken") as taken:
        done = pair.run("--hosts", "node-a,node-denied", "--cpu", "--notify", f"{URL}/x", "program.py")
    assert done.returncode == 2, done.stderr
    (record,) = taken
    assert (record["event"], record["status"]) == ("fail", 2)
    assert record["message"].startswith("node-denied: ")
