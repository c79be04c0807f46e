"""Debuggers: pdb on rank 0; `--debug-rank` starts one rank under debugpy, the real one or a module in its place."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ddp_launch.plan.command import DEBUG_ADDRESS
from tests.ddp_launch.conftest import ROOT, TIMEOUT_S

DEBUGPY = """
import os, runpy, sys
print("debugpy", os.environ["RANK"], sys.argv[1:4], flush=True)
assert "DDP_LAUNCH_DEBUG" not in os.environ
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_one_rank_starts_under_debugpy(launcher: Any) -> None:
    launcher.script(DEBUGPY, "modules/debugpy/__main__.py")
    launcher.script("", "modules/debugpy/__init__.py")
    launcher.script("import os, sys\nprint(os.environ['RANK'], sys.argv, __name__)")
    path = str(launcher.folder / "modules")
    done = launcher.run("--cpu", "--tee", "--debug-rank", "1", "program.py", "a", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "0 ['program.py', 'a'] __main__",
        "[rank 1] 1 ['program.py', 'a'] __main__",
        "[rank 1] debugpy 1 ['--listen', '127.0.0.1:5678', '--wait-for-client']",
    ]
    assert "rank 1 starts when a debugger connects to 127.0.0.1:5678" in " ".join(done.stderr.split())


def test_a_shell_program_has_no_debugger(launcher: Any) -> None:
    done = launcher.run("--cpu", "--debug-rank", "0", "--no-python", "sh")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --debug-rank starts a rank under Python's debugger")


PROGRAM = """
import os
import torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(3)
if os.environ["RANK"] == "RANK_OF_INTEREST":
    STOP
    print("continued")
dist.all_reduce(x)
print("sum", x.tolist())
dist.destroy_process_group()
"""


def program(rank: int, stop: str) -> str:
    return PROGRAM.replace("RANK_OF_INTEREST", str(rank)).replace("STOP", stop)


def test_pdb_on_rank_0_at_a_terminal(launcher: Any) -> None:
    """Another rank waits meanwhile, and is reported; nothing of that disturbs the prompt."""
    launcher.script(program(0, "breakpoint()"))
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(launcher.folder)
        command = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", "2", "--stall-report", "1"]
        os.execve(sys.executable, [*command, "program.py"], launcher.env)
    try:
        shown = read_until(terminal, "(Pdb) ")
        shown += read_until(terminal, "Look again")
        os.write(terminal, b"p x.sum().item() + 39\n")
        shown += read_until(terminal, "(Pdb) ")
        os.write(terminal, b"c\n")
        shown += read_until(terminal, "sum [2.0, 2.0, 2.0]")
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert "\n42.0" in shown.replace("\r", "") and "continued" in shown
    assert "rank 0 has not come to all_reduce number 1, in which rank 1 waits" in " ".join(shown.split())


def read_until(terminal: int, text: str) -> str:
    deadline, shown = time.monotonic() + TIMEOUT_S, ""
    while text not in shown:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], shown
        shown += os.read(terminal, 1 << 16).decode()
    return shown


@pytest.mark.skipif(find_spec("debugpy") is None, reason="debugpy is not installed")
def test_a_debugger_attaches_to_rank_1(launcher: Any) -> None:
    """As VS Code does, by the Debug Adapter Protocol: attach, read a variable's value, continue."""
    host, _, port = DEBUG_ADDRESS.partition(":")
    with socket.socket() as probe:
        if probe.connect_ex((host, int(port))) == 0:
            pytest.skip("another debugger has the port")
    launcher.script(program(1, "import debugpy; debugpy.breakpoint()"))
    process = launcher.start(
        "--cpu", "--nproc", "2", "--tee", "1:3", "--stall-report", "0", "--debug-rank", "1", "program.py"
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        with connected(host, int(port), deadline) as adapter:
            adapter.ask("initialize", adapterID="test", pathFormat="path")
            adapter.send("attach", name="test")
            adapter.wait_for("event", "initialized")
            adapter.ask("configurationDone")
            thread = adapter.wait_for("event", "stopped")["body"]["threadId"]
            frame = adapter.ask("stackTrace", threadId=thread)["body"]["stackFrames"][0]
            assert Path(frame["source"]["path"]).name == "program.py"
            value = adapter.ask("evaluate", expression="x.sum().item() + 39", frameId=frame["id"])
            assert value["body"]["result"] == "42.0"
            adapter.ask("continue", threadId=thread)
            out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert "[rank 1] continued" in out


class Adapter:
    """The other side of a Debug Adapter Protocol connection: JSON after a header with its length."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream, self._number = connection.makefile("rwb"), 0
        self._seen: list[dict[str, Any]] = []

    def send(self, command: str, **arguments: Any) -> None:
        self._number += 1
        body = json.dumps({"seq": self._number, "type": "request", "command": command, "arguments": arguments})
        self._stream.write(f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        self._stream.flush()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.send(command, **arguments)
        return self.wait_for("command", command)

    def wait_for(self, key: str, value: str) -> dict[str, Any]:
        while True:
            for message in self._seen:
                if message.get(key) == value:
                    self._seen.remove(message)
                    assert message.get("success", True), message
                    return message
            length = 0
            while line := self._stream.readline().strip():
                length = int(line.partition(b": ")[2])
            assert length, "the connection was closed"
            self._seen.append(json.loads(self._stream.read(length)))


@contextmanager
def connected(host: str, port: int, deadline: float) -> Iterator[Adapter]:
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=TIMEOUT_S)
            break
        except OSError:
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.1)
    with connection:
        yield Adapter(connection)
