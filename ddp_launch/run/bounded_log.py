"""A log file of bounded size, which keeps its head and its tail; a full disk does not end the program that writes."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from ddp_launch.cli.value_types import LOG_BYTES

LEAST_BYTES = 4096
"""The least room for a head, a tail and the line between them."""
_KEEP_SIZE = 1  # linux/falloc.h: FALLOC_FL_KEEP_SIZE


class BoundedLog:
    """A file of at most `limit` bytes (0: no limit), a quarter of them for its head, the rest for its tail.

    A full disk lowers the limit. `lost`: bytes that could not be written; `why`: the reason in words.
    """

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path = path
        self.lost, self.why = 0, ""
        self._limit = limit and max(limit, LEAST_BYTES)
        self._file: int | None = None
        self._size, self._head, self._left_out = 0, 0, 0
        self._mark = b""
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Append to the file. Never raises: bytes that cannot be written are counted as lost."""
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                _reserve(self._file)
            while data:
                room = self._limit - self._size if self._limit else len(data)
                try:
                    written = os.pwrite(self._file, data[:room], self._size) if room > 0 else 0
                except OSError as error:
                    if self._size < LEAST_BYTES:
                        raise
                    self.why, self._limit, written = error.strerror or "", self._size, 0
                self._size, data = self._size + written, data[written:]
                if self._limit and self._size >= self._limit:
                    self._shorten(self._file)
        except OSError as error:
            self.why = error.strerror or str(error)
            self.lost += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None

    def _shorten(self, file: int) -> None:
        """Replace the middle by a line with the number of missing bytes. Needs no more space on the disk.

        Whole lines are kept, unless a single line is longer than the space for it.
        """
        if not self._head:
            head = os.pread(file, self._limit // 4, 0)
            self._head = head.rfind(b"\n") + 1 or len(head)
        begin = max(self._head + len(self._mark), self._size - self._limit // 2)
        tail = os.pread(file, self._size - begin, begin)
        tail = tail[tail.find(b"\n") + 1 :]
        left_out = self._size - self._head - len(self._mark) - len(tail)
        self._left_out += left_out
        if self.why:
            self.lost += left_out
        self._mark = b"[... %d bytes are left out here ...]\n" % self._left_out
        os.pwrite(file, self._mark + tail, self._head)
        self._size = self._head + len(self._mark) + len(tail)
        os.ftruncate(file, self._size)


def _reserve(file: int) -> None:
    """Reserve LEAST_BYTES of the disk for an empty file, so that an error message fits even when other logs have filled
    the disk.

    Does nothing where the file system does not support it.
    """
    with suppress(OSError, AttributeError):
        fallocate = ctypes.CDLL(None).fallocate
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
        fallocate(file, _KEEP_SIZE, 0, LEAST_BYTES)
