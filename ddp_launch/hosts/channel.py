"""Messages between the two ends of a connection: JSON objects, one per line, each followed by the bytes it announces.

Both ends use this module: the launcher that was started by hand, and the keeper on each host, to which it is sent.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]
CHUNK_BYTES = 1 << 16
MOST_WAITING = 1 << 20
"""A sender should pause while more bytes than this are waiting to be sent."""


class Channel:
    """Sends and receives without blocking. `source`, `sink`: descriptors; the caller closes them."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.closed = False
        """Whether the other end has closed or is gone."""
        self._sending = threading.Lock()
        self._waiting = bytearray()
        self._received = bytearray()
        for descriptor in (source, sink):
            os.set_blocking(descriptor, False)

    @property
    def waiting(self) -> int:
        """Bytes that the other end has not taken yet."""
        return len(self._waiting)

    def send(self, kind: str, data: bytes = b"", **facts: object) -> None:
        """Send a message, from any thread, with `data` after it."""
        size = {"size": len(data)} if data else {}
        self.send_bytes(json.dumps({"kind": kind, **facts, **size}).encode() + b"\n" + data)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        with self._sending:
            self._waiting += data
        self.flush()

    def flush(self) -> None:
        """Write as many of the waiting bytes as the other end accepts now."""
        with self._sending:
            try:
                while self._waiting:
                    del self._waiting[: os.write(self.sink, self._waiting[:CHUNK_BYTES])]
            except BlockingIOError:
                pass
            except OSError:
                self.closed = True
                self._waiting.clear()

    def receive(self) -> Iterator[tuple[Message, bytes]]:
        """The messages that have arrived, with their bytes. Errors: ValueError for malformed input."""
        try:
            # One piece only: the caller serves other channels in between.
            chunk = os.read(self.source, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self.closed = self.closed or not chunk
        yield from self.take(chunk)

    def take(self, chunk: bytes) -> Iterator[tuple[Message, bytes]]:
        """The messages that these bytes complete. Errors: ValueError for malformed input."""
        self._received += chunk
        while (end := self._received.find(b"\n")) >= 0:
            message = json.loads(self._received[:end])
            size = message.get("size", 0)
            if len(self._received) < end + 1 + size:
                return
            data = bytes(self._received[end + 1 : end + 1 + size])
            del self._received[: end + 1 + size]
            yield message, data
