"""The two nodes of two_nodes.py with an sshd in each, which takes keys alone, and an ssh that knows them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ddp_launch import two_nodes
from tests.ddp_launch.two_nodes import Node

ROOT = Path(__file__).parents[3]
PORT = 2222
NAMES = ("node-a", "node-b")
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
SERVER = f"""
Port {PORT}
HostKey {{folder}}/{{name}}.key
AuthorizedKeysFile {{folder}}/authorized
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
CLIENT = f"""
Host node-a
  HostName 10.77.0.1
Host node-b
  HostName 10.77.0.2
Host node-silent
  HostName 10.77.0.2
  Port 2223
Host node-closed
  HostName 10.77.0.2
  Port 2224
Host node-stranger
  HostName 10.77.0.2
  UserKnownHostsFile /dev/null
Host node-denied
  HostName 10.77.0.2
  PubkeyAuthentication no
Host localhost
  Port 22
Host *
  Port {PORT}
  IdentitiesOnly yes
  IdentityFile {{folder}}/key
  UserKnownHostsFile {{folder}}/known
  StrictHostKeyChecking ask
"""


def why_not() -> str | None:
    """Why there can be no such pair here; None where there can."""
    packages = {"ssh": "openssh-client", "rsync": "rsync", "iptables": "iptables", "pkill": "procps"}
    for program, package in packages.items():
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return f"the program {program} is not installed (Debian: {package})"
    if not Path(SSHD).exists():
        return "sshd is not installed (Debian: openssh-server)"
    return two_nodes.why_not()


class Pair:
    """Both nodes. `folder`: on the disk that they share; `bin`: has the ssh to be found first."""

    def __init__(self, folder: Path, nodes: tuple[Node, Node]) -> None:
        self.folder = folder
        self.a, self.b = nodes
        self.bin = folder / "bin"
        self.servers: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, on: Node | None = None, project: Path = ROOT, **env: str) -> subprocess.Popen[str]:
        """Start the project's launch.py on the first node; the test waits for it."""
        variables = {
            "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "COLUMNS": "200",
            "TMPDIR": str(self.folder / "tmp"),
            **env,
        }
        command = ["env", *(f"{name}={value}" for name, value in variables.items())]
        command += [sys.executable, str(project / "launch.py"), *words]
        return subprocess.Popen(
            (on or self.a).command(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        """Run launch.py to its end."""
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def script(self, text: str, name: str = "program.py") -> str:
        """A user's program in the folder; its name."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def running(self, word: str) -> list[str]:
        """Command lines on both nodes that hold the word."""
        found = []
        for node in (self.a, self.b):
            listed = subprocess.run(node.command("ps", "-eo", "args"), capture_output=True, text=True).stdout
            found += [f"{node.name}: {line}" for line in listed.splitlines() if word in line]
        return found

    def gone_within(self, word: str, seconds: float) -> list[str]:
        """What of it still runs after so long; returns as soon as nothing does."""
        deadline = time.monotonic() + seconds
        while (left := self.running(word)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def serve(self, node: Node) -> None:
        """Start the sshd of a node."""
        # By itself, as Debian starts it; -D: it stays.
        words = ["sh", "-c", f"mkdir -p /run/sshd; exec {SSHD} -D -e -f {self.folder}/{node.name}.conf"]
        log = (self.folder / f"{node.name}.sshd.log").open("ab")
        self.servers.append(subprocess.Popen(node.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log))


@contextmanager
def ssh_pair(folder: Path) -> Iterator[Pair]:
    """node-a and node-b, which reach one another by `ssh NAME`."""
    with two_nodes.two_nodes(folder) as nodes:
        pair = Pair(folder, nodes)
        for made in (pair.bin, folder / "tmp"):
            made.mkdir()
        for name in ("key", *(f"{name}.key" for name in NAMES)):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "key.pub", folder / "authorized")
        keys = [(folder / f"{name}.key.pub").read_text().split()[:2] for name in NAMES]
        addresses = (nodes[0].address, nodes[1].address)
        known = [f"[{address}]:{PORT} {' '.join(key)}\n" for address, key in zip(addresses, keys, strict=True)]
        (folder / "known").write_text("".join(known))
        (folder / "config").write_text(CLIENT.format(folder=folder))
        (pair.bin / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        (pair.bin / "ssh").chmod(0o755)
        for node in nodes:
            (folder / f"{node.name}.conf").write_text(SERVER.format(folder=folder, name=node.name))
            pair.serve(node)
        _await_servers(pair)
        try:
            yield pair
        finally:
            for server in pair.servers:
                server.send_signal(signal.SIGTERM)
                server.wait()


def _await_servers(pair: Pair) -> None:
    deadline = time.monotonic() + 10
    for name in NAMES:
        while subprocess.run(pair.a.command(str(pair.bin / "ssh"), name, "true"), capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError((pair.folder / f"{name}.sshd.log").read_text())
            time.sleep(0.05)


@contextmanager
def pair_with(program: str, folder: Path) -> Iterator[Pair]:
    """The pair with a `program.py`; skips the test where there cannot be one."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with ssh_pair(folder) as made:
        made.script(program)
        yield made
