"""The keeper of a host, started on this machine without ssh, with a small program in the launcher's place."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddp_launch.cli.host_list import Host
from ddp_launch.hosts.connection import Connection, sources
from ddp_launch.hosts.keeper import END_S

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, f"up {os.getpid()} {sys.stdout.isatty()} {sys.stderr.isatty()} {os.environ['GIVEN']}\\n".encode())
time.sleep(600)
"""


@pytest.fixture
def keeper() -> Iterator[Connection]:
    made = Connection(Host("localhost"), 0, sources())
    assert made.here
    yield made
    made.hang_up()
    made.close(5.0)


def wait_for(keeper: Connection, kind: str) -> tuple[dict[str, Any], bytes]:
    """The next message of this kind; meanwhile the keeper hears of this end."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        select.select([keeper.channel.source], [], [], 0.2)
        for message, data in keeper.receive():
            if message["kind"] == kind:
                return message, data
        if keeper.ready:
            keeper.channel.send("beat")
    raise TimeoutError(kind)


def start(keeper: Connection, program: str, *, terminal: bool = False) -> None:
    wait_for(keeper, "hello")
    given = {"argv": ["-c", program], "environment": {"GIVEN": "a b'c"}, "variable": "SEAT", "seat": '{"fd": "FD"}'}
    keeper.channel.send("start", **given, terminals=(terminal, False), one_place=False, rows_columns=(24, 80))


def is_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_launcher_ends_with_the_connection(keeper: Connection) -> None:
    start(keeper, STUBBORN, terminal=True)
    message, data = wait_for(keeper, "output")
    _, pid, *rest = data.decode().split(maxsplit=4)
    # Its output is a terminal where the one here is, its errors are not.
    assert (message["stream"], rest) == (1, ["True", "False", "a b'c\n"])
    keeper.hang_up()
    assert is_gone(int(pid), END_S + 3)


def test_end_of_a_launcher_is_reported_after_its_last_words(keeper: Connection) -> None:
    start(keeper, "import os, sys; sys.stderr.write('x' * 300_000); sys.stderr.flush(); os.kill(os.getpid(), 9)")
    said = 0
    while said < 300_000:
        message, data = wait_for(keeper, "output")
        assert message["stream"] == 2
        said += len(data)
    message, _ = wait_for(keeper, "end")
    assert (message["code"], said) == (-signal.SIGKILL, 300_000)
