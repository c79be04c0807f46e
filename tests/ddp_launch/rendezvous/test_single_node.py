"""Where a run listens, and that it needs no name of this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[3]
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
SUM = """
import os, pathlib, time, torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(int(total), flush=True)
pathlib.Path("ready-" + os.environ["RANK"]).write_text(os.environ["MASTER_PORT"])
while pathlib.Path("stay").exists():
    time.sleep(0.05)
dist.destroy_process_group()
"""


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket on which these processes wait for connections."""
    found = set()
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return found


def test_every_listener_is_on_loopback_and_two_runs_do_not_meet(launcher: Any) -> None:
    script = str(launcher.script(SUM))
    folders = [launcher.folder / name for name in ("one", "two")]
    runs = []
    for folder in folders:
        folder.mkdir()
        (folder / "stay").touch()
        runs.append(launcher.start("--cpu", script, cwd=folder))
    launcher.wait_for(*(f"{folder.name}/ready-{rank}" for folder in folders for rank in (0, 1)))
    found = listening(launcher.alive())
    assert found, "the stores listen"
    assert {address for address, _ in found} <= set(LOOPBACK), found
    ports = {(folder / f"ready-{rank}").read_text() for folder in folders for rank in (0, 1)}
    assert len(ports) == 2
    for folder, run in zip(folders, runs, strict=True):
        (folder / "stay").unlink()
        out, err = run.communicate(timeout=60)
        assert (run.returncode, out) == (0, "2\n"), err


def test_each_attempt_has_a_store_of_its_own(in_process: Callable[[str], str]) -> None:
    code = """
from ddp_launch.rendezvous.single_node import OneNode
node = OneNode("127.0.0.1", "run")
first = node.next_rendezvous()
first.store.set("key", "stale")
second = node.next_rendezvous()
print(second.store.check(["key"]), first.bootstrap_store_info != second.bootstrap_store_info, second.world_size)
"""
    assert in_process(code) == "False True 1\n"


def test_no_name_is_looked_up(in_process: Callable[[str], str], tmp_path: Path) -> None:
    """A resolver that does not answer would hold up the start by seconds for each question."""
    code = f"""
import socket, sys
from pathlib import Path
from ddp_launch.run import agent as elastic
from ddp_launch.plan.command import Job
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event in EVENTS else None)
EVENTS = ("socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname", "socket.getnameinfo")
outcome = elastic.run(Job(worker=("true",), nproc_per_node=2), Path({str(tmp_path)!r}))
print(outcome.status, asked)
"""
    assert in_process(code) == "0 []\n"


UNRESOLVABLE = """
import fcntl, os, socket, struct, subprocess, sys
socket.sethostname("no-such-host.invalid")
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1 | 64))  # SIOCSIFFLAGS: lo up and running
sys.exit(subprocess.run(sys.argv[1:], timeout=50).returncode)
"""


def test_host_name_that_does_not_resolve(launcher: Any) -> None:
    """In a network namespace with nothing but the loopback device."""
    done = isolated(launcher, sys.executable, "-c", UNRESOLVABLE)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_a_loopback_device_that_is_down(launcher: Any) -> None:
    """As `unshare --net` leaves it: the ranks alone would try for a minute."""
    done = isolated(launcher)
    assert done.returncode == 1
    assert "ip link set lo up" in done.stderr.splitlines()[-1]
    assert not list(launcher.folder.glob("ready-*"))


def isolated(launcher: Any, *first: str) -> subprocess.CompletedProcess[str]:
    """The sum on two ranks in a network namespace of its own, started by the command `first`."""
    isolate = ["unshare", "--map-root-user", "--net", "--uts"]
    if shutil.which("unshare") is None or subprocess.run([*isolate, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make namespaces here")
    return subprocess.run(
        [*isolate, *first, sys.executable, str(ROOT / "launch.py"), "--cpu", str(launcher.script(SUM))],
        cwd=launcher.folder,
        env=launcher.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
