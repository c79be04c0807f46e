"""The connections with all hosts of a run: messages, output to the screen, heartbeats, lost hosts."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from shutil import which
from types import TracebackType
from typing import Any

from ddp_core.errors import UserError
from ddp_launch.cli.host_list import Host
from ddp_launch.hosts.channel import Message
from ddp_launch.hosts.connection import Connection, is_here, sources
from ddp_launch.hosts.keeper import BEAT_S, END_S, SILENCE_S
from ddp_launch.run.rank_output import FULL

WAIT_S = 0.2
REFUSED_S = 2.0
"""How long the other hosts may take to report their own problems too."""
CLOSE_S = 2 * END_S + 1.0
OWN_PAUSE_S = 1.0
"""If this process itself pauses longer than this, say for a blocked screen, no host's silence counts."""


class Fleet:
    """All hosts of a run. Leaving the `with` block ends what still runs on any of them."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        """Start all connections at once. Errors: UserError where there is no ssh."""
        program = sources()
        if which("ssh") is None and not all(is_here(host.name) for host in hosts):
            raise UserError("--hosts needs ssh, which is not installed here", "apt-get install openssh-client")
        self.hosts: list[Connection] = []
        self.inbox: dict[str, dict[int, Message]] = {}
        """Kind of message -> rank of the host -> the latest message."""
        self.on_message: Callable[[Connection, Message], None] = lambda host, message: None
        self.capture: bytearray | None = None
        """Receives the standard output of all hosts instead of the screen, which then shows no output at all."""
        self._lines: dict[tuple[int, int], bytes] = {}
        self._unshown, self._why = 0, ""
        self._looked = time.monotonic()
        self._closing = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        try:
            for rank, host in enumerate(hosts):
                self.hosts.append(Connection(host, rank, program))
        except OSError as error:
            self._close()
            raise UserError(f"--hosts: ssh cannot be started ({error.strerror or error})") from None
        self._beating.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def send(self, kind: str, **facts: Any) -> None:
        """Send a message to every host that still takes part."""
        for host in self.hosts:
            if host.is_open:
                host.channel.send(kind, **facts)

    def send_to_launchers(self, kind: str) -> None:
        """Send a message to the launcher of every host that still takes part."""
        for host in self.hosts:
            if host.is_open:
                host.channel.send("to-launcher", json.dumps({"kind": kind}).encode() + b"\n")

    def gather(self, kind: str, timeout_s: float) -> list[Message]:
        """Wait until every host that takes part has sent a message of this kind; the messages, by host.

        A host that is silent for `timeout_s` is lost. After a refusal the other hosts get REFUSED_S more.
        """
        deadline = time.monotonic() + timeout_s
        give_up: float | None = None
        came = self.inbox.setdefault(kind, {})
        while any(host.is_open and host.rank not in came for host in self.hosts):
            self.pump()
            now = time.monotonic()
            if give_up is None and self.inbox.get("refused"):
                give_up = now + REFUSED_S
            if give_up is not None and now > give_up:
                break
            if now > deadline:
                for host in self.hosts:
                    if host.is_open and host.rank not in came:
                        host.lost = f"no answer within {timeout_s:.0f} s"
        return [came[host.rank] for host in self.hosts if host.rank in came]

    def pump(self) -> None:
        """Wait a moment for messages and act on them."""
        live = [host for host in self.hosts if host.is_open and not host.channel.closed]
        reading: dict[int, Callable[[], Any]] = {}
        for host in live:
            reading[host.channel.source] = partial(self._receive, host)
            reading[host.errors] = host.read_errors
        writing = {host.channel.sink: host.channel.flush for host in live if host.channel.waiting}
        ready = select.select(list(reading), list(writing), [], WAIT_S)
        for descriptor in ready[0]:
            reading[descriptor]()
        for descriptor in ready[1]:
            writing[descriptor]()
        self._notice_losses({host.rank for host in live if host.channel.source in ready[0]})

    def _receive(self, host: Connection) -> None:
        """Act on the messages of one host: output to the screen, its end, the rest into the inbox."""
        for message, data in host.receive():
            match message["kind"]:
                case "output":
                    self._show(host, message["stream"], data)
                case "end":
                    host.code = message["code"]
                    for stream in (1, 2):
                        self._show(host, stream, b"", last=True)
                case "beat":
                    continue
                case kind:
                    self.inbox.setdefault(kind, {})[host.rank] = message
            self.on_message(host, message)

    def _notice_losses(self, heard: set[int]) -> None:
        """Mark hosts as lost if their connection closed, or if they were silent for SILENCE_S."""
        now = time.monotonic()
        paused, self._looked = now - self._looked > OWN_PAUSE_S, now
        for host in self.hosts:
            if not host.is_open:
                continue
            if host.channel.closed:
                host.lost = host.why_closed()
            elif paused or host.rank in heard:
                host.heard = max(host.heard, now if paused else 0.0)
            elif host.ready and now - host.heard > SILENCE_S:
                host.lost = f"the connection was lost: nothing heard for {SILENCE_S:.0f} s"

    def _show(self, host: Connection, stream: int, data: bytes, *, last: bool = False) -> None:
        """Show the first host's output as it is, that of the others in whole lines after the host's name."""
        if self.capture is not None:
            self.capture += data if stream == 1 else b""
            return
        if host.rank > 0:
            text = self._lines.get((host.rank, stream), b"") + data
            whole, end, rest = text.rpartition(b"\n")
            if last and rest:
                whole, end, rest = text, b"\n", b""
            self._lines[host.rank, stream] = rest
            prefix = f"[{host.name}] ".encode()
            data = b"".join(prefix + line + b"\n" for line in whole.split(b"\n")) if end else b""
        if not self._write(stream, data) and host.rank == 0:
            # The reader is gone (launch.py | head): the rank has to notice, as if it wrote there itself.
            host.channel.send("close", stream=stream)

    def _write(self, stream: int, data: bytes) -> bool:
        """Write all bytes, waiting as needed; False when the reader is gone. What a full disk does not accept is left
        out, as in a run without --hosts."""
        while data:
            try:
                data = data[os.write(stream, data) :]
            except BlockingIOError:
                select.select([], [stream], [])
            except OSError as error:
                if error.errno not in FULL:
                    return False
                self._unshown, self._why = self._unshown + len(data), error.strerror or ""
                return True
        return True

    def _beat(self) -> None:
        """A thread's work: send heartbeats, also while a blocked screen holds the main thread up."""
        while not self._closing.wait(BEAT_S):
            for host in self.hosts:
                if host.ready and not host.channel.waiting:
                    host.channel.send("beat")

    def _close(self) -> None:
        """End all connections at once, and what still runs on the hosts."""
        self._closing.set()
        if self._beating.is_alive():
            self._beating.join()
        for host in self.hosts:
            host.hang_up()
        deadline = time.monotonic() + CLOSE_S
        for host in self.hosts:
            host.close(max(0.0, deadline - time.monotonic()) if host.lost is None and host.ready else 0.0)
        if self._unshown:
            with suppress(OSError):  # the same full disk
                line = f"{self._unshown:,} bytes of the ranks' output are not in it ({self._why})"
                print(f"note: the launcher's output: {line}", file=sys.stderr, flush=True)
