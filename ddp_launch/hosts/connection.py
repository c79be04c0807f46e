"""The connection with one host: ssh with a keeper at the other end, and the reason in words where there is none.

ssh uses the user's own configuration, keys, agent, ports and jump hosts. It asks for no password: the prompt would be
lost among the output of other hosts. This machine itself is reached without ssh.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files

from ddp_core.errors import one_line
from ddp_launch.cli.host_list import Host
from ddp_launch.hosts import facts
from ddp_launch.hosts.channel import CHUNK_BYTES, Channel, Message
from ddp_launch.run.process_tree import with_pdeathsig

CONNECT_S = 8
OPTIONS = (
    "-T",
    "-oBatchMode=yes",
    f"-oConnectTimeout={CONNECT_S}",
    "-oConnectionAttempts=1",
    "-oServerAliveInterval=2",
    "-oServerAliveCountMax=3",
    # The rest switches off what a user's configuration may add for interactive sessions.
    "-oRemoteCommand=none",
    "-oClearAllForwardings=yes",
    "-oForwardX11=no",
    "-oPermitLocalCommand=no",
)
SSH_FAILED = 255
NOT_EXECUTABLE, NOT_FOUND = 126, 127
SENT = ("channel", "facts", "reach", "keeper")
READER = "import sys;sys.path[:]=[p for p in sys.path if p];i=sys.stdin.buffer;exec(i.read(int(i.readline())))"
"""Run by the host's Python: executes the program on its input, without the current folder in sys.path."""
LAST_LINES = 20
LOOK_S, TERMINATE_S = 0.05, 0.5
BANNER_BYTES = 1 << 16
LEAST_PYTHON = (3, 11)
READY = b"ddp-launch-keeper-is-ready"

_WORDS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key differs from the known one: ask its administrator"),
    (r"Host key verification failed|No \S+ host key is known", "host key unknown: run `ssh {name}` once and accept it"),
    (
        r"Permission denied \(|Too many authentication failures",
        "permission denied ({reason}): no key that it accepts; `ssh-copy-id {name}` puts yours there",
    ),
    (r"Could not resolve hostname", "no connection: the name does not resolve ({reason})"),
    (r"Connection timed out|Operation timed out|timed out", "no connection: no answer within {limit} s"),
    (r"Connection refused", "no connection: refused; is sshd running there, at this port?"),
    (r"No route to host|Network is unreachable", "no connection: {reason}"),
    (r"kex_exchange_identification|Connection (closed|reset) by", "no connection: the other end closed it ({reason})"),
)


def sources() -> bytes:
    """The keeper as one program that needs no package: what READER reads."""
    texts = {name: files("ddp_launch.hosts").joinpath(f"{name}.py").read_text(encoding="utf-8") for name in SENT}
    program = f"""
import json, sys, types
print({READY.decode()!r}, flush=True)
if sys.version_info < {LEAST_PYTHON}:
    # The rest needs a newer Python.
    print(json.dumps(dict(kind="hello", python=sys.version_info[:3])), flush=True)
    sys.exit()
for name in ("ddp_launch", "ddp_launch.hosts"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in {texts!r}.items():
    module = sys.modules["ddp_launch.hosts." + name] = types.ModuleType("ddp_launch.hosts." + name)
    exec(compile(text, "ddp_launch/hosts/" + name + ".py", "exec"), module.__dict__)
module.main()
""".encode()
    return b"%d\n%s" % (len(program), program)


class Connection:
    """The connection to one host. `rank`: its place among the hosts of the run."""

    def __init__(self, host: Host, rank: int, program: bytes) -> None:
        """Start ssh, without waiting for the connection. Errors: OSError where there is no ssh."""
        self.name, self.slots, self.rank = host.name, host.slots, rank
        self.here = is_here(host.name)
        python = (sys.executable, "-c", READER)
        self.command = python if self.here else ("ssh", *OPTIONS, "--", host.name, f"exec {shlex.join(python)}")
        self.heard = time.monotonic()
        self.ready = False
        self.code: int | None = None
        """How its launcher ended: Popen's returncode."""
        self.lost: str | None = None
        """Why the connection is lost; None while it works."""
        self._words: deque[str] = deque(maxlen=LAST_LINES)
        self._before = b""
        # In a new session: Ctrl-C reaches the launcher alone, and ssh has no terminal for a prompt.
        self._process = subprocess.Popen(
            with_pdeathsig(self.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.errors = self._process.stderr.fileno()
        os.set_blocking(self.errors, False)
        self.channel.send_bytes(program)

    @property
    def is_open(self) -> bool:
        """Whether the host still takes part: its launcher has not ended, and can be reached."""
        return self.code is None and self.lost is None

    def receive(self) -> Iterator[tuple[Message, bytes]]:
        """The messages that have arrived. What a login shell prints before the first one is skipped."""
        try:
            for message, data in self.channel.receive() if self.ready else self._await_ready():
                self.heard = time.monotonic()
                yield message, data
        except ValueError:
            self.channel.closed = True

    def _await_ready(self) -> Iterator[tuple[Message, bytes]]:
        """Messages after the keeper's first line; skips what the login shell prints before it."""
        try:
            chunk = os.read(self.channel.source, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self.channel.closed = not chunk
        _, ready, rest = (self._before + chunk).partition(READY + b"\n")
        self.ready = bool(ready)
        if self.ready:
            yield from self.channel.take(rest)
        else:
            self._before = (self._before + chunk)[-BANNER_BYTES:]

    def read_errors(self) -> None:
        """Collect the error output of ssh and the keeper."""
        with suppress(OSError):
            text = os.read(self.errors, CHUNK_BYTES).decode(errors="replace")
            self._words.extend(line.strip() for line in text.splitlines() if line.strip())

    def why_closed(self) -> str:
        """Why the channel has closed, in words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self.read_errors()
        # Without any error, what the login shell has printed is all there is: "This account is not available".
        lines = list(self._words) or self._before.decode(errors="replace").split("\n")[-LAST_LINES:]
        lines = [line for line in map(str.strip, lines) if line]
        return in_words(self.name, self._process.returncode, lines, ready=self.ready)

    def hang_up(self) -> None:
        """Close the keeper's input: it then ends what it still runs."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def close(self, timeout_s: float) -> None:
        """Wait for the other end to close, which it does when everything there has ended; then end ssh from here."""
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < deadline:
            # Keep reading, so that the other end is not blocked by its output.
            ready = select.select([self.channel.source], [], [], LOOK_S)[0]
            with suppress(OSError):
                if ready and not os.read(self.channel.source, CHUNK_BYTES):
                    time.sleep(LOOK_S)
        # SIGTERM first: ssh then ends its ProxyCommand.
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(TERMINATE_S)
        self._process.kill()
        self._process.wait()


def in_words(name: str, status: int | None, lines: list[str], *, ready: bool) -> str:
    """Why there is no connection. `status`: ssh's exit status; `lines`: its standard error."""
    text = "\n".join(lines)
    last = one_line(lines[-1]) if lines else ""
    if ready:
        return "the connection was closed" + (f" (ssh: {last})" if last else "")
    # ssh ends with any other status only once it was logged in: then the lines are those of the login shell and Python.
    for pattern, words in _WORDS if status not in range(SSH_FAILED) else ():
        if found := re.search(rf"^.*({pattern}).*$", text, re.M):
            reason = one_line(found[0]).rpartition(": ")[2].strip().rstrip(".")
            reason = reason.removeprefix("Permission denied (").removesuffix(")")
            return words.format(name=name, reason=reason, limit=CONNECT_S)
    if status == NOT_FOUND:
        return f"no Python there at {sys.executable}, which is this launcher's: make the same environment at that path"
    if status == NOT_EXECUTABLE:
        return f"the Python there, {sys.executable}, which is this launcher's, cannot be run: {last}"
    if status == SSH_FAILED:
        return f"no connection: {last or 'ssh gave no reason'}"
    return f"the Python there, {sys.executable}, ended with status {status}" + (f": {last}" if last else "")


def is_here(name: str) -> bool:
    """Whether the name is this machine's, and ssh's configuration leads to no other user, port or machine."""
    own = socket.gethostname()
    same = name.lower() in ("localhost", own.lower()) or ("." not in name and name == own.partition(".")[0])
    return (same or name in {one["address"] for one in facts.addresses()}) and _goes_nowhere_else(name)


def _goes_nowhere_else(name: str) -> bool:
    """Whether `ssh -G` resolves the name to itself: same user, port 22, no proxy. True without ssh."""
    try:
        done = subprocess.run(["ssh", "-G", "--", name], capture_output=True, text=True, timeout=CONNECT_S)
    except (OSError, subprocess.TimeoutExpired):
        return True
    settings = dict(line.lower().split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    user = pwd.getpwuid(os.geteuid()).pw_name
    expected = {"hostname": name, "port": "22", "user": user, "proxycommand": "none", "proxyjump": "none"}
    return all(settings.get(key, value) == value.lower() for key, value in expected.items())
