"""The seal of a file of torch.save: a zip comment at its very end with the SHA-256 of every byte before.

A copy of the digest goes into an extended attribute, which survives when the file's end is lost. It only serves to
name the expected digest in error messages.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from contextlib import suppress
from typing import IO, BinaryIO

from ddp_core.errors import UserError

_SEAL = b"ddp-train sha256=%s"
_PATTERN = re.compile(rb"ddp-train sha256=([0-9a-f]{64})")
_ATTRIBUTE = "user.ddp-train.sha256"
BYTES = len(_SEAL % (b"0" * 64))


def append(file: BinaryIO) -> None:
    """Seal the zip file, open for reading and writing, that torch.save wrote."""
    file.seek(-2, os.SEEK_END)  # the last field of a zip file without a comment: the comment's length
    if file.read(2) != b"\0\0":
        raise AssertionError("torch.save wrote a zip file that ends in a comment of its own")
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", BYTES))
    digest = _sha256(file, file.seek(0, os.SEEK_END)).encode()
    file.seek(0, os.SEEK_END)
    file.write(_SEAL % digest)
    with suppress(OSError):  # not every file system has extended attributes
        os.setxattr(file.fileno(), _ATTRIBUTE, digest)


def verify(path: str | os.PathLike[str], file: IO[bytes], *, required: bool) -> str | None:
    """The digest of a file with a valid seal; None for a torch.save file without a seal, unless one is `required`.

    Raises UserError, with the expected and the actual digest where they are known.
    """
    file.seek(0)
    start = file.read(4)
    length = file.seek(0, os.SEEK_END)
    if not start:
        raise UserError(f"{path} is empty{_digests(file, 0)}")
    if start != b"PK\x03\x04":
        raise UserError(f"{path} is not a checkpoint: it is not a file of torch.save{_digests(file, length)}")
    file.seek(max(0, length - BYTES))
    found = _PATTERN.fullmatch(file.read())
    if found is None:
        if not zipfile.is_zipfile(file):
            lost = f"its end is missing after {length:,} bytes"
            raise UserError(f"{path} is truncated or damaged: {lost}{_digests(file, length)}")
        if required:
            words = "is not a checkpoint of this trainer, or its seal is damaged"
            raise UserError(f"{path} {words}{_digests(file, length - BYTES)}")
        return None
    expected, actual = found[1].decode(), _sha256(file, length - BYTES)
    if actual != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is {actual}, and {expected} was written")
    return actual


def _digests(file: IO[bytes], length: int) -> str:
    """The file's digest and the expected one, for a message."""
    try:
        expected = os.getxattr(file.fileno(), _ATTRIBUTE).decode("ascii", "replace")[:64]
    except OSError:
        expected = "an unknown one"  # never sealed, or on a file system without extended attributes
    return f"; its SHA-256 is {_sha256(file, length)}, and {expected} was written"


def _sha256(file: IO[bytes], length: int) -> str:
    """SHA-256 of the first `length` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()
