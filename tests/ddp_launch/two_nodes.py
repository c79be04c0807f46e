"""Two nodes on one machine: a network, mount, host name and process namespace each, joined by a veth pair.

Each has a bridge as a decoy that comes first, by name as by number, and the first one's own name is 127.0.1.1 in its
/etc/hosts, as Debian has it. All of it lives in processes: with them it is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

NAMESPACES = ("--net", "--uts", "--mount", "--pid")
SLEEP = ("--fork", "--kill-child", "sleep", "infinity")
WIRED = ("unshare", "--net", "--uts", "--mount", *SLEEP)
POPULATED = ("unshare", "--mount", "--pid", "--mount-proc", *SLEEP)
HOSTS_A = "127.0.0.1 localhost\n127.0.1.1 node-a\n10.77.0.2 node-b\n"
HOSTS_B = "127.0.0.1 localhost\n10.77.0.1 node-a\n10.77.0.2 node-b\n"
DECOY = """
ip link set lo up
ip link add name br-decoy type bridge
ip link add name port-a type veth peer name port-b
ip link set port-a master br-decoy up
ip link set port-b up
ip addr add 172.30.0.1/24 dev br-decoy
ip link set br-decoy up
"""


class Node:
    """A node of the pair. `address`: on the veth pair; `pid`: the first process inside, with which all are gone."""

    def __init__(self, name: str, address: str, pid: int, folder: Path) -> None:
        self.name = name
        self.address = address
        self.pid = pid
        self._there = f"--wdns={folder}"

    def command(self, *words: str) -> list[str]:
        """A command line that runs these words inside, in the node's folder."""
        # Into another mount namespace nsenter would take the words to its root folder.
        return [
            "nsenter",
            f"--target={self.pid}",
            *_as_user("--preserve-credentials"),
            *NAMESPACES,
            self._there,
            *words,
        ]

    def run(self, script: str) -> str:
        """Run a shell script inside; its stdout."""
        done = subprocess.run(self.command("sh", "-euc", script), capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lose(self) -> None:
        """SIGKILL to everything inside, at once."""
        os.kill(self.pid, signal.SIGKILL)


def why_not() -> str | None:
    """Why there can be no such nodes here; None where they can."""
    for program in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    words = [*_as_user("--map-root-user"), *NAMESPACES, "--fork", "--mount-proc", "sh", "-euc", DECOY]
    done = subprocess.run(["unshare", *words], capture_output=True, text=True)
    return f"no namespaces here ({done.stderr.strip()})" if done.returncode else None


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """node-a (wire-a, 10.77.0.1) and node-b (wire-b, 10.77.0.2). `folder`: theirs, on a disk that they share."""
    with ExitStack() as stack:
        enter: list[str] = []
        if os.geteuid() != 0:
            # Both in one user namespace: else neither could give the other its end of the wire.
            anchor = _first_inside(stack.enter_context(_held(["unshare", "--user", "--map-root-user", *SLEEP])))
            enter = ["nsenter", f"--target={anchor}", "--user", "--preserve-credentials"]
        wired = [_first_inside(stack.enter_context(_held([*enter, *WIRED]))) for _ in range(2)]
        a = _node(stack, wired[0], "a", 1, HOSTS_A, folder)
        b = _node(stack, wired[1], "b", 2, HOSTS_B, folder)
        subprocess.run(
            ["nsenter", f"--target={wired[0]}", *_as_user("--preserve-credentials"), "--net", *_wire(wired[1])],
            check=True,
            timeout=20,
        )
        for node, end in ((a, "wire-a"), (b, "wire-b")):
            node.run(f"ip addr add {node.address}/24 dev {end}; ip link set {end} up")
        yield a, b


def _wire(other: int) -> list[str]:
    return f"ip link add name wire-a type veth peer name wire-b netns {other}".split()


def _node(stack: ExitStack, wired: int, letter: str, place: int, hosts: str, folder: Path) -> Node:
    """A process namespace on a network that outlives it: the wire of a lost node stays plugged in."""
    into = ["nsenter", f"--target={wired}", *_as_user("--preserve-credentials"), "--net", "--uts", "--mount"]
    inside = _first_inside(stack.enter_context(_held([*into, *POPULATED])))
    node = Node(f"node-{letter}", f"10.77.0.{place}", inside, folder)
    table = folder / f"hosts-{letter}"
    table.write_text(hosts)
    node.run(f"{DECOY}\nhostname {node.name}\nmount --bind {table} /etc/hosts")
    return node


def _as_user(option: str) -> tuple[str, ...]:
    """Root needs no user namespace to make and enter the others."""
    return () if os.geteuid() == 0 else ("--user", option)


@contextmanager
def _held(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    # With this process it goes in any case, killed or not.
    holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.DEVNULL)
    try:
        yield holder
    finally:
        # The first process inside goes with it (--kill-child), and with that one all the others.
        holder.kill()
        holder.wait()


def _first_inside(holder: subprocess.Popen[bytes]) -> int:
    """The pid of the sleeping child, once it is in its namespaces."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                return int(pid)
        time.sleep(0.01)
    raise TimeoutError("unshare has started nothing")
