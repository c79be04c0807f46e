"""Whether the hosts of a run reach one another: each listens at a port, each calls all others. Sent to the hosts.

Ranks connect in both directions, at other ports than ssh: a firewall that lets ssh through may block them. A host is
recognized by a word that it answers with, since two hosts may share an address (a container's bridge). The caller then
sends more than fits in one packet, so that a route that loses large packets is noticed too.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import time
from contextlib import suppress
from typing import Any

PORTS = range(20_000, 30_000)
"""Below the ports that the kernel gives to outgoing connections."""
TRIES = 50
LIMIT_S = 3.0
PATIENCE_S = 0.2
"""How long to wait for a host's better addresses once one has answered."""
PAYLOAD_BYTES = 1 << 16
BACKLOG = 64


class Listener:
    """Listens at a port of this host during the check.

    `word`: the answer to callers, at most 64 bytes; `port`: None for one of PORTS, 0 for one that the system chooses.
    """

    def __init__(self, word: str, port: int | None = None) -> None:
        """Errors: OSError where no port can be opened, or not this one."""
        self._word = word.encode()
        self._callers: dict[socket.socket, int] = {}
        self.socket = _listen(port)
        self.port: int = self.socket.getsockname()[1]

    def serve(self, ready: socket.socket) -> socket.socket | None:
        """Serve `ready`: the listening socket, or a caller's. Returns the socket of a new caller."""
        if ready is self.socket:
            with suppress(OSError):
                caller, _ = self.socket.accept()
                caller.setblocking(False)
                self._callers[caller] = PAYLOAD_BYTES
                caller.send(self._word)
                return caller
            return None
        with suppress(BlockingIOError):
            try:
                chunk = ready.recv(PAYLOAD_BYTES)
            except ConnectionError:
                chunk = b""
            self._callers[ready] -= len(chunk)
            if not chunk or self._callers[ready] <= 0:
                with suppress(OSError):
                    ready.send(self._word)
                self.forget(ready)
        return None

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets to wait for."""
        return (self.socket, *self._callers)

    def forget(self, caller: socket.socket) -> None:
        """Close the connection to a caller."""
        self._callers.pop(caller, None)
        caller.close()

    def close(self) -> None:
        """Close the port and all callers."""
        for caller in [*self._callers]:
            self.forget(caller)
        self.socket.close()


def _listen(port: int | None) -> socket.socket:
    """A non-blocking server socket on `port`, or on a random one of PORTS. Errors: OSError."""
    for _ in range(TRIES):
        number = random.choice(PORTS) if port is None else port
        # One socket for both IPv4 and IPv6, if this host has both.
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        try:
            made = socket.create_server(
                ("", number), family=family, backlog=BACKLOG, dualstack_ipv6=family == socket.AF_INET6
            )
        except OSError:
            if port is not None:
                raise
            continue
        made.setblocking(False)
        return made
    raise OSError("no port between 20000 and 29999 is free")


class Call:
    """The attempt to reach a host at each of its addresses at once.

    target: {"name", "addresses": in the order of preference, "port", "word"}.
    """

    def __init__(self, target: dict[str, Any]) -> None:
        self.name: str = target["name"]
        self._port: int = target["port"]
        self._addresses: list[str] = target["addresses"]
        self._word: bytes = target["word"].encode()
        self._begin = time.monotonic()
        self._first_answer: float | None = None
        self.why: dict[str, str] = {}
        self.reached: set[str] = set()
        self._open: dict[socket.socket, _Try] = {}
        for address in self._addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with suppress(OSError):
                end = socket.socket(family, socket.SOCK_STREAM)
                end.setblocking(False)
                self._open[end] = _Try(address, self._word)
                with suppress(BlockingIOError):
                    try:
                        end.connect((address, self._port))
                    except OSError as error:
                        if not isinstance(error, BlockingIOError):
                            self._close(end, error.strerror or str(error))

    @property
    def waits_for(self) -> tuple[tuple[socket.socket, int], ...]:
        """The sockets to wait for, each with its event."""
        return tuple((end, one.event) for end, one in self._open.items())

    def go_on(self, end: socket.socket) -> None:
        """Continue with a socket that is ready."""
        one = self._open[end]
        try:
            if not one.advance(end):
                return
        except OSError as error:
            self._close(end, error.strerror or str(error))
            return
        self.reached.add(one.address)
        self._first_answer = self._first_answer or time.monotonic()
        self._close(end, None)

    def finished(self) -> bool:
        """Whether there is nothing more to wait for. If so, closes the remaining sockets."""
        now = time.monotonic()
        patient = self._first_answer is None or now - self._first_answer < PATIENCE_S
        best = next(iter(self._addresses), None) in self.reached
        if self._open and patient and not best and now - self._begin < LIMIT_S:
            return False
        for end, one in list(self._open.items()):
            self._close(end, one.silence)
        return True

    def result(self) -> dict[str, Any]:
        """{"name", "port", "reached": addresses in the order of preference, "why": address -> what went wrong}."""
        reached = [address for address in self._addresses if address in self.reached]
        return {"name": self.name, "port": self._port, "reached": reached, "why": self.why}

    def _close(self, end: socket.socket, why: str | None) -> None:
        """Close one attempt; `why`: the reason for a failure."""
        one = self._open.pop(end)
        end.close()
        if why is not None:
            self.why[one.address] = why


class _Try:
    """One connection: it reads the word, sends the payload, and reads the word again."""

    def __init__(self, address: str, word: bytes) -> None:
        self.address = address
        self._word = word
        self._heard = b""
        self._left: int | None = None
        self.event = selectors.EVENT_WRITE

    @property
    def silence(self) -> str:
        """The reason for a failure, for when nothing more arrives."""
        if self._left is not None:
            return "small packets arrive and large ones do not: the MTU of one side or of a switch is too small"
        return "no answer: a firewall, or a route that leads nowhere"

    def advance(self, end: socket.socket) -> bool:
        """One step; whether the host was reached. Errors: OSError, also where something else answers."""
        if self.event == selectors.EVENT_WRITE and self._left is None:
            if error := end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            self.event = selectors.EVENT_READ
            return False
        if self._left:
            self._left -= end.send(bytes(self._left))
            self.event = selectors.EVENT_WRITE if self._left else selectors.EVENT_READ
            return False
        self._heard += (chunk := end.recv(1024))
        expected = self._word if self._left is None else self._word * 2
        if not chunk or not expected.startswith(self._heard):
            raise OSError(0, "something else listens there")
        if self._left is None and self._heard == expected:
            self._left, self.event = PAYLOAD_BYTES, selectors.EVENT_WRITE
            return False
        return self._heard == expected
