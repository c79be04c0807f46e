"""The records of a zip file of torch.save, none of which may be larger than what the file holds of it.

Source: PKWARE's APPNOTE.TXT, 4.3 (general format) and 4.4 (fields).
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from typing import IO

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_DIRECTORY_COST = 12  # bytes of memory that zipfile takes for a byte of directory, at the most
# A byte of pickle can take eleven of memory, and a tensor's part of it is about 150 bytes with its name.
_PICKLE_BYTES, _PICKLE_BYTES_OF_RECORD = 1 << 20, 500


class Refused(ValueError):
    """The file holds what no checkpoint holds; one line says what."""


def read_records(file: IO[bytes], length: int, comment: int, *, most_memory: int) -> tuple[bytes, Mapping[str, int]]:
    """The pickle, and the bytes of each storage by its key. `comment`: bytes after the directory's end.

    Raises Refused.
    """
    _check_directory(file, length, comment, most_memory)
    try:
        with zipfile.ZipFile(file) as archive:
            records = _records(archive, length)
            if "data.pkl" not in records:
                raise Refused("not a file of torch.save: it has no data.pkl")
            if "constants.pkl" in records:
                raise Refused("it is an archive of TorchScript, which holds code")
            if (size := records["data.pkl"].file_size) > _PICKLE_BYTES + _PICKLE_BYTES_OF_RECORD * len(records):
                raise Refused(f"its pickle takes {size:,} bytes for {len(records):,} records")
            program = archive.read(records["data.pkl"])
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError, EOFError) as error:
        raise Refused(f"not a zip file of torch.save ({error})") from None
    storages = {name: info.file_size for name, info in records.items() if name.startswith("data/")}
    return program, {name.removeprefix("data/"): size for name, size in storages.items()}


def _check_directory(file: IO[bytes], length: int, comment: int, most_memory: int) -> None:
    """Refuse a directory that is not right before the end of the file, or too long to be read.

    Each reader of zip files looks for the directory in its own way; there, all find the same one.
    """
    end = length - comment - _END.size
    if end < 0:
        raise Refused("not a zip file")
    file.seek(end)
    signature, _, _, _, _, size, start, written = _END.unpack(file.read(_END.size))
    found = signature == b"PK\5\6" and written == comment
    if end >= (before := _END_64.size + _LOCATOR_64.size):
        file.seek(end - before)
        record, locator = file.read(_END_64.size), file.read(_LOCATOR_64.size)
        if _LOCATOR_64.unpack(locator)[0] == b"PK\6\7":
            end -= before
            signature, *_, size, start = _END_64.unpack(record)
            found = found and signature == b"PK\6\6" and _LOCATOR_64.unpack(locator)[2] == end
    if not found or start + size != end:
        raise Refused("its zip directory is not at its end")
    if size * _DIRECTORY_COST > most_memory:
        raise Refused(f"its zip directory alone takes {size:,} of its {length:,} bytes")


def _records(archive: zipfile.ZipFile, length: int) -> Mapping[str, zipfile.ZipInfo]:
    """The records by their names within the one folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        name = info.orig_filename
        folder, *parts = name.split("/")
        if {"", ".", ".."} & {folder, *parts} or any(letter in name for letter in "\\\0:"):
            raise Refused(f"its record {name[:80]!r} has a name that leads out of the file")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Refused(f"its record {name[:80]!r} is compressed or encrypted; torch.save only stores")
        inner = "/".join(parts)
        if inner in found:
            raise Refused(f"it has two records {name[:80]!r}")
        folders.add(folder if parts else None)
        found[inner] = info
    if len(folders) > 1 or None in folders:
        raise Refused("its records are not under one folder")
    if (total := sum(info.file_size for info in found.values())) > length:
        raise Refused(f"its records expand to {total:,} bytes; the file has {length:,}")
    return found
