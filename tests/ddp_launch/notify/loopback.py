"""Receivers on loopback: real HTTP servers that answer as they are told, and sockets that do worse."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMIT_S = 90


@dataclass
class Received:
    """A POST that came: `at` by the monotonic clock."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """`answers`: (status, headers, body) of the first requests, after which all are taken."""

    url: str
    answers: list[tuple[int, dict[str, str], bytes]]
    received: list[Received] = field(default_factory=list)

    def wait_for(self, number: int) -> list[Received]:
        """Until so many requests have come."""
        deadline = time.monotonic() + LIMIT_S
        while len(self.received) < number:
            assert time.monotonic() < deadline, self.received
            time.sleep(0.02)
        return self.received


@contextmanager
def server(*answers: tuple[int, dict[str, str], bytes], context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A receiver that answers; with a context, by https."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.received.append(Received(self.path, dict(self.headers), body))
            status, headers, words = made.answers.pop(0) if made.answers else (200, {}, b"ok")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        def do_GET(self) -> None:
            made.received.append(Received(self.path, dict(self.headers), b"GET"))
            self.send_error(405)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as listening:
        if context is not None:
            listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "http" if context is None else "https"
        made = Server(f"{scheme}://127.0.0.1:{listening.server_port}", list(answers))
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield made
        finally:
            listening.shutdown()


@contextmanager
def raw(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A port whose connections are handed to `serve`, each in a thread, with an event that says that it is over."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                threading.Thread(target=attend, args=(connection,), daemon=True).start()

        def attend(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection, over)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()


def hang(connection: socket.socket, over: threading.Event) -> None:
    """Take the request, and never answer."""
    over.wait(LIMIT_S)


def drip(connection: socket.socket, over: threading.Event) -> None:
    """Answer with a header that never ends, so slowly that no wait for the network is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not over.wait(0.05):
        connection.sendall(b"x")


def garbage(connection: socket.socket, over: threading.Event) -> None:
    """Answer with bytes that are no HTTP and no TLS."""
    connection.recv(100)
    connection.sendall(bytes(range(256)) * 20)
    connection.shutdown(socket.SHUT_WR)
    # What is left unread would end the connection before the answer is read.
    while connection.recv(1 << 16):
        continue


def flood(connection: socket.socket, over: threading.Event) -> None:
    """Refuse, and send a body without end."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n" + b"no such channel ")
    while not over.is_set():
        connection.sendall(b"y" * (1 << 16))


def dead() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"
